"""Messages as Ollama's clients send them, and as chat templates take them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.errors import InvalidRequest

NoImages = Annotated[list[Any], Meta(extra_json_schema={"maxItems": 0})]
"""Only described by its type: they are refused in words that help."""


class OllamaCalledFunction(Struct):
    name: str
    arguments: dict[str, Any] | None = None


class OllamaToolCall(Struct):
    function: OllamaCalledFunction
    id: str | None = None


class OllamaMessage(Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: NoImages | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def continues(last: OllamaMessage) -> bool:
    """Whether the answer goes on where the last message ends."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls


def message_mappings(messages: Sequence[OllamaMessage]) -> tuple[dict[str, Any], ...]:
    return tuple(map(_Translation().message, range(len(messages)), messages))


class _Translation:
    """Messages as OpenAI has them. Ollama's calls need no ids: who answers one says its tool's
    name, or comes in the order of the calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._unanswered: deque[tuple[str, str]] = deque()
        """Id and tool."""

    def message(self, position: int, message: OllamaMessage) -> dict[str, Any]:
        if message.images:
            param = f"messages[{position}].images"
            raise InvalidRequest(f"{param}: not supported by this model", param=param)
        translated: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            translated["reasoning_content"] = message.thinking
        if message.tool_calls:
            translated["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.role == "tool":
            translated |= self._answered(message)
        return translated

    def _call(self, call: OllamaToolCall) -> dict[str, Any]:
        id = call.id or f"call_{self._calls}"
        self._calls += 1
        self._unanswered.append((id, call.function.name))
        arguments = msgspec.json.encode(call.function.arguments or {}).decode()
        function = {"name": call.function.name, "arguments": arguments}
        return {"id": id, "type": "function", "function": function}

    def _answered(self, message: OllamaMessage) -> dict[str, str]:
        """Which call a tool's message answers, as far as that can be told."""
        for known in self._unanswered:
            id, name = known
            wanted = message.tool_call_id or id, message.tool_name or name
            if wanted == known:
                self._unanswered.remove(known)
                return {"tool_call_id": id, "name": name}
        told = {"tool_call_id": message.tool_call_id, "name": message.tool_name}
        return {key: value for key, value in told.items() if value}
