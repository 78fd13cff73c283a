"""Taking turns: what makes two figures of one run comparable."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import ParamSpec

P = ParamSpec("P")

TURN_S = 0.4
"""A turn asks again until so much time was measured, and counts the median: on a small model one
question takes milliseconds, and the first one finds cold caches."""

_STEADY = 0.05
_WARM_UPS = range(10)
_FEWEST_WARM_UPS = 4


def rounds(contenders: tuple[str, ...], count: int) -> Iterator[tuple[str, ...]]:
    """The order of the contenders in each round: each goes first in turn."""
    for number in range(count):
        first = number % len(contenders)
        yield contenders[first:] + contenders[:first]


def turn(ask: Callable[P, float], *args: P.args, **kwargs: P.kwargs) -> float:
    """The median of what a question answers, in seconds, over one turn."""
    seconds = [ask(*args, **kwargs)]
    while sum(seconds) < TURN_S:
        seconds.append(ask(*args, **kwargs))
    return statistics.median(seconds)


def warm_up(ask: Callable[P, float], *args: P.args, **kwargs: P.kwargs) -> None:
    """Ask until the answer, in seconds, does not get better any more: kernels are chosen, weights
    packed and graphs captured behind the first answers."""
    seconds: list[float] = []
    for _ in _WARM_UPS:
        seconds.append(ask(*args, **kwargs))
        if len(seconds) >= _FEWEST_WARM_UPS and seconds[-1] > min(seconds[:-1]) * (1 - _STEADY):
            return
