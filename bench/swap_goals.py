"""What the figures of `bench.swap` are called, and what they are held against."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures import Wanted
from bench.pairs import OURS, PRETRAINED, TRANSFORMERS

RESIDENT = "first token, resident"
BARE = "bare forward"
"""Contender: the forward of the prompt alone, through transformers' modules."""
PARKED = "swap to a parked model"
CACHED = "swap, cold from the page cache"
DISK = "swap, cold from disk"
GAP_PARKED = "gap behind a long answer, parked"
GAP_PREFETCHED = "gap behind a long answer, prefetched"
LIVE, START = "process start to /livez", "process start to first token"
COPY, SLEEP_WAKE = "copy from pinned memory", "sleep + wake"


def above(name: str) -> str:
    """The same without what the resident model takes to its first token."""
    return f"{name}, above resident"


def probe(swaps: int) -> str:
    return f"worst probe in {swaps} swaps"


_PARKED_MS = {"tiny": 30.0}
_PARKED_ABOVE_MS = {"small": 50.0, "q06": 30.0}
_CACHED_MS = {"tiny": 60.0}
_CACHED_BESIDE_TRANSFORMERS = {"tiny": 0.25, "small": 0.4, "q06": 0.5}


def goals(shape: str, device: str, probe_swaps: int) -> Iterator[Wanted]:
    """Those of issue 5; on a CPU its table, on a GPU section 1 of the design."""
    if device == "cpu":
        yield from _cpu_goals(shape)
    else:
        yield from _gpu_goals(shape)
    for name in (GAP_PARKED, GAP_PREFETCHED):
        yield Wanted(figure=(above(name), OURS), bound=50 if device == "cpu" else 20)
    yield Wanted(figure=(probe(probe_swaps), OURS), bound=50)


def _cpu_goals(shape: str) -> Iterator[Wanted]:
    for name, bounds in (
        (PARKED, _PARKED_MS),
        (above(PARKED), _PARKED_ABOVE_MS),
        (CACHED, _CACHED_MS),
    ):
        if shape in bounds:
            yield Wanted(figure=(name, OURS), bound=bounds[shape])
    if shape in _CACHED_BESIDE_TRANSFORMERS:
        bound = _CACHED_BESIDE_TRANSFORMERS[shape]
        yield Wanted(figure=(CACHED, OURS), beside=(CACHED, TRANSFORMERS), bound=bound)
    yield Wanted(figure=(above(PARKED), OURS), beside=(above(CACHED), PRETRAINED), bound=1 / 10)
    if shape == "q06":
        yield Wanted(figure=(LIVE, OURS), bound=700)
        yield Wanted(figure=(START, OURS), bound=3500)


def _gpu_goals(shape: str) -> Iterator[Wanted]:
    parked = (above(PARKED), OURS)
    if shape == "q8b":
        yield Wanted(figure=parked, beside=(COPY, COPY), bound=1.15)
    yield Wanted(figure=parked, beside=(SLEEP_WAKE, SLEEP_WAKE), bound=1 / 2.2)
    yield Wanted(figure=parked, beside=(above(CACHED), PRETRAINED), bound=1 / 8)
