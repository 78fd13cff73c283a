"""Copies to a device beside what it computes: in a lane of their own, one after the other.

Only pinned memory can be copied so. What lies elsewhere, in mapped files above all, goes through a
ring of pinned buffers: while the device takes one of them, the next is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_START_BYTES = 256
"""Parts begin at multiples of it, in a buffer too."""


class Arrival(Protocol):
    """Of all that was sent through a lane until some moment."""

    def wait(self) -> None:
        """Until it is there."""

    def join(self) -> None:
        """Have what the calling thread computes on the device from now on come after it."""


class Lane(Protocol):
    def copy(self, target: Tensor, source: Tensor) -> None:
        """Ask for a copy. ``source`` must keep its content, and both their memory, until it has
        arrived."""

    def mark(self) -> Arrival:
        """The arrival of what was asked for so far."""

    def follow(self) -> None:
        """Have what is asked for from now on come after what the calling thread has asked the
        device to compute."""


class Ring:
    """Buffers that copies go through. For one thread at a time."""

    def __init__(self, lane: Lane, buffers: Sequence[Tensor]) -> None:
        """``buffers``: uint8 [size] each, pinned."""
        self._lane = lane
        self._buffers = buffers
        self._arrivals: list[Arrival | None] = [None] * len(buffers)
        """Of what each of them held last."""
        self._current = 0
        self._filled = 0
        """Bytes of the current one."""

    def send(self, target: Tensor, source: Tensor) -> None:
        """Copy bytes (uint8, of equal length). ``source`` is free at once, ``target`` is complete
        when what is marked after `flush` has arrived."""
        done = 0
        while done < len(source):
            room = self._room()
            count = min(len(room), len(source) - done)
            room[:count].copy_(source[done : done + count])
            self._lane.copy(target[done : done + count], room[:count])
            done += count
            self._filled += -(-count // _START_BYTES) * _START_BYTES

    def flush(self) -> Arrival:
        """Nothing more is to come for now."""
        arrival = self._lane.mark()
        if self._filled:
            self._arrivals[self._current] = arrival
            self._current = (self._current + 1) % len(self._buffers)
            self._filled = 0
        return arrival

    def _room(self) -> Tensor:
        """What is left of the current buffer, or the next one once the device has taken it."""
        if self._filled >= len(self._buffers[self._current]):
            self.flush()
        if not self._filled:
            arrival = self._arrivals[self._current]
            if arrival is not None:
                arrival.wait()
        return self._buffers[self._current][self._filled :]


class HostLane:
    """Copies within host memory, made when they are asked for."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Arrival:
        return _Arrived()

    def follow(self) -> None:
        """It does."""


class _Arrived:
    def wait(self) -> None:
        """It is there."""

    def join(self) -> None:
        """It comes before."""


class CudaLane:
    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Arrival:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return _CudaArrival(event, self.stream.device)

    def follow(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))


class _CudaArrival:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self._event = event
        self._device = device

    def wait(self) -> None:
        self._event.synchronize()

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)
