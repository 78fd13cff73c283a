"""What waits between the task that generates and the task that sends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from hotswap.errors import HotswapError

_ENOUGH_BYTES = 256 << 10

Piece = Callable[[], bytes]
"""A part of an answer, not written out yet."""


class Outbox:
    """One producer puts, one writer takes what has queued as one body: the server charges by the
    body, not by the byte.

    Putting never waits. A producer that waited for a slow reader would not hear that its
    generation has ended, and would keep a model from leaving the device. What is not read yet is
    as small here as in the engine, which does not wait for readers either; only what is about to
    be sent is written out.
    """

    def __init__(self) -> None:
        self._pending: deque[Piece] = deque()
        self._last_put = anyio.current_time()
        self._filled = anyio.Event()
        self._closed = False
        self.error: HotswapError | None = None
        """Why the producer closed; None while it has not, and when all is well."""

    def put(self, piece: Piece) -> None:
        self._pending.append(piece)
        self._last_put = anyio.current_time()
        self._filled.set()

    def close(self, error: HotswapError | None = None) -> None:
        self._closed = True
        self.error = error
        self._filled.set()

    async def filled(self) -> None:
        """Wait until there is something to take or nothing will come any more."""
        while not self._pending and not self._closed:
            self._filled = anyio.Event()
            await self._filled.wait()

    async def silent(self, seconds: float) -> None:
        """Wait until nothing has been put for so long."""
        ends = self._last_put + seconds
        while ends > anyio.current_time():
            await anyio.sleep_until(ends)
            ends = self._last_put + seconds

    def take(self) -> bytes:
        """The next pieces, as many as make a body of decent size."""
        body = bytearray()
        while self._pending and len(body) < _ENOUGH_BYTES:
            body += self._pending.popleft()()
        return bytes(body)

    @property
    def drained(self) -> bool:
        return self._closed and not self._pending
