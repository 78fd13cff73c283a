"""What a dialect file offers to the endpoint: a parsed call, and how its answer is written."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hotswap.contracts import GenerationEvent, GenerationRequest
from hotswap.errors import HotswapError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What all parts of one answer share."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_unix: int = field(default_factory=lambda: int(time.time()))


class Frames(Protocol):
    """A streamed answer, event by event; every method returns bytes ready to be sent."""

    def opening(self) -> bytes: ...

    def event(self, event: GenerationEvent) -> bytes: ...

    def closing(self, prompt_tokens: int) -> bytes: ...

    def failure(self, error: HotswapError) -> bytes: ...

    def loading(self, text: str) -> bytes:
        """Progress for the user to see; a comment where the dialect has no place for it."""


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

    @property
    def choices(self) -> int:
        return len(self.request.prompts) * self.request.n
