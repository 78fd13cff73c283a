"""Memory around one stay on the device: what was there before, and what is there after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hotswap.contracts.engines import Engine
from hotswap.contracts.reports import MemoryReport
from hotswap.engine import device as devices
from hotswap.engine.rested import Rested

_CPU_NOISE_BYTES = 32 << 20
"""A process's private memory moves by this much without anything being kept."""


@dataclass(slots=True)
class Stay:
    devices: Sequence[torch.device]
    """That the model has parts on."""
    _others: Callable[[], int]
    """Bytes of the devices that are no part of it: of models whose turn comes later."""
    _baseline: int
    """Without what the model itself has left behind the last time."""
    _before: int
    entered: bool = False
    """The model was put there."""
    engine: Engine | None = None
    """That was driven."""

    @classmethod
    def begin(
        cls, on: Sequence[torch.device], others: Callable[[], int], rested: Rested | None
    ) -> Stay:
        """
        Args:
            on: Each device once.
            others: Bytes of the devices, now and later, of models whose turn has not come.
            rested: What the model goes on with.
        """
        used = _used(on) - others()
        return cls(on, others, used - _held(rested, on), used)

    @property
    def worked(self) -> bool:
        return self.entered and (self.engine is None or self.engine.failure is None)

    def end(self, engine: Engine) -> None:
        """The model is about to leave."""
        self._before = self._used()
        self.engine = engine

    def report(self, rested: Rested | None) -> MemoryReport:
        """``rested``: what it leaves behind."""
        after = self._used() - _held(rested, self.devices)
        leaked = max(0, after - self._baseline)
        if self.devices[0].type == "cpu" and leaked < _CPU_NOISE_BYTES:
            leaked = 0
        return MemoryReport(
            before_bytes=self._before,
            after_bytes=after,
            baseline_bytes=self._baseline,
            leaked_bytes=leaked,
        )

    def _used(self) -> int:
        return _used(self.devices) - self._others()


def _used(on: Sequence[torch.device]) -> int:
    return sum(map(devices.used_bytes, on))


def _held(rested: Rested | None, on: Sequence[torch.device]) -> int:
    return 0 if rested is None else sum(map(rested.held_on, on))
