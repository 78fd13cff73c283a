"""Ollama's answers: events to lines of JSON, or to one JSON document.

Every line has all of an answer's head, so that is encoded once. An answer ends with a line that
says ``done``, why, and how long everything took, in nanoseconds.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from hotswap.api.dialect import Stamp
from hotswap.api.errors import ollama_envelope
from hotswap.api.logprobs import token_logprobs
from hotswap.contracts.answers import (
    Embeddings,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.errors import HotswapError

NDJSON = "application/x-ndjson"
_encode = msgspec.json.encode


def timestamp(unix: float) -> str:
    """A moment as RFC 3339 writes it."""
    return datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")


def _durations(stamp: Stamp, prompt_tokens: int, finished: Finished | None) -> dict[str, int]:
    """How long an answer took that has ended. Where all of it came at once, nobody knows how much
    of that was for the prompt: both parts are then told as the whole."""
    admitted = stamp.asked if stamp.admitted is None else stamp.admitted
    first = admitted if stamp.first is None else stamp.first
    last = first if stamp.last is None else stamp.last
    return {
        "total_duration": _ns(last - stamp.asked),
        "load_duration": _ns(admitted - stamp.asked),
        "prompt_eval_count": prompt_tokens,
        "prompt_eval_duration": _ns(first - admitted),
        "eval_count": finished.completion_tokens if finished else 0,
        "eval_duration": _ns(last - (first if first < last else admitted)),
    }


def _ns(seconds: float) -> int:
    """At least 1: clients divide by it."""
    return max(1, int(seconds * 1e9))


class ToolCalls:
    """Calls in the making. Their arguments are objects here, so a call is told when it is whole."""

    def __init__(self) -> None:
        self._number = -1
        """Of the call that is being written."""
        self._id = self._name = ""
        self._pieces: list[str] = []

    def add(self, delta: ToolCallDelta) -> list[dict[str, Any]]:
        """What has become whole by a delta."""
        whole = self.end() if delta.call != self._number else []
        if delta.name is not None:
            self._number, self._id, self._name = delta.call, delta.id or "", delta.name
        self._pieces.append(delta.arguments)
        return whole

    def end(self) -> list[dict[str, Any]]:
        """The last call. One that was cut short, as the answer's ``done_reason`` then says, is no
        object and cannot be told."""
        text, self._pieces = "".join(self._pieces), []
        if not self._name:
            return []
        name, self._name = self._name, ""
        try:
            arguments = json.loads(text or "{}")
        except ValueError:
            return []
        function = {"index": self._number, "name": name, "arguments": arguments}
        return [{"id": self._id, "function": function}]


class _Frames(ABC):
    """What the two routes' streams share. A line is head, content, end."""

    def __init__(self, stamp: Stamp, model: str) -> None:
        self._head = _encode(_head(stamp, model))[:-1] + b","
        self._stamp = stamp
        self._calls = ToolCalls()
        self._finished: Finished | None = None

    def opening(self) -> bytes:
        return b""

    def event(self, event: GenerationEvent) -> bytes:
        if isinstance(event, ToolCallDelta):
            return self._told(self._calls.add(event))
        calls = self._told(self._calls.end())
        if isinstance(event, Finished):
            self._finished = event
            return calls
        thinks = isinstance(event, ReasoningDelta)
        content = self._thinking(event.text) if thinks else self._text(event.text)
        return calls + self._line(content, event.logprobs)

    def closing(self, prompt_tokens: int) -> bytes:
        end = _end(self._finished) | _durations(self._stamp, prompt_tokens, self._finished)
        return self._head + self._text("") + b"," + _encode(end)[1:] + b"\n"

    def failure(self, error: HotswapError) -> bytes:
        return _encode(ollama_envelope(error)) + b"\n"

    def loading(self, text: str) -> bytes:
        return self._line(self._thinking(text))

    def alive(self, text: str) -> bytes:
        """JSON has no comments: a line that adds nothing to the answer."""
        return self._line(self._text("") + b',"status":' + _encode(text))

    @abstractmethod
    def _text(self, text: str) -> bytes:
        """As a key and its value."""

    @abstractmethod
    def _thinking(self, text: str) -> bytes: ...

    @abstractmethod
    def _told(self, calls: Sequence[dict[str, Any]]) -> bytes:
        """Lines about whole calls."""

    def _line(self, content: bytes, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        told = b',"logprobs":' + _encode(token_logprobs(logprobs)) if logprobs else b""
        return b"".join((self._head, content, told, b',"done":false}\n'))


class ChatFrames(_Frames):
    """Lines of ``/api/chat``."""

    def _text(self, text: str) -> bytes:
        return b'"message":{"role":"assistant","content":' + _encode(text) + b"}"

    def _thinking(self, text: str) -> bytes:
        return b'"message":{"role":"assistant","content":"","thinking":' + _encode(text) + b"}"

    def _told(self, calls: Sequence[dict[str, Any]]) -> bytes:
        if not calls:
            return b""
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        return self._line(b'"message":' + _encode(message))


class GenerateFrames(_Frames):
    """Lines of ``/api/generate``."""

    def _text(self, text: str) -> bytes:
        return b'"response":' + _encode(text)

    def _thinking(self, text: str) -> bytes:
        return b'"response":"","thinking":' + _encode(text)

    def _told(self, calls: Sequence[dict[str, Any]]) -> bytes:
        return self._line(b'"response":"","tool_calls":' + _encode(calls)) if calls else b""


class _Document(ABC):
    """An answer in one piece, growing."""

    def __init__(self, stamp: Stamp) -> None:
        self._stamp = stamp
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._writing = ToolCalls()
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[TokenLogprob] = []
        self._finished: Finished | None = None

    def add(self, event: GenerationEvent) -> None:
        match event:
            case TextDelta():
                self._texts.append(event.text)
                self._logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self._thoughts.append(event.text)
                self._logprobs.extend(event.logprobs)
            case ToolCallDelta():
                self._calls.extend(self._writing.add(event))
            case Finished():
                self._finished = event
                self._calls.extend(self._writing.end())

    def body(self, model: str, prompt_tokens: int) -> bytes:
        answer = _head(self._stamp, model) | self._content()
        if self._logprobs:
            answer["logprobs"] = token_logprobs(self._logprobs)
        durations = _durations(self._stamp, prompt_tokens, self._finished)
        return _encode(answer | _end(self._finished) | durations)

    @abstractmethod
    def _content(self) -> dict[str, Any]: ...

    def _thinking(self) -> dict[str, str]:
        return {"thinking": "".join(self._thoughts)} if self._thoughts else {}


class ChatDocument(_Document):
    """The answer of ``/api/chat`` in one piece."""

    def _content(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        message |= self._thinking()
        if self._calls:
            message["tool_calls"] = self._calls
        return {"message": message}


class GenerateDocument(_Document):
    """The answer of ``/api/generate`` in one piece."""

    def _content(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"response": "".join(self._texts), **self._thinking()}
        return answer | ({"tool_calls": self._calls} if self._calls else {})


def chat_end(stamp: Stamp, model: str, reason: str) -> bytes:
    """The answer to a request without messages."""
    message = {"role": "assistant", "content": ""}
    return _bare_end(stamp, model, {"message": message}, reason)


def generate_end(stamp: Stamp, model: str, reason: str) -> bytes:
    """The answer to a request without a prompt."""
    return _bare_end(stamp, model, {"response": ""}, reason)


def embed_body(stamp: Stamp, embeddings: Embeddings) -> bytes:
    """The answer of ``/api/embed``."""
    return _encode(
        {
            "model": embeddings.model,
            "embeddings": [vector.tolist() for vector in embeddings.vectors],
            "total_duration": _ns(time.monotonic() - stamp.asked),
            "prompt_eval_count": embeddings.prompt_tokens,
        }
    )


def embeddings_body(_: Stamp, embeddings: Embeddings) -> bytes:
    """The answer of ``/api/embeddings``: the vector of the one prompt, or none."""
    vectors = embeddings.vectors
    return _encode({"embedding": vectors[0].tolist() if vectors else []})


def _bare_end(stamp: Stamp, model: str, content: Mapping[str, Any], reason: str) -> bytes:
    return _encode({**_head(stamp, model), **content, "done": True, "done_reason": reason}) + b"\n"


def _head(stamp: Stamp, model: str) -> dict[str, Any]:
    return {"model": model, "created_at": timestamp(stamp.created_unix)}


def _end(finished: Finished | None) -> dict[str, Any]:
    cut = finished is not None and finished.reason == "length"
    return {"done": True, "done_reason": "length" if cut else "stop"}
