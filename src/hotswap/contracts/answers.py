"""What an engine answers: the events of a generation, vectors, tokens."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the raw log-probability the model gave it, and the likeliest tokens beside it."""

    text: str
    raw: bytes
    logprob: float | None
    """None: it is a prompt's first one, which nothing came before."""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Text that choice ``index`` grew by; whole characters only, may stand for several tokens."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDelta:
    """What a model thinks before it answers, as `TextDelta`. Chats only."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A tool call of choice ``index`` begins, or its arguments go on. Chats only."""

    index: int
    call: int
    """Number of the call in its choice, from 0 on."""
    id: str | None = None
    """Told when the call begins, and then only, as is ``name``."""
    name: str | None = None
    arguments: str = ""
    """JSON text that the call's arguments grow by; all of it together is an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of choice ``index``."""

    index: int
    reason: FinishReason
    """"tool_calls": it ended by itself and there are some."""
    completion_tokens: int
    """Those of the reasoning included."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Of its prompt: those that were remembered and not computed again. Told by the first choice of
    a prompt only, because a prompt is counted once."""
    stop_sequence: str | None = None
    """The stop string that ended the answer, where one did."""


GenerationEvent = TextDelta | ReasoningDelta | ToolCallDelta | Finished


class Generation(Protocol):
    """A running request. Iterating yields all events since the last time, never an empty tuple,
    and ends after the last choice's `Finished`.

    Raises:
        HotswapError: the engine failed or the answer was aborted; no further event follows.
    """

    @property
    def model(self) -> str:
        """Id of the model that answers."""

    @property
    def prompt_tokens(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[tuple[GenerationEvent, ...]]: ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each prompt of an `EmbeddingRequest`."""

    model: str
    vectors: tuple[array[float], ...]
    """Single precision, length 1 where the model's own configuration normalises."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Prompts as a model sees them."""

    model: str
    ids: tuple[tuple[int, ...], ...]
    """Of each prompt."""
    texts: tuple[tuple[str, ...], ...] = ()
    """Where they were asked for, what each token stands for; half a character is U+FFFD."""
