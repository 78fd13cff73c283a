"""Room for keys and values on a device with memory of its own, taken as it is needed.

What is reserved there has to be given back at every swap, which takes longer than the weights of a
small model need to arrive, and what is not reserved has room for the next model's weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from hotswap.engine import device as devices
from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.scheduler import Scheduler

_log = logging.getLogger(__name__)


class Growing(Protocol):
    """A forward with a pool of blocks."""

    def grow(self, blocks: int) -> None:
        """Make room for more blocks. What was stored stays.

        Raises:
            torch.OutOfMemoryError: there is as much room as before.
        """


class Growth:
    """Has the blocks ready that the next plan of a scheduler takes. Owned by the device thread."""

    def __init__(
        self,
        forward: Growing,
        scheduler: Scheduler,
        memory: DeviceMemory,
        *,
        reserve: int,
        reclaim: Callable[[], bool],
    ) -> None:
        """
        Args:
            reserve: Bytes of the device that are left to what is computed, half of them at least.
            reclaim: Frees what is there for models whose turn has not come; False: nothing is.
        """
        self._forward = forward
        self._scheduler = scheduler
        self._memory = memory
        self._reserve = reserve
        self._reclaim = reclaim
        self._refused: _Refusal | None = None

    def provide(self) -> None:
        """To be called before a plan is made."""
        pool = self._scheduler.pool
        missing = self._scheduler.needed - pool.free
        if missing <= 0 or pool.count >= self._scheduler.budget.blocks:
            return
        must = missing > pool.remembered
        refusal = _Refusal(must=must, missing=missing, used=pool.used)
        if self._refused is not None and self._refused.covers(refusal):
            return
        grown = self._grow(missing, must=must)
        if not grown and must and self.relieve():
            grown = self._grow(missing, must=True)
        self._refused = None if grown else refusal

    def relieve(self) -> bool:
        """Free what the device holds for models whose turn has not come. False: nothing."""
        if not self._reclaim():
            return False
        devices.release_unused(self._memory.device)
        return True

    def _possible(self, missing: int, *, must: bool) -> int:
        devices.release_unused(self._memory.device)
        pool, block = self._scheduler.pool, self._scheduler.budget.block_bytes
        free = self._memory.free_bytes() - self._reserve // (2 if must else 1)
        return next_count(
            pool.count,
            missing=missing,
            forgettable=pool.remembered,
            most=min(self._scheduler.budget.blocks, pool.count + max(0, free) // block),
        )

    def _grow(self, missing: int, *, must: bool) -> bool:
        count = self._possible(missing, must=must)
        if count == self._scheduler.pool.count:
            return False
        try:
            self._forward.grow(count)
        except torch.OutOfMemoryError:  # weights ahead, or another process, were faster
            _log.warning("There is no memory for more keys and values")
            return False
        finally:
            devices.release_unused(self._memory.device)
        self._scheduler.pool.extend(count)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """There was no memory."""

    must: bool
    """Somebody had to wait for it."""
    missing: int
    used: int
    """Blocks, at that time."""

    def covers(self, other: _Refusal) -> bool:
        """To try again would be in vain: as much is missing, and nobody has left."""
        return (
            0 < self.used <= other.used
            and self.missing <= other.missing
            and self.must >= other.must
        )


def next_count(there: int, *, missing: int, forgettable: int, most: int) -> int:
    """How many blocks there should be, at least as many as there are.

    Args:
        there: As many there are.
        missing: As many more are wanted than are free.
        forgettable: Blocks whose content could be forgotten instead.
        most: As many there can be.
    """
    count = max(there, min(most, max(there + missing, 2 * there)))
    if missing > forgettable:
        return count if count - there >= missing - forgettable else there
    # It costs the recorded steps, and memory that others could use: not for a little.
    return count if count - there >= max(1, there // 4) else there
