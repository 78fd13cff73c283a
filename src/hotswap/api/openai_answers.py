"""OpenAI's answers: events to server-sent events, or to one JSON document.

All parts of a stream but the new text are the same, so they are encoded once; a token costs one
escape and three additions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hotswap.api.dialect import Stamp
from hotswap.api.errors import envelope
from hotswap.api.logprobs import token_logprobs, written
from hotswap.api.sse import comment
from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.errors import HotswapError

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


class _Frames(ABC):
    """What the two routes' streams share. A chunk is head, choice, tail."""

    _text_key: bytes
    """What a choice writes before its text, after its index."""
    _text_end: bytes
    _no_text: bytes
    """The same with nothing in it."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._after_text = self._text_end + _rest() + self._tail
        self._before_text: dict[int, bytes] = {}
        """By choice."""
        self._include_usage = include_usage
        self._finished: list[Finished] = []

    def opening(self) -> bytes:
        return b""

    def event(self, event: GenerationEvent) -> bytes:
        if isinstance(event, Finished):
            self._finished.append(event)
            return self._chunk(event.index, self._no_text, _rest(reason=_encode(event.reason)))
        if not isinstance(event, TextDelta):
            return self._aside(event)
        text, logprobs = _encode(event.text), self._logprobs(event)
        if logprobs is not None:
            content = self._text_key + text + self._text_end
            return self._chunk(event.index, content, _rest(logprobs=_encode(logprobs)))
        before = self._before_text.get(event.index)
        if before is None:
            before = self._head + _index(event.index) + self._text_key
            self._before_text[event.index] = before
        return before + text + self._after_text

    def closing(self, prompt_tokens: int) -> bytes:
        if not self._include_usage:
            return DONE
        usage = _encode(_usage(prompt_tokens, self._finished))
        return b"".join((self._head, b'],"usage":', usage, b"}\n\n", DONE))

    def failure(self, error: HotswapError) -> bytes:
        return b"data: " + _encode(envelope(error)) + b"\n\n" + DONE

    def loading(self, text: str) -> bytes:
        """A comment: text completions have no field beside the text."""
        return self.alive(text)

    def alive(self, text: str) -> bytes:
        return comment(text)

    @abstractmethod
    def _logprobs(self, delta: TextDelta | ReasoningDelta) -> dict[str, Any] | None:
        """As the route writes them."""

    @abstractmethod
    def _aside(self, event: ReasoningDelta | ToolCallDelta) -> bytes:
        """What is no text of the answer."""

    def _chunk(self, index: int, content: bytes, rest: bytes) -> bytes:
        return b"".join((self._head, _index(index), content, rest, self._tail))


def _index(index: int) -> bytes:
    return b'{"index":%d,' % index


def _rest(logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
    """A choice after its content."""
    return b',"logprobs":' + logprobs + b',"finish_reason":' + reason + b"}"


class ChatFrames(_Frames):
    """Chunks of ``/v1/chat/completions``."""

    _text_key = b'"delta":{"content":'
    _text_end = b"}"
    _no_text = b'"delta":{}'

    def __init__(self, stamp: Stamp, model: str, *, choices: int, include_usage: bool) -> None:
        head = _head(stamp, model, "chatcmpl", "chat.completion.chunk")
        super().__init__(head, include_usage=include_usage)
        self._choices = choices

    def opening(self) -> bytes:
        role = b'"delta":{"role":"assistant","content":""}'
        return b"".join(self._chunk(index, role, _rest()) for index in range(self._choices))

    def loading(self, text: str) -> bytes:
        return self._chunk(0, b'"delta":{"reasoning_content":' + _encode(text) + b"}", _rest())

    def _logprobs(self, delta: TextDelta | ReasoningDelta) -> dict[str, Any] | None:
        return _chat_logprobs(delta.logprobs) if delta.logprobs else None

    def _aside(self, event: ReasoningDelta | ToolCallDelta) -> bytes:
        if isinstance(event, ReasoningDelta):
            content = b'"delta":{"reasoning_content":' + _encode(event.text) + b"}"
            rest = _rest(logprobs=_encode(self._logprobs(event)))
            return self._chunk(event.index, content, rest)
        call: dict[str, Any] = {"index": event.call}
        function = {"arguments": event.arguments}
        if event.name is not None:
            call |= {"id": event.id, "type": "function"}
            function = {"name": event.name, **function}
        delta = {"tool_calls": [{**call, "function": function}]}
        return self._chunk(event.index, b'"delta":' + _encode(delta), _rest())


class CompletionFrames(_Frames):
    """Chunks of ``/v1/completions``."""

    _text_key = b'"text":'
    _text_end = b""
    _no_text = b'"text":""'

    def __init__(self, stamp: Stamp, model: str, *, include_usage: bool) -> None:
        super().__init__(
            _head(stamp, model, "cmpl", "text_completion"), include_usage=include_usage
        )
        self._lengths: defaultdict[int, int] = defaultdict(int)

    def _logprobs(self, delta: TextDelta | ReasoningDelta) -> dict[str, Any] | None:
        offset = self._lengths[delta.index]
        self._lengths[delta.index] += len(delta.text)
        return _completion_logprobs(delta.logprobs, offset) if delta.logprobs else None

    def _aside(self, event: ReasoningDelta | ToolCallDelta) -> bytes:
        raise AssertionError(f"a text completion has no {type(event).__name__}")


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """JSON text of an object."""
        return "".join(self.pieces)


class Choice:
    """One choice of an answer in one piece, growing."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasonings: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.finished: Finished | None = None

    def add(self, event: GenerationEvent) -> None:
        match event:
            case TextDelta():
                self.texts.append(event.text)
                self.logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self.reasonings.append(event.text)
                self.logprobs.extend(event.logprobs)
            case ToolCallDelta():
                if event.name is not None:
                    self.calls.append(ToolCall(event.id or "", event.name))
                self.calls[event.call].pieces.append(event.arguments)
            case Finished():
                self.finished = event

    @property
    def reasoning(self) -> str:
        return "".join(self.reasonings)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reason(self) -> str | None:
        return self.finished.reason if self.finished else None


