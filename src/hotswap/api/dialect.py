"""What a dialect file offers to the endpoint: a parsed call, and how its answer is written."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from hotswap.api.fields import Duration, Seconds, duration_s
from hotswap.contracts.answers import GenerationEvent
from hotswap.contracts.requests import GenerationRequest
from hotswap.errors import HotswapError

EVENT_STREAM = "text/event-stream; charset=utf-8"


def random_id() -> str:
    """32 hexadecimal digits. Not from the system's randomness, which is asked without the
    interpreter's lock: getting that back from a busy engine took 0.1 ms."""
    return f"{random.getrandbits(128):032x}"


@dataclass(slots=True, kw_only=True)
class Stamp:
    """What all parts of one answer share."""

    key: str = field(default_factory=random_id)
    created_unix: int = field(default_factory=lambda: int(time.time()))
    asked: float = field(default_factory=time.monotonic)
    """Monotonic time at which the request came."""
    admitted: float | None = None
    """And at which its model was there; None: it waits."""
    prompt_tokens: int = 0
    """Known from then on."""
    first: float | None = None
    """And of its first events; None: none have come."""
    last: float | None = None
    """And of its last ones so far."""

    def note_events(self) -> None:
        """Some have come. What is written of them is written later, when it can be sent."""
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last


class Frames(Protocol):
    """A streamed answer, event by event; every method returns bytes ready to be sent.

    Until the model is there, others of the same call speak: only `loading`, `alive` and `failure`.
    """

    def opening(self) -> bytes: ...

    def event(self, event: GenerationEvent) -> bytes: ...

    def closing(self, prompt_tokens: int) -> bytes: ...

    def failure(self, error: HotswapError) -> bytes: ...

    def loading(self, text: str) -> bytes:
        """Progress for the user to see; a sign of life where the dialect has no place for it."""

    def alive(self, text: str) -> bytes:
        """A sign of life that clients of the dialect skip, with ``text`` for who reads the wire."""


class Document(Protocol):
    """An answer in one piece."""

    def add(self, event: GenerationEvent) -> None: ...

    def body(self, model: str, prompt_tokens: int) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One parsed request."""

    request: GenerationRequest
    stream: bool
    frames: Callable[[Stamp, str], Frames]
    """Takes the stamp and the name of the model that answers."""
    document: Callable[[Stamp], Document]
    media_type: str = EVENT_STREAM
    """Of a streamed answer."""

    @property
    def choices(self) -> int:
        return len(self.request.prompts) * self.request.n


class Lasting(Struct, kw_only=True):
    """Fields that dialects have from us: how long the model may stay, idle, after the answer."""

    keep_alive: Seconds | Duration | None = None
    ttl: Seconds | None = None
    """The same, as some clients call it."""

    def keep_alive_s(self) -> float | None:
        return self.ttl if self.keep_alive is None else duration_s(self.keep_alive, "keep_alive")
