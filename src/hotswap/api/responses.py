"""OpenAI's Responses: JSON objects to `GenerationRequest`.

A response may go on from one that is kept here: then its conversation is that one's, its answer,
and what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.api.dialect import Call, Lasting
from hotswap.api.fields import Count, decode
from hotswap.api.responses_answers import Asked, ResponseDocument, ResponseFrames
from hotswap.api.responses_store import ResponseStore
from hotswap.api.tools import MAX_TOOLS, DeclaredTool, check_together, tool_mappings
from hotswap.contracts import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import InvalidRequest


class Part(Struct, omit_defaults=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class Item(Struct, omit_defaults=True):
    """An item of any kind; which fields there must be is up to ``type``."""

    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None


class Tool(Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Struct, omit_defaults=True):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[Tool] | None = None


class Format(Struct, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Text(Struct):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class Conversation(Lasting, kw_only=True):
    """What ``/v1/responses`` and ``/v1/responses/input_tokens`` share."""

    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None


class Create(Conversation, kw_only=True):
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


_NOT_HONOURED = ("background", "conversation", "prompt", "context_management", "moderation")
_LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")


def parse_response(fields: dict[str, Any], store: ResponseStore) -> Call:
    """A body of ``/v1/responses``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    create = decode(fields, Create)
    items = _conversation(create, store)
    keep = create.store is not False
    asked = Asked(
        settings=_settings(create),
        items=[_plain(item) for item in items] if keep else (),
        store=store,
        keep=keep,
        summary=_wants_summary(create.reasoning),
    )
    prompt, guide = _prompt(create, items), _guide(create.text)
    check_together(guide, prompt.tool_choice)
    request = GenerationRequest(
        prompts=(prompt,),
        model=create.model,
        sampling=SamplingParams(temperature=create.temperature, top_p=create.top_p),
        max_tokens=create.max_output_tokens,
        logprobs=(create.top_logprobs or 0) if _LOGPROBS in (create.include or ()) else None,
        guide=guide,
        keep_alive_s=create.keep_alive_s(),
    )
    return Call(
        request=request,
        stream=bool(create.stream),
        frames=partial(ResponseFrames, asked=asked),
        document=partial(ResponseDocument, asked=asked),
    )


