"""Anthropic's answers: events to named server-sent events, or to one message.

What one delta of a block does not share with the next is its text, so the rest is encoded once a
block.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hotswap.api.answer_blocks import Block, Blocks, text_of
from hotswap.api.dialect import Stamp
from hotswap.api.errors import anthropic_envelope
from hotswap.api.sse import comment
from hotswap.contracts.answers import Finished, GenerationEvent
from hotswap.errors import HotswapError

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
SIGNATURE = "unsigned"
"""Of thinking. Clients keep it and send it back, some only where there is one; nobody checks it."""
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
_encode = msgspec.json.encode


class MessageFrames:
    """Events of ``/v1/messages``. ``thinking`` False: a block of it begins and ends, empty."""

    def __init__(self, stamp: Stamp, model: str, *, thinking: bool = True) -> None:
        self._stamp = stamp
        self._model = model
        self._thinking = thinking
        self._blocks = Blocks()
        self._open: Block | None = None
        self._before_text = b""
        """Of a delta of the open block."""

    def opening(self) -> bytes:
        message = _message(self._stamp, self._model, [], None)
        return _event("message_start", {"message": message})

    def event(self, event: GenerationEvent) -> bytes:
        block = self._blocks.add(event)
        if block is None:
            return b""
        start = b"" if block is self._open else self._stop() + self._start(block)
        text = text_of(event)
        if not text or (block.kind == "reasoning" and not self._thinking):
            return start
        return start + self._before_text + _encode(text) + b"}}\n\n"

    def closing(self, prompt_tokens: int) -> bytes:
        finished = self._blocks.finished
        ending = {"delta": _ending(finished), "usage": _usage(prompt_tokens, finished)}
        return self._stop() + _event("message_delta", ending) + _event("message_stop", {})

    def failure(self, error: HotswapError) -> bytes:
        return b"event: error\ndata: " + _encode(anthropic_envelope(error)) + b"\n\n"

    def loading(self, text: str) -> bytes:
        """A sign of life: no message has been started that could show it."""
        return self.alive(text)

    def alive(self, text: str) -> bytes:
        return comment(text) + PING

    def _start(self, block: Block) -> bytes:
        self._open = block
        kind, key = _DELTAS[block.kind]
        self._before_text = (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
        ) % (block.index, kind.encode(), key.encode())
        empty = Block(block.kind, block.index, block.call_id, block.name)
        fields = {"index": block.index, "content_block": _content(empty, signature="")}
        return _event("content_block_start", fields)

    def _stop(self) -> bytes:
        block = self._open
        if block is None:
            return b""
        stop = _event("content_block_stop", {"index": block.index})
        if block.kind != "reasoning":
            return stop
        delta = {"type": "signature_delta", "signature": SIGNATURE}
        return _event("content_block_delta", {"index": block.index, "delta": delta}) + stop


class MessageDocument:
    """The answer of ``/v1/messages`` in one piece."""

    def __init__(self, stamp: Stamp, *, thinking: bool = True) -> None:
        self._stamp = stamp
        self._thinking = thinking
        self._blocks = Blocks()

    def add(self, event: GenerationEvent) -> None:
        self._blocks.add(event)

    def body(self, model: str, prompt_tokens: int) -> bytes:
        """A call that the answer ended within is left out: it is not to be made."""
        content = [
            _content(block, signature=SIGNATURE, thinking=self._thinking)
            for block in self._blocks.all
            if block.kind != "call" or block.arguments is not None
        ]
        finished = self._blocks.finished
        message = _message(self._stamp, model, content, finished)
        return _encode({**message, "usage": _usage(prompt_tokens, finished)})


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode({"type": name, **fields}) + b"\n\n"


def _content(block: Block, *, signature: str, thinking: bool = True) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": block.text}
        case "reasoning":
            text = block.text if thinking else ""
            return {"type": "thinking", "thinking": text, "signature": signature}
        case "call":
            arguments = msgspec.Raw((block.arguments or "{}").encode())
            return {
                "type": "tool_use",
                "id": block.call_id,
                "name": block.name,
                "input": arguments,
            }


def _message(
    stamp: Stamp, model: str, content: list[dict[str, Any]], finished: Finished | None
) -> dict[str, Any]:
    return {
        "id": f"msg_{stamp.key}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **_ending(finished),
        "usage": _usage(stamp.prompt_tokens, finished),
    }


def _ending(finished: Finished | None) -> dict[str, Any]:
    sequence = finished.stop_sequence if finished else None
    return {"stop_reason": _stop_reason(finished), "stop_sequence": sequence}


def _stop_reason(finished: Finished | None) -> str | None:
    if finished is None:
        return None
    if finished.reason == "stop":
        return "end_turn" if finished.stop_sequence is None else "stop_sequence"
    return {"length": "max_tokens", "tool_calls": "tool_use"}[finished.reason]


def _usage(prompt_tokens: int, finished: Finished | None) -> dict[str, Any]:
    """Before the end nobody knows what of the prompt was remembered: all of it is told as new."""
    cached_tokens = finished.cached_tokens if finished else 0
    usage: dict[str, Any] = {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": finished.completion_tokens if finished else 0,
    }
    if finished and finished.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": finished.reasoning_tokens}
    return usage
