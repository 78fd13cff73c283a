"""Where the tokens of a step lie: in the flat batch, in their sequences, in the pool. No torch.

Two kinds of segments are told apart. A single token is a lane: its sequence's last stretch of
neighbouring slots, after perhaps some others. Lanes at equal distances whose other stretches are
the same, because the sequences begin alike, are computed together. Several tokens are a span.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hotswap.engine.blocks import BLOCK_TOKENS, BlockTable
from hotswap.engine.forward.base import Segment

_CALL_KEYS = 128
"""A call of the attention kernel costs about as much as so many keys more in one of its rows."""

Stretch = tuple[int, int]
"""Neighbouring slots: the first one, how many."""


@dataclass(frozen=True, slots=True)
class Span:
    place: slice
    """In the flat batch."""
    start: int
    """Position of the first token."""
    past: tuple[Stretch, ...]
    """Where the positions before it lie."""
    own: tuple[Stretch, ...]
    """Where it and those after it lie."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """One token of each of some sequences."""

    place: slice
    shared: tuple[Stretch, ...]
    """Where all of them begin."""
    first: int
    """Slot at which the first one goes on alone; the others do so ``stride`` slots further each."""
    stride: int
    lengths: tuple[int, ...]
    """Slots of each from there on, the one of this token included."""

    @property
    def longest(self) -> int:
        """Keys of the longest of the sequences."""
        return sum(length for _, length in self.shared) + max(self.lengths)

    def stretches(self, row: int) -> tuple[Stretch, ...]:
        """All of one sequence."""
        return *self.shared, (self.first + row * self.stride, self.lengths[row])


@dataclass(slots=True)
class Layout:
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    """Places of the tokens whose logits are wanted."""
    lanes: list[Lanes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


def in_order(segments: Iterable[Segment]) -> list[Segment]:
    """Lanes first, those that begin alike together and as they lie in the pool, so that `layout`
    finds those at equal distances."""
    return sorted(segments, key=_order)


def layout(segments: Sequence[Segment], slots: int) -> Layout:
    """Lay the segments out one after the other. ``slots``: of the pool."""
    found = Layout()
    for segment in segments:
        begin, count = len(found.ids), len(segment.ids)
        place, end = slice(begin, begin + count), segment.start + count
        found.ids += segment.ids
        found.positions += range(segment.start, end)
        for first, length in stretches(segment.table, segment.start, end):
            found.slots += range(first, first + length)
        if segment.samples:
            found.sampled.append(begin + count - 1)
        if count == 1:
            *shared, (first, length) = stretches(segment.table, 0, end)
            _add(found.lanes, Lanes(place, tuple(shared), first, 0, (length,)), slots)
        else:
            past = tuple(stretches(segment.table, 0, segment.start))
            own = tuple(stretches(segment.table, segment.start, end))
            found.spans.append(Span(place, segment.start, past, own))
    return found


def stretches(table: BlockTable, start: int, end: int) -> Iterator[Stretch]:
    """Where positions ``start`` to ``end`` lie."""
    before = 0
    for first, blocks in table.runs:
        after = before + blocks * BLOCK_TOKENS
        low, high = max(start, before), min(end, after)
        if low < high:
            yield first * BLOCK_TOKENS + low - before, high - low
        before = after


def last(stretches: Sequence[Stretch], slots: int) -> list[Stretch]:
    """The last so many slots of them."""
    found: list[Stretch] = []
    for first, length in reversed(stretches):
        kept = min(length, slots)
        if kept:
            found.append((first + length - kept, kept))
        slots -= kept
    return found[::-1]


def _order(segment: Segment) -> tuple[bool, list[tuple[int, int]], int]:
    if len(segment.ids) > 1:
        return True, [], 0
    *shared, (last, _) = segment.table.runs
    return False, shared, last


def _add(lanes: list[Lanes], lane: Lanes, slots: int) -> None:
    """Put one more lane into a group with the last ones, where that is possible and worth it."""
    joined = _joined(lanes[-1], lane, slots) if lanes else None
    if joined is None:
        lanes.append(lane)
    else:
        lanes[-1] = joined


def _joined(group: Lanes, lane: Lanes, slots: int) -> Lanes | None:
    stride = group.stride or lane.first - group.first
    lengths = group.lengths + lane.lengths
    longest = max(lengths)
    waste = _waste(lengths) - _waste(group.lengths)
    fits = (
        group.shared == lane.shared
        and stride > 0
        and lane.first == group.first + len(group.lengths) * stride
        and lane.first + longest <= slots
        and waste <= _CALL_KEYS
    )
    place = slice(group.place.start, lane.place.stop)
    return Lanes(place, group.shared, group.first, stride, lengths) if fits else None


def _waste(lengths: tuple[int, ...]) -> int:
    """Keys that are looked at in vain when all lanes are taken to be as long as the longest."""
    return len(lengths) * max(lengths) - sum(lengths)
