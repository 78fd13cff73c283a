"""The answers of OpenAI's Responses: events to numbered server-sent events, or to one object.

What one delta of an item does not share with the next is its text and its number, so the rest is
encoded once an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hotswap.api.answer_blocks import Block, Blocks, text_of
from hotswap.api.dialect import Stamp
from hotswap.api.errors import envelope
from hotswap.api.logprobs import token_logprobs
from hotswap.api.responses_store import Kept, ResponseStore
from hotswap.api.sse import comment
from hotswap.contracts.answers import GenerationEvent, TextDelta
from hotswap.errors import HotswapError, Overloaded

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an answer must know of its request."""

    settings: Mapping[str, Any]
    """Fields of the request that the answer repeats."""
    items: Sequence[Mapping[str, Any]]
    """The conversation that is answered, from its beginning."""
    store: ResponseStore
    keep: bool
    summary: bool
    """Reasoning is shown as its own summary: the client looks for it there."""


class _Answer:
    """What both forms of an answer share."""

    def __init__(self, stamp: Stamp, model: str, asked: Asked) -> None:
        self._stamp = stamp
        self.model = model
        self._asked = asked
        self._suffix = asked.store.suffix(stamp.key)
        self.blocks = Blocks()

    def response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self._suffix}",
            "object": "response",
            "created_at": self._stamp.created_unix,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "usage": None,
            **self._asked.settings,
            **fields,
        }

    def whole(self, prompt_tokens: int) -> bytes:
        """The finished response, which is kept if it is to be."""
        fields: dict[str, Any] = {
            "output": [self.item(block, self.status(block)) for block in self.blocks.all],
            "usage": self._usage(prompt_tokens),
        }
        if self.is_cut:
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        response = self.response("incomplete" if self.is_cut else "completed", **fields)
        body = _encode(response)
        if self._asked.keep:
            self._asked.store.keep(response["id"], Kept(_encode(self._inputs()), body))
        return body

    @property
    def is_cut(self) -> bool:
        finished = self.blocks.finished
        return finished is not None and finished.reason == "length"

    def status(self, block: Block) -> str:
        return "incomplete" if self.is_cut and block is self.blocks.all[-1] else "completed"

    def item_id(self, block: Block) -> str:
        prefix = {"text": "msg", "reasoning": "rs", "call": "fc"}[block.kind]
        return f"{prefix}_{self._suffix}_{block.index}"

    def item(self, block: Block, status: str, *, empty: bool = False) -> dict[str, Any]:
        """``empty``: as it begins."""
        item: dict[str, Any] = {"id": self.item_id(block), "status": status}
        if block.kind == "call":
            arguments = "" if empty else _arguments(block, status)
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return {**item, "type": "function_call", **call}
        parts = [] if empty else [self.part(block)]
        if block.kind == "text":
            return {**item, "type": "message", "role": "assistant", "content": parts}
        if self._asked.summary:
            return {**item, "type": "reasoning", "summary": parts}
        return {**item, "type": "reasoning", "summary": [], "content": parts}

    def part(self, block: Block, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else block.text
        if block.kind == "reasoning":
            kind = "summary_text" if self._asked.summary else "reasoning_text"
            return {"type": kind, "text": text}
        logprobs = [] if empty else token_logprobs(block.logprobs)
        return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}

    def _inputs(self) -> list[dict[str, Any]]:
        return [
            {"id": f"in_{self._suffix}_{i}", **item} for i, item in enumerate(self._asked.items)
        ]

    def _usage(self, prompt_tokens: int) -> dict[str, Any]:
        finished = self.blocks.finished
        output_tokens = finished.completion_tokens if finished else 0
        reasoning_tokens = finished.reasoning_tokens if finished else 0
        cached_tokens = finished.cached_tokens if finished else 0
        return {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": prompt_tokens + output_tokens,
        }


