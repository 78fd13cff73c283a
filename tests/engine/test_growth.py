from __future__ import annotations

from typing import Any

import pytest

from hotswap.engine.blocks import BLOCK_TOKENS, BlockPool, BlockTable
from hotswap.engine.scheduler import KVBudget

pytestmark = pytest.mark.torch

BLOCK = 1 << 20
"""Bytes of one."""


@pytest.mark.parametrize(
    ("there", "missing", "forgettable", "most", "wanted"),
    [
        (4, 1, 0, 100, 8),  # twice as many
        (4, 30, 0, 100, 34),  # or as many as it takes
        (4, 1, 0, 6, 6),  # or as many as there can be
        (4, 3, 0, 6, 4),  # which does not help
        (4, 3, 1, 6, 6),  # does, with what can be forgotten
        (40, 1, 0, 41, 41),  # a little, where somebody waits for it
        (40, 1, 1, 41, 40),  # and not where something can be forgotten
        (40, 1, 1, 50, 50),
        (40, 1, 1, 30, 40),  # never fewer
    ],
)
def test_how_many_blocks_there_should_be(
    there: int, missing: int, forgettable: int, most: int, wanted: int
) -> None:
    from hotswap.engine.growth import next_count

    assert next_count(there, missing=missing, forgettable=forgettable, most=most) == wanted


class Device:
    """Stands in for a forward, a scheduler, and a device with so many bytes free."""

    def __init__(self, blocks: int, free: int, ahead: int = 0) -> None:
        import torch

        self.device = torch.device("cpu")
        self.pool = BlockPool(blocks)
        self.budget = KVBudget(limit_bytes=100 * BLOCK, token_bytes=BLOCK // BLOCK_TOKENS)
        self.needed = 0
        self.free = free
        self.ahead = ahead
        self.grown: list[int] = []
        self.fails = False

    def free_bytes(self) -> int:
        return self.free - self.ahead

    def grow(self, blocks: int) -> None:
        import torch

        if self.fails:
            raise torch.OutOfMemoryError
        self.grown.append(blocks)
        self.free -= (blocks - self.pool.count) * BLOCK

    def reclaim(self) -> bool:
        given, self.ahead = self.ahead, 0
        return given > 0


def growth_of(device: Any, reserve: int = 0) -> Any:
    from hotswap.engine.growth import Growth

    return Growth(device, device, device, reserve=reserve, reclaim=device.reclaim)


def use(device: Device, blocks: int) -> BlockTable:
    table = BlockTable()
    assert device.pool.grow(table, blocks * BLOCK_TOKENS)
    return table


def test_there_is_room_for_what_is_needed_before_it_is() -> None:
    device = Device(4, free=50 * BLOCK)
    growth = growth_of(device)
    device.needed = 4
    growth.provide()
    assert device.grown == []
    use(device, 3)
    device.needed = 2
    growth.provide()
    assert (device.grown, device.pool.count, device.pool.free) == ([8], 8, 5)


def test_weights_sent_ahead_give_way_only_to_what_would_have_to_wait() -> None:
    device = Device(4, free=9 * BLOCK, ahead=9 * BLOCK)
    growth = growth_of(device)
    table = use(device, 4)
    device.pool.remember(table, range(64), 64)
    device.pool.release(table)
    device.needed = 4
    growth.provide()  # what is remembered can be forgotten
    assert (device.grown, device.ahead) == ([], 9 * BLOCK)
    device.needed = 6
    growth.provide()
    assert (device.grown, device.ahead) == ([10], 0)


def test_half_of_the_reserve_is_for_those_who_would_have_to_wait() -> None:
    device = Device(4, free=4 * BLOCK)
    growth = growth_of(device, reserve=4 * BLOCK)
    table = use(device, 4)
    device.needed = 1
    growth.provide()
    assert device.grown == [6]
    device.pool.release(table)
    assert device.free == 2 * BLOCK


def test_it_is_not_tried_again_before_somebody_has_left() -> None:
    device = Device(4, free=0)
    growth, looks = growth_of(device), list[int]()
    free_bytes = device.free_bytes

    def counted() -> int:
        looks.append(1)
        return free_bytes()

    device.free_bytes = counted  # type: ignore[method-assign]
    first, second = use(device, 2), use(device, 2)
    device.needed = 1
    for _ in range(3):
        growth.provide()
    assert len(looks) == 1
    device.pool.release(first)
    device.needed, device.free = 3, 9 * BLOCK
    growth.provide()
    assert (len(looks), device.grown) == (2, [8])
    device.pool.release(second)


def test_what_was_too_much_for_one_does_not_keep_a_little_from_others() -> None:
    device = Device(4, free=4 * BLOCK)
    growth = growth_of(device)
    device.needed = 90
    growth.provide()
    assert device.grown == []
    use(device, 4)
    device.needed = 1
    growth.provide()
    assert device.grown == [8]


def test_weights_that_come_between_looking_and_growing_are_given_up() -> None:
    device = Device(4, free=50 * BLOCK)
    growth, grow = growth_of(device), device.grow

    def taken(blocks: int) -> None:
        if device.ahead == 0 and not device.grown:
            device.ahead = 50 * BLOCK  # sent by another thread just now
            device.grow = grow  # type: ignore[method-assign]
            raise torch.OutOfMemoryError

    import torch

    device.grow = taken  # type: ignore[method-assign]
    use(device, 4)
    device.needed = 1
    growth.provide()
    assert (device.grown, device.ahead) == ([8], 0)


def test_a_device_that_has_no_memory_after_all_is_asked_again_when_somebody_has_left() -> None:
    device = Device(4, free=50 * BLOCK)
    growth, device.fails = growth_of(device), True
    first, _ = use(device, 2), use(device, 2)
    device.needed = 1
    growth.provide()
    device.fails = False
    growth.provide()
    assert device.grown == []
    device.pool.release(first)
    device.needed = 9
    growth.provide()
    assert device.grown == [11]


def test_a_pool_at_its_budget_leaves_the_weights_of_others_alone() -> None:
    device = Device(100, free=0, ahead=9 * BLOCK)
    use(device, 100)
    device.needed = 5
    growth_of(device).provide()
    assert device.ahead == 9 * BLOCK
