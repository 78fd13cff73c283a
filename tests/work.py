"""How the work of a function grows with its input."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LINEAR = 9.0
"""Four times the input is four times the work where that is linear, and sixteen times where it is
quadratic."""
_LEAST_S = 1e-3
"""What takes less is not worth comparing."""


def growth(work: Callable[[T], object], small: T, large: T, tries: int = 3) -> float:
    """How many times as long as for ``small`` it takes for ``large``, in the processor's time of
    this thread: what else the machine does is not in it."""

    def seconds(given: T) -> float:
        began = time.thread_time()
        work(given)
        return time.thread_time() - began

    seconds(small)
    fast, slow = (min(seconds(given) for _ in range(tries)) for given in (small, large))
    return slow / max(fast, _LEAST_S)
