"""What is asked of a device that has memory of its own: room for arenas, lanes to it, pinned host
memory. Where a model computes in the memory that it was read into, there is none of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hotswap.engine import device as devices
from hotswap.engine.lanes import CudaLane, HostLane, Lane, Ring

_log = logging.getLogger(__name__)

_BUFFER_BYTES = 32 << 20
_BUFFERS = 3
"""One that the device takes, one that waits for it, one that is filled."""
_SEGMENT_BYTES = 2 << 20
_LEAST_SEGMENT_BYTES = 10 << 20
"""From this size on, torch's allocator asks the device for multiples of `_SEGMENT_BYTES`, and for
nothing beside them."""


class DeviceMemory(Protocol):
    """Any thread may use it."""

    device: torch.device
    lane: Lane

    def free_bytes(self) -> int:
        """What could be reserved now."""

    def reserve(self, size: int) -> Tensor:
        """uint8 [size]; what is in it is anything. It is free again with the last reference to it,
        or when its storage is resized to nothing; neither before all that was sent to it is there.

        Raises:
            torch.OutOfMemoryError
        """

    @contextmanager
    def ring(self) -> Iterator[Ring]:
        """For copies from memory that is not pinned; others wait for their turn. What was sent may
        be on its way still when it is left."""

    def pin(self, memory: Tensor, /) -> bool:
        """Let host memory be copied from without a detour. False: the system refuses."""

    def unpin(self, memory: Tensor, /) -> None:
        """Nothing is being copied from it any more."""


def brought(memory: DeviceMemory, content: Tensor) -> Tensor:
    """A copy of host memory (uint8) on the device. The calling thread may compute with it at once.

    Raises:
        torch.OutOfMemoryError
    """
    target = torch.empty_like(content, device=memory.device)
    with memory.ring() as ring:
        memory.lane.follow()  # there may have been something else in this place
        ring.send(target, content)
        ring.flush().join()
    return target


class CudaMemory:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lane = CudaLane(device)
        self.lane: Lane = self._lane
        self._ring = _SharedRing(pinned=True)

    def free_bytes(self) -> int:
        return devices.free_bytes(self.device)

    def reserve(self, size: int) -> Tensor:
        # A segment of its own: it goes back to the device whole, whatever else is alive. And of
        # the lane's stream, so that no memory comes here that another stream is still busy with.
        whole = max(_LEAST_SEGMENT_BYTES, -(-size // _SEGMENT_BYTES) * _SEGMENT_BYTES)
        with torch.cuda.stream(self._lane.stream):
            return torch.empty(whole, dtype=torch.uint8, device=self.device)[:size]

    @contextmanager
    def ring(self) -> Iterator[Ring]:
        with self._ring.taken(self.lane) as ring:
            yield ring

    def pin(self, memory: Tensor) -> bool:
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        if status != cudart.cudaError.success:
            _log.warning("%d bytes of host memory cannot be pinned: %s", memory.nbytes, status)
            return False
        return True

    def unpin(self, memory: Tensor) -> None:
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = cudart.cudaHostUnregister(memory.data_ptr())
        if status != cudart.cudaError.success:
            _log.error("%d bytes of host memory stay pinned: %s", memory.nbytes, status)


class HostMemory:
    """Host memory that stands in for a device's: what is done with one can be done without one."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.lane: Lane = HostLane()
        self._ring = _SharedRing(pinned=False)

    def free_bytes(self) -> int:
        return devices.free_host_bytes()

    def reserve(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    @contextmanager
    def ring(self) -> Iterator[Ring]:
        with self._ring.taken(self.lane) as ring:
            yield ring

    def pin(self, _: Tensor) -> bool:
        return True

    def unpin(self, _: Tensor) -> None:
        """It never was."""


MemoryOf = Callable[[torch.device], DeviceMemory | None]


def memory_of(device: torch.device) -> DeviceMemory | None:
    """None: models compute where they were read."""
    return CudaMemory(device) if device.type == "cuda" else None


class Room(Protocol):
    """Memory of a device, for parts of a model that is spread."""

    @property
    def device(self) -> torch.device: ...

    def free_bytes(self) -> int:
        """What could be had now."""


@dataclass(frozen=True, slots=True)
class CudaRoom:
    device: torch.device

    def free_bytes(self) -> int:
        return devices.free_bytes(self.device)


RoomsOf = Callable[[torch.device], Sequence[Room]]


def rooms_of(device: torch.device) -> Sequence[Room]:
    """All devices of the kind, ``device`` first; none where models compute where they were read."""
    if device.type != "cuda":
        return ()
    first = torch.cuda.current_device() if device.index is None else device.index
    others = [index for index in range(torch.cuda.device_count()) if index != first]
    return tuple(CudaRoom(torch.device("cuda", index)) for index in (first, *others))


class _SharedRing:
    """Made when it is first needed, and kept."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._turn = threading.Lock()
        self._ring: Ring | None = None

    @contextmanager
    def taken(self, lane: Lane) -> Iterator[Ring]:
        """By one thread at a time."""
        with self._turn:
            if self._ring is None:
                self._ring = Ring(lane, self._buffers())
            yield self._ring

    def _buffers(self) -> list[Tensor]:
        # The device thread is in inference mode; what is made there cannot be written elsewhere.
        with torch.inference_mode(mode=False):
            return [
                torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=self._pinned)
                for _ in range(_BUFFERS)
            ]