class ResponseFrames:
    """Events of ``/v1/responses``."""

    def __init__(self, stamp: Stamp, model: str, *, asked: Asked) -> None:
        self._answer = _Answer(stamp, model, asked)
        self._summary = asked.summary
        self._sent = 0
        self._open: Block | None = None
        self._before_text = b""
        """Of a delta of the open block."""

    def opening(self) -> bytes:
        response = msgspec.Raw(_encode(self._answer.response("in_progress")))
        names = ("response.created", "response.in_progress")
        return b"".join([self._event(name, {"response": response}) for name in names])

    def event(self, event: GenerationEvent) -> bytes:
        block = self._answer.blocks.add(event)
        if block is None:
            return b""
        start = b"" if block is self._open else self._stop() + self._start(block)
        text = text_of(event)
        if not text:
            return start
        if not isinstance(event, TextDelta):
            return start + self._delta(text, b"")
        logprobs = _encode(token_logprobs(event.logprobs)) if event.logprobs else b"[]"
        return start + self._delta(text, b',"logprobs":' + logprobs)

    def closing(self, prompt_tokens: int) -> bytes:
        stop = self._stop()
        response = self._answer.whole(prompt_tokens)
        name = "response.incomplete" if self._answer.is_cut else "response.completed"
        return stop + self._event(name, {"response": msgspec.Raw(response)})

    def failure(self, error: HotswapError) -> bytes:
        """A failed response, if one had begun, and an error, as it is documented and as the
        ``openai`` package takes for one."""
        failed = b""
        if self._sent:
            code = "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
            stated = {"code": code, "message": error.message}
            response = self._answer.response("failed", error=stated)
            failed = self._event("response.failed", {"response": response})
        body = envelope(error)
        flat = {key: body["error"][key] for key in ("code", "message", "param")}
        return failed + self._event("error", {**flat, **body})

    def loading(self, text: str) -> bytes:
        """A comment: nothing has been created yet that could show it."""
        return self.alive(text)

    def alive(self, text: str) -> bytes:
        return comment(text)

    def _start(self, block: Block) -> bytes:
        self._open = block
        item = self._answer.item(block, "in_progress", empty=True)
        started = self._event(
            "response.output_item.added", {"output_index": block.index, "item": item}
        )
        if block.kind != "call":
            part = self._answer.part(block, empty=True)
            name = f"response.{self._part_name(block)}.added"
            started += self._event(name, {**self._place(block), "part": part})
        name = f"response.{self._text_name(block)}.delta"
        self._before_text = _before(name, self._place(block)) + b',"delta":'
        return started

    def _stop(self) -> bytes:
        block = self._open
        if block is None:
            return b""
        status = self._answer.status(block)
        place = self._place(block)
        name = f"response.{self._text_name(block)}.done"
        if block.kind == "call":
            told = {"name": block.name, "arguments": _arguments(block, status)}
            stopped = self._event(name, {**place, **told})
        else:
            part = self._answer.part(block)
            told = {key: part[key] for key in ("text", "logprobs") if key in part}
            stopped = self._event(name, {**place, **told})
            name = f"response.{self._part_name(block)}.done"
            stopped += self._event(name, {**place, "part": part})
        done = {"output_index": block.index, "item": self._answer.item(block, status)}
        return stopped + self._event("response.output_item.done", done)

    def _delta(self, text: str, rest: bytes) -> bytes:
        return b"".join((self._before_text, _encode(text), rest, self._end()))

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        return _before(name, fields) + self._end()

    def _end(self) -> bytes:
        number = self._sent
        self._sent += 1
        return b',"sequence_number":%d}\n\n' % number

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._answer.item_id(block), "output_index": block.index}
        if block.kind == "call":
            return place
        return {**place, self._index_name(block): 0}

    def _index_name(self, block: Block) -> str:
        return "summary_index" if self._is_summary(block) else "content_index"

    def _part_name(self, block: Block) -> str:
        return "reasoning_summary_part" if self._is_summary(block) else "content_part"

    def _text_name(self, block: Block) -> str:
        if block.kind == "reasoning":
            return "reasoning_summary_text" if self._summary else "reasoning_text"
        return {"text": "output_text", "call": "function_call_arguments"}[block.kind]

    def _is_summary(self, block: Block) -> bool:
        return self._summary and block.kind == "reasoning"


class ResponseDocument:
    """The answer of ``/v1/responses`` in one piece."""

    def __init__(self, stamp: Stamp, *, asked: Asked) -> None:
        self._answer = _Answer(stamp, "", asked)

    def add(self, event: GenerationEvent) -> None:
        self._answer.blocks.add(event)

    def body(self, model: str, prompt_tokens: int) -> bytes:
        self._answer.model = model
        return self._answer.whole(prompt_tokens)


def _before(name: str, fields: dict[str, Any]) -> bytes:
    """An event without its number and its end."""
    return b"event: " + name.encode() + b"\ndata: " + _encode({"type": name, **fields})[:-1]


def _arguments(block: Block, status: str) -> str:
    return block.text if status == "incomplete" else block.text or "{}"
