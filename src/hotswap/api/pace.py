"""How often a stream is written to while many of them run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

BODY_COST_S = 80e-6
"""What one body costs the event loop, however little is in it: tasks woken, framing, a system
call. Measured at 50 to 90 us of CPU with Hypercorn, for bodies of one token each."""
SHARE = 0.1
"""The part of one core that writing bodies may take, beside what each token costs."""
LEAST_REST_S = 0.001
"""The event loop's clock is no finer."""


class Pace:
    """One for all streams of a server.

    With a body for every token of every stream the event loop holds the interpreter's lock when
    the engine needs it. So a stream that has got something rests a little, the longer the more
    of them there are, and what comes meanwhile goes out together. One alone never rests, 16 rest
    for 13 ms, 64 for 51 ms, which a reader does not see; a first token never waits.
    """

    def __init__(self) -> None:
        self._streams = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """For as long as one more stream is written."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @property
    def rest_s(self) -> float:
        rest_s = self._streams * BODY_COST_S / SHARE
        return rest_s if rest_s >= LEAST_REST_S else 0.0

    async def rest(self) -> None:
        if rest_s := self.rest_s:
            await anyio.sleep(rest_s)
