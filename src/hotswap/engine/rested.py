"""What a model leaves behind when it leaves the device, to go on with: the keys and values that it
remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from hotswap.contracts.models import EngineConfig
from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.kv_pool import KVCopies
from hotswap.engine.scheduler import Scheduler

_SAVED_BYTES = 256 << 20
"""Of keys and values are copied from a device at most, those of the newest answers. An H100 took
20 ms for as much, to memory that was there."""


class Rested(Protocol):
    """Belongs to whoever has it."""

    scheduler: Scheduler
    max_model_len: int
    engine: EngineConfig
    """The settings that it was made with, and is good for."""

    @property
    def bytes(self) -> int:
        """Of host memory that is not the weights'."""

    @property
    def needed_bytes(self) -> int:
        """Of the device, beside what it holds there, for all of its blocks."""

    def held_on(self, device: torch.device) -> int:
        """Bytes of it in the memory of ``device``."""

    def wake(self, made: Callable[[int], LeanForward], /) -> LeanForward:
        """A forward that has what is remembered in its blocks.

        Args:
            made: a new forward with room for so many blocks.
        """

    def close(self) -> None:
        """From any thread: none of its own is left."""


@dataclass(eq=False, slots=True)
class AtRest:
    """A forward on the CPU as it is."""

    forward: LeanForward
    scheduler: Scheduler
    max_model_len: int
    engine: EngineConfig

    @property
    def bytes(self) -> int:
        return self.scheduler.remembered_bytes

    @property
    def needed_bytes(self) -> int:
        whole = self.scheduler.pool.count * self.scheduler.budget.block_bytes
        return whole - self.bytes

    def held_on(self, device: torch.device) -> int:
        return self.bytes if device.type == "cpu" else 0

    def wake(self, _: Callable[[int], LeanForward]) -> LeanForward:
        self.forward.wake()
        return self.forward

    def close(self) -> None:
        self.forward.close()


@dataclass(eq=False, slots=True)
class Saved:
    """Copies of what a device remembered; they go into the first blocks of a new pool."""

    scheduler: Scheduler
    max_model_len: int
    engine: EngineConfig
    copies: KVCopies | None
    """None: they are used up."""
    memory: DeviceMemory
    """That they are copies of."""

    @classmethod
    def of(
        cls,
        forward: LeanForward,
        scheduler: Scheduler,
        memory: DeviceMemory,
        *,
        max_model_len: int,
        engine: EngineConfig,
        room: int,
        least_blocks: int,
    ) -> Self | None:
        """None: nothing is remembered that has room.

        Args:
            memory: Of the device that the forward is on.
            room: Bytes of host memory.
            least_blocks: Of the pool of the next stay.
        """
        most = max(0, min(room, _SAVED_BYTES)) // scheduler.budget.block_bytes
        scheduler.pool.keep(most)
        blocks = scheduler.pool.pack(least_blocks)
        if not blocks:
            return None
        return cls(scheduler, max_model_len, engine, forward.pool.copies(blocks), memory)

    @property
    def bytes(self) -> int:
        return 0 if self.copies is None else self.copies.bytes

    @property
    def needed_bytes(self) -> int:
        return self.scheduler.pool.count * self.scheduler.budget.block_bytes

    def held_on(self, device: torch.device) -> int:
        return self.bytes if device.type == "cpu" else 0

    def wake(self, made: Callable[[int], LeanForward]) -> LeanForward:
        assert self.copies is not None
        forward = made(self.scheduler.pool.count)
        try:
            forward.pool.restore(range(self.copies.blocks), self.copies, self.memory)
        except BaseException:
            forward.close()
            raise
        self.close()
        return forward

    def close(self) -> None:
        self.copies = None
