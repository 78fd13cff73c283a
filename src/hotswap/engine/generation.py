"""Answers on their way to a client: gathered on the device thread, awaited on the event loop."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from weakref import WeakMethod

from hotswap.contracts.answers import Finished, GenerationEvent
from hotswap.engine.sequence import Sequence
from hotswap.errors import HotswapError


class TorchGeneration:
    """`hotswap.contracts.answers.Generation`; lives on the event loop, where one task iterates
    it."""

    def __init__(
        self, number: int, model: str, prompt_tokens: int, sequences: list[Sequence]
    ) -> None:
        self.number = number
        """What the device thread calls it."""
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.sequences = sequences
        self.error: HotswapError | None = None
        self._unfinished = len(sequences)
        self._events: list[GenerationEvent] = []
        self._reader: asyncio.Future[None] | None = None
        """Who waits for more."""

    @property
    def complete(self) -> bool:
        """All that will ever come has come."""
        return not self._unfinished

    def __aiter__(self) -> AsyncIterator[tuple[GenerationEvent, ...]]:
        return self

    async def __anext__(self) -> tuple[GenerationEvent, ...]:
        while not self._events:
            if self.error is not None:
                # A copy: a raised exception holds the frames of whoever raised it, us among them.
                raise copy.copy(self.error)
            if self.complete:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        events, self._events = tuple(self._events), []
        return events

    def deliver(self, events: list[GenerationEvent]) -> None:
        self._events += events
        for event in events:
            self._unfinished -= isinstance(event, Finished)
        self._wake()

    def fail(self, error: HotswapError) -> None:
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


@dataclass(slots=True)
class Post:
    """What one step has to tell the event loop, by the numbers of the generations."""

    events: dict[int, list[GenerationEvent]] = field(default_factory=dict)
    errors: dict[int, HotswapError] = field(default_factory=dict)
    changed: bool = False

    def add(self, number: int, event: GenerationEvent) -> None:
        self.events.setdefault(number, []).append(event)

    def __bool__(self) -> bool:
        return bool(self.events or self.errors or self.changed)


class Postbox:
    """Posts from one thread to an event loop, which is called once for all that gather until it
    finds the time.

    There is no lock: a post is put down before it is looked whether the loop has been called, and
    the loop lets itself be called again before it takes what is there. So none is left behind, and
    the worst that happens is a call that finds nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[], None]) -> None:
        """``receive``: a method of the postbox's owner, whom it does not keep alive: memory is to
        come back when an engine is left, and not when garbage is next collected."""
        self._loop = loop
        self._receive = WeakMethod(receive)
        self._posts: deque[Post] = deque()
        self._called = False

    def put(self, post: Post) -> None:
        """On the thread."""
        self._posts.append(post)
        if not self._called:
            self._called = True
            receive = self._receive()
            if receive is not None:
                self._loop.call_soon_threadsafe(receive)

    def take(self) -> Iterator[Post]:
        """On the event loop: all that has come, in order."""
        self._called = False
        while self._posts:
            yield self._posts.popleft()
