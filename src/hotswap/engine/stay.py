"""Memory around one stay on the device: what was there before, what is there after it, and what is
no part of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hotswap.contracts.engines import Engine
from hotswap.contracts.reports import MemoryReport
from hotswap.engine import device as devices
from hotswap.engine.ahead import Aheads
from hotswap.engine.rested import Rested
from hotswap.engine.weights import HostWeights

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


class Coming:
    """Models that are in host memory, or on their way to a device, and whose turn has not come."""

    def __init__(self, aheads: Aheads) -> None:
        self._aheads = aheads
        self._read: weakref.ref[HostWeights] | None = None
        """Weights that were read last and have not been on the device."""

    def note(self, weights: HostWeights | None) -> None:
        """That they have been read; None: a turn has come."""
        self._read = None if weights is None else weakref.ref(weights)

    def bytes_in(self, device: torch.device) -> int:
        """What they have in the memory that is measured of a device."""
        if device.type != "cpu":
            return self._aheads.bytes
        weights = None if self._read is None else self._read()
        # Before its first stay it is not known of a model whether it is mapped. Mostly it is.
        converted = weights is not None and weights.known is not None and not weights.mapped
        return self._aheads.bytes + (weights.bytes if weights is not None and converted else 0)


def _used(on: Sequence[torch.device]) -> int:
    return sum(map(devices.used_bytes, on))


def _held(rested: Rested | None, on: Sequence[torch.device]) -> int:
    return 0 if rested is None else sum(map(rested.held_on, on))