def parse_count(fields: dict[str, Any], store: ResponseStore) -> GenerationRequest:
    """A body of ``/v1/responses/input_tokens``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    counted = decode(fields, Conversation)
    prompt = _prompt(counted, _conversation(counted, store))
    return GenerationRequest(prompts=(prompt,), model=counted.model)


def _refuse_not_honoured(fields: Mapping[str, Any]) -> None:
    for name in _NOT_HONOURED:
        if fields.get(name):
            raise InvalidRequest(f"{name}: not supported", param=name)


def _prompt(asked: Conversation, items: Sequence[Item]) -> ChatPrompt:
    tools, choice = _tools(asked)
    return ChatPrompt(
        messages=tuple(_messages(asked.instructions, items)),
        tools=tools,
        tool_choice=choice,
        reasoning_effort=_effort(asked.reasoning),
    )


# -- the conversation


def _conversation(asked: Conversation, store: ResponseStore) -> list[Item]:
    """Its items from the beginning, each checked."""
    earlier = _earlier(asked.previous_response_id, store)
    if isinstance(asked.input, str):
        return [*earlier, Item(type="message", role="user", content=asked.input)]
    new = [_checked(f"input[{i}]", item, store) for i, item in enumerate(asked.input or ())]
    if not new:
        raise InvalidRequest("input: required, but missing", param="input")
    return [*earlier, *new]


def _earlier(name: str | None, store: ResponseStore) -> list[Item]:
    if not name:
        return []
    kept = store.find(name)
    if kept is None:
        raise InvalidRequest(
            f"previous_response_id: there is no response {name[:200]!r} here, or not any more; "
            "send the whole conversation as input",
            param="previous_response_id",
        )
    return msgspec.convert([*kept.items(), *kept.output()], list[Item])


def _checked(param: str, item: Item, store: ResponseStore) -> Item:
    kind = item.type or ("message" if item.role else "item_reference")
    match kind:
        case "message":
            _require(param, role=item.role, content=item.content)
        case "function_call":
            _require(param, call_id=item.call_id, name=item.name, arguments=item.arguments)
        case "function_call_output":
            _require(param, call_id=item.call_id, output=item.output)
        case "reasoning":
            _text(item.summary or "", f"{param}.summary")
        case "item_reference":
            return _referred(param, item, store)
        case _:
            raise InvalidRequest(
                f"{param}: items of type {kind[:50]!r} are not supported", param=param
            )
    _text(item.content or "", f"{param}.content")
    _text(item.output or "", f"{param}.output")
    item.type = kind
    return item


def _require(param: str, **fields: Any) -> None:
    for name, value in fields.items():
        if value is None:
            raise InvalidRequest(f"{param}.{name}: required, but missing", param=f"{param}.{name}")


def _referred(param: str, item: Item, store: ResponseStore) -> Item:
    _require(param, id=item.id)
    found = store.item(item.id or "")
    if found is None:
        raise InvalidRequest(
            f"{param}.id: there is no item {item.id!r:.200} here, or not any more; "
            "send the item itself",
            param=f"{param}.id",
        )
    return msgspec.convert(found, Item)


def _text(content: str | list[Part], param: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part_text(f"{param}[{i}]", part) for i, part in enumerate(content))


def _part_text(param: str, part: Part) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(
            f"{param}: parts of type {part.type[:50]!r} are not supported here", param=param
        )
    _require(param, text=part.text)
    return part.text or ""


def _messages(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """Instructions and system messages before all else are one message: templates take one."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        if item.type == "function_call_output":
            output = _text(item.output or "", "output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif item.type == "message" and item.role != "assistant":
            _hear(messages, item)
        else:
            _speak(messages, item)
    return messages


def _hear(messages: list[dict[str, Any]], item: Item) -> None:
    text = _text(item.content or "", "content")
    if item.role == "user":
        messages.append({"role": "user", "content": text})
    elif len(messages) == 1 and messages[0]["role"] == "system":
        messages[0]["content"] += f"\n\n{text}"
    else:
        messages.append({"role": "system", "content": text})


def _speak(messages: list[dict[str, Any]], item: Item) -> None:
    """What the assistant thinks, says and calls in a row is one message."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not _goes_on(last, item):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    if item.type == "reasoning":
        last["reasoning_content"] = _text(item.content or item.summary or "", "content")
    elif item.type == "message":
        last["content"] = _text(item.content or "", "content")
    else:
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)


def _goes_on(message: Mapping[str, Any], item: Item) -> bool:
    """Whether ``item`` can be part of what the assistant has said so far."""
    if item.type == "function_call":
        return True
    said = bool(message["content"] or "tool_calls" in message)
    return not said and not (item.type == "reasoning" and "reasoning_content" in message)


def _plain(item: Item) -> dict[str, Any]:
    """As it is kept, and listed by ``/v1/responses/{id}/input_items``."""
    plain: dict[str, Any] = msgspec.to_builtins(item)
    if item.type == "message" and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        plain["content"] = [{"type": kind, "text": item.content}]
    return plain


# -- what it may answer


def _tools(asked: Conversation) -> tuple[tuple[Mapping[str, Any], ...], ToolChoice]:
    tools = asked.tools or []
    mappings = tool_mappings(_declared(f"tools[{i}]", tool) for i, tool in enumerate(tools))
    names = [tool.name or "" for tool in tools]
    choice, parallel = asked.tool_choice, asked.parallel_tool_calls is not False
    if choice == "none":
        return (), ToolChoice(parallel=parallel)
    if isinstance(choice, Choice) and choice.type == "allowed_tools":
        allowed = [tool.name for tool in choice.tools or ()]
        mappings = tuple(one for one in mappings if one["function"]["name"] in allowed)
        choice = choice.mode
    required = choice not in (None, "auto")
    if required and not mappings:
        raise InvalidRequest("tool_choice: there are no tools to call", param="tool_choice")
    name = _chosen(choice, names) if isinstance(choice, Choice) else None
    return mappings, ToolChoice(required=required, name=name, parallel=parallel)


def _declared(param: str, tool: Tool) -> DeclaredTool:
    if tool.type != "function":
        raise InvalidRequest(
            f"{param}: tools of type {tool.type[:50]!r} are not supported, only functions",
            param=param,
        )
    _require(param, name=tool.name)
    return DeclaredTool(
        name=tool.name or "",
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
        param=param,
        parameters_param=f"{param}.parameters",
    )


def _chosen(choice: Choice, names: Iterable[str]) -> str:
    if choice.type != "function":
        raise InvalidRequest(
            f"tool_choice: {choice.type[:50]!r} is not supported", param="tool_choice"
        )
    if choice.name is None or choice.name not in names:
        raise InvalidRequest(
            f"tool_choice.name: {(choice.name or '')[:200]!r} is none of the tools",
            param="tool_choice.name",
        )
    return choice.name


def _effort(reasoning: Reasoning | None) -> str | None:
    if reasoning is None or reasoning.effort is None:
        return None
    return "high" if reasoning.effort in ("xhigh", "max") else reasoning.effort


def _wants_summary(reasoning: Reasoning | None) -> bool:
    return reasoning is not None and bool(reasoning.summary or reasoning.generate_summary)


def _guide(text: Text | None) -> Guide | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    schema: Any = {"type": "object"}
    if text.format.type == "json_schema":
        _require("text.format", schema=text.format.schema)
        schema = text.format.schema
    return Guide("json_schema", msgspec.json.encode(schema).decode(), "text.format")


# -- what the answer repeats


def _settings(create: Create) -> dict[str, Any]:
    """``truncation`` as it is: nothing is ever cut off a conversation."""
    reasoning = create.reasoning or Reasoning()
    return {
        "instructions": create.instructions,
        "max_output_tokens": create.max_output_tokens,
        "max_tool_calls": None,
        "metadata": create.metadata or {},
        "parallel_tool_calls": create.parallel_tool_calls is not False,
        "previous_response_id": create.previous_response_id,
        "prompt_cache_key": create.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": create.safety_identifier,
        "service_tier": "default",
        "store": create.store is not False,
        "temperature": create.temperature,
        "text": {"format": (create.text and create.text.format) or {"type": "text"}},
        "tool_choice": create.tool_choice or "auto",
        "tools": create.tools or [],
        "top_logprobs": create.top_logprobs or 0,
        "top_p": create.top_p,
        "truncation": "disabled",
        "user": create.user,
    }