class _Document:
    def __init__(self, stamp: Stamp, *, choices: int) -> None:
        self._stamp = stamp
        self._choices = [Choice() for _ in range(choices)]

    def add(self, event: GenerationEvent) -> None:
        self._choices[event.index].add(event)

    def _whole(self, head: dict[str, Any], choices: list[Any], prompt_tokens: int) -> bytes:
        finished = [choice.finished for choice in self._choices if choice.finished]
        return _encode({**head, "choices": choices, "usage": _usage(prompt_tokens, finished)})


class ChatDocument(_Document):
    """The answer of ``/v1/chat/completions`` in one piece."""

    def body(self, model: str, prompt_tokens: int) -> bytes:
        choices = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": _chat_logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        head = _head(self._stamp, model, "chatcmpl", "chat.completion")
        return self._whole(head, choices, prompt_tokens)


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasonings:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.calls
        ]
    return message


class CompletionDocument(_Document):
    """The answer of ``/v1/completions`` in one piece."""

    def body(self, model: str, prompt_tokens: int) -> bytes:
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": _completion_logprobs(choice.logprobs, 0) if choice.logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        head = _head(self._stamp, model, "cmpl", "text_completion")
        return self._whole(head, choices, prompt_tokens)


def _head(stamp: Stamp, model: str, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{stamp.key}",
        "object": kind,
        "created": stamp.created_unix,
        "model": model,
    }


def _usage(prompt_tokens: int, finished: Sequence[Finished]) -> dict[str, Any]:
    completion_tokens = sum(event.completion_tokens for event in finished)
    reasoning_tokens = sum(event.reasoning_tokens for event in finished)
    cached_tokens = sum(event.cached_tokens for event in finished)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def _chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    return {"content": token_logprobs(tokens), "refusal": None}


def _completion_logprobs(tokens: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """``offset`` is where in the choice's text, in characters, the first token starts. Of a token
    that nothing came before there is no log-probability."""
    columns: dict[str, list[Any]] = {
        "text_offset": [],
        "token_logprobs": [],
        "tokens": [],
        "top_logprobs": [],
    }
    for token in tokens:
        columns["text_offset"].append(offset)
        columns["token_logprobs"].append(written(token.logprob))
        columns["tokens"].append(token.text)
        likely = {one.text: written(one.logprob) for one in (*token.top, token)}
        columns["top_logprobs"].append(None if token.logprob is None else likely)
        offset += len(token.text)
    return columns
