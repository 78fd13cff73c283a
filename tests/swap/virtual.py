"""An asyncio loop in virtual time, for tests that go step by step.

`tests.swap.house` runs whole scenarios on trio. This loop can be left and entered again between
two steps, and it is the server's own: asyncio cancels in another way than trio does.
"""

from __future__ import annotations

import asyncio
import selectors

LOOK_S = 1e-9
"""How much later it is at each look: a clock that stood still once hid a wait that never ended."""
MOMENT_S = 1e-6


class VirtualLoop(asyncio.SelectorEventLoop):
    """Seconds pass when nobody is busy."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        self._clock.now += LOOK_S
        return self._clock.now

    def pass_time(self, seconds: float = MOMENT_S) -> None:
        """Run until everybody waits, and then on for so long; a moment is enough to have all that
        can be done now done."""
        self.run_until_complete(asyncio.sleep(seconds))


class _Clock(selectors.DefaultSelector):
    """Where the loop would wait for its next deadline, time moves there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += max(0.0, timeout)
        return []
