"""Earlier messages, and tools, as the chat templates of some families want to be given them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

Message = dict[str, Any]


def for_harmony(messages: Sequence[Message]) -> list[Message]:
    """As gpt-oss's template takes them: it writes the first call of a message and no other, puts
    the name of the last call to a result, refuses what is said beside a call's reasoning, and
    needs every message to have a content. Of system messages it writes only one that comes first:
    those that follow it at once go with it, and those that come later are told as the user's."""
    at = next((i for i, m in enumerate(messages) if m.get("role") != "system"), len(messages))
    told = list(messages[:at])
    if len(told) > 1:
        content = "\n\n".join(str(message.get("content") or "") for message in told)
        told = [{**told[0], "content": content}]
    rest = [{**m, "role": "user"} if m.get("role") == "system" else m for m in messages[at:]]
    return [*told, *_one_call_each(rest)]


def tools_for_harmony(tools: Sequence[Any]) -> list[Any]:
    """As gpt-oss's template takes them: it needs each to have a description, and writes what a
    parameter is by default as a text where its values are listed."""
    return [_described(tool) for tool in tools]


def _described(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    written = {**function, "description": function.get("description") or ""}
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if isinstance(parameters, dict) and isinstance(properties, dict):
        plain = {name: _with_default_as_text(schema) for name, schema in properties.items()}
        written["parameters"] = {**parameters, "properties": plain}
    return {**tool, "function": written}


def _with_default_as_text(schema: Any) -> Any:
    listed = isinstance(schema, dict) and (schema.get("enum") or schema.get("oneOf"))
    if not listed or isinstance(schema.get("default", ""), str):
        return schema
    return {**schema, "default": json.dumps(schema["default"], ensure_ascii=False)}


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls")
        if message.get("role") != "assistant" or not isinstance(calls, list):
            yield {"content": "", **message}
            continue
        results: list[Message] = []
        while at < len(messages) and messages[at].get("role") == "tool":
            results.append({"content": "", **messages[at]})
            at += 1
        yield from _in_turn(_one_thought(message), calls, results)


def _one_thought(message: Message) -> Message:
    """A message that calls, with what is said in it at the end of what is thought."""
    thinking, content = message.get("thinking"), message.get("content")
    if not thinking or not content:
        return message
    rest = {key: value for key, value in message.items() if key != "content"}
    return {**rest, "thinking": f"{thinking}\n\n{content}"}


def _in_turn(message: Message, calls: list[Any], results: list[Message]) -> Iterator[Message]:
    """Each call in a message of its own, and its result after it. A result that names no call
    belongs to the first one that no result names."""
    if not calls:
        yield {"content": "", **{k: v for k, v in message.items() if k != "tool_calls"}}
    named: dict[Any, list[Message]] = {_id(call): [] for call in calls if _id(call) is not None}
    unnamed: list[Message] = []
    for result in results:
        named.get(result.get("tool_call_id"), unnamed).append(result)
    for number, call in enumerate(calls):
        only = {"role": "assistant", "tool_calls": [call]}
        yield {**message, **only} if number == 0 else only
        if own := named.pop(_id(call), None):
            yield from own
        elif unnamed:
            yield unnamed.pop(0)
    yield from unnamed


def _id(call: Any) -> Any:
    return call.get("id") if isinstance(call, dict) else None
