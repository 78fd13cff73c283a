"""Copies that are made late, and buffers that are used again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.lanes import Arrival, Ring

pytestmark = pytest.mark.torch

BUFFER = 1024


class LateLane:
    """Copies only when somebody waits for it, as late as a device may."""

    def __init__(self) -> None:
        self._copies: list[Callable[[], object]] = []
        self._turn = threading.Lock()
        self.done = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._copies.append(lambda: target.copy_(source))

    def mark(self) -> Arrival:
        return _Late(self, len(self._copies))

    def follow(self) -> None:
        """Nothing is computed beside it."""

    def advance(self, until: int) -> None:
        with self._turn:
            while self.done < until:
                self._copies[self.done]()
                self.done += 1


class _Late:
    def __init__(self, lane: LateLane, count: int) -> None:
        self._lane = lane
        self._count = count

    def wait(self) -> None:
        self._lane.advance(self._count)

    def join(self) -> None:
        self.wait()


def ring_of(lane: LateLane, buffers: int = 2) -> Ring:
    import torch

    from hotswap.engine.lanes import Ring

    return Ring(lane, [torch.zeros(BUFFER, dtype=torch.uint8) for _ in range(buffers)])


def bytes_of(size: int, seed: int) -> Tensor:
    import torch

    dice = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), generator=dice, dtype=torch.uint8)


@pytest.mark.parametrize("buffers", [2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [BUFFER],
        [BUFFER + 1],
        [10 * BUFFER + 7],
        [3] * 40,
        [1000, 2000, 3, 5000, 256, 256, 512, 1, 4096],
    ],
    ids=str,
)
def test_what_is_sent_arrives_although_copies_are_late(sizes: list[int], buffers: int) -> None:
    import torch

    lane = LateLane()
    ring = ring_of(lane, buffers)
    sources = [bytes_of(size, seed) for seed, size in enumerate(sizes)]
    for _ in range(2):  # the second time through buffers that have been used
        targets = [torch.zeros_like(source) for source in sources]
        for target, source in zip(targets, sources, strict=True):
            given = source.clone()
            ring.send(target, given)
            given.zero_()  # it is free at once
        ring.flush().wait()
        for target, source in zip(targets, sources, strict=True):
            assert torch.equal(target, source)


def test_nobody_waits_while_a_buffer_is_free() -> None:
    import torch

    lane = LateLane()
    ring = ring_of(lane, 3)
    target = torch.zeros(4 * BUFFER, dtype=torch.uint8)
    ring.send(target[: 3 * BUFFER], bytes_of(3 * BUFFER, 0))
    assert lane.done == 0
    ring.send(target[3 * BUFFER :], bytes_of(BUFFER, 1))
    assert lane.done == 1, "for the first one only"


def test_small_parts_share_a_buffer() -> None:
    import torch

    lane = LateLane()
    ring = ring_of(lane)
    targets = [torch.zeros(100, dtype=torch.uint8) for _ in range(8)]
    for target in targets:
        ring.send(target, bytes_of(100, 0))
    assert lane.done == 0
    ring.flush().wait()
    assert all(torch.equal(target, bytes_of(100, 0)) for target in targets)


def test_an_arrival_is_of_what_was_sent_before_it() -> None:
    import torch

    lane = LateLane()
    ring = ring_of(lane, 3)
    first, second = (torch.zeros(10, dtype=torch.uint8) for _ in range(2))
    ring.send(first, bytes_of(10, 0))
    arrival = ring.flush()
    ring.send(second, bytes_of(10, 1))
    arrival.wait()
    assert first.any()
    assert not second.any()
