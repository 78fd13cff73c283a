"""A chat's messages: as OpenAI's clients send them, and as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from hotswap.api.fields import NO_TEXT
from hotswap.errors import InvalidRequest


class TextPart(Struct, tag_field="type", tag="text"):
    text: str


class InputTextPart(TextPart, tag="input_text"):
    """As /v1/responses writes it; some clients mix the two."""


class OutputTextPart(TextPart, tag="output_text"):
    pass


class RefusalPart(Struct, tag_field="type", tag="refusal"):
    refusal: str


Part = TextPart | InputTextPart | OutputTextPart | RefusalPart


class CalledFunction(Struct):
    name: str
    arguments: str | dict[str, Any] | None = None
    """JSON text; some clients send the object itself."""


class MessageToolCall(Struct):
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class SystemMessage(Struct, tag_field="role", tag="system"):
    content: str | list[Part]
    name: str | None = None


class DeveloperMessage(SystemMessage, tag="developer"):
    pass


class UserMessage(SystemMessage, tag="user"):
    pass


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """What an earlier answer was preceded by; newer clients call it ``reasoning``."""
    reasoning: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class ToolMessage(Struct, tag_field="role", tag="tool"):
    tool_call_id: str
    content: str | list[Part] | None = None
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage

_PARTS = ("text", "input_text", "output_text", "refusal")
_ROLES: Mapping[type, str] = {
    SystemMessage: "system",
    DeveloperMessage: "system",
    UserMessage: "user",
    AssistantMessage: "assistant",
    ToolMessage: "tool",
}


def refuse_other_content(messages: Any) -> None:
    """Say what is wrong with images, sound and old ways of calling, in words that help.

    Args:
        messages: as they came, of any shape.

    Raises:
        InvalidRequest: names the message and what of it cannot be read.
    """
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        for name in ("function_call", "audio"):
            if message.get(name) is not None:
                param = f"messages[{i}].{name}"
                raise InvalidRequest(f"{param}: not supported", param=param)
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in _PARTS:
                param = f"messages[{i}].content[{j}]"
                why = (
                    "are not supported: this model reads text only"
                    if kind in NO_TEXT
                    else f"are not known; there are {', '.join(map(repr, _PARTS))}"
                )
                raise InvalidRequest(f"{param}: parts of type {kind[:50]!r} {why}", param=param)


def message_mappings(messages: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
    """As chat templates take them: content is text, ``developer`` is ``system``."""
    return tuple(map(_mapping, messages))


def _mapping(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {
        "role": _ROLES[type(message)],
        "content": content_text(message.content),
    }
    if message.name is not None:
        written["name"] = message.name
    if isinstance(message, ToolMessage):
        written["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        if message.content is None:
            written["content"] = message.refusal or ""
        if reasoning := message.reasoning_content or message.reasoning:
            written["reasoning_content"] = reasoning
        if message.tool_calls:
            written["tool_calls"] = list(map(_call, message.tool_calls))
    return written


def content_text(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    """What a message says, its parts put together."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def _call(call: MessageToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    named = {"id": call.id} if call.id is not None else {}
    return {**named, "type": "function", "function": function}


def _arguments(given: str | dict[str, Any] | None) -> str:
    """Text that is no JSON stays as it is: an answer that was cut off would otherwise end the
    conversation."""
    if isinstance(given, str):
        return given if given.strip() else "{}"
    return json.dumps(given or {}, ensure_ascii=False)
