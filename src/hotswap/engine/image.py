"""The weights of a model as they lie in its arena, in pinned host memory: from there they go to
the device as fast as it takes them. Never made of what is on the device."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from hotswap.engine.arena import Layout
from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.pages import reserved

_log = logging.getLogger(__name__)

_STRETCH_BYTES = 64 << 20
"""Pinned in one go, and copied in one: a copy may not cross the border of what was pinned."""
_COPY_BYTES = 16 << 20
"""The same of filling. What is given up is given up between two of either."""
_THREADS = 4

Abandoned = threading.Event


class HostImage:
    """Whoever copies from it acquires it before, and releases it when the copy is there."""

    def __init__(self, layout: Layout, memory: Tensor, pinned: DeviceMemory) -> None:
        """
        Args:
            layout: Of the skeleton in ``memory``, which is uint8.
            pinned: By it; all of ``memory``, stretch by stretch.
        """
        self.layout = layout
        self._memory = memory
        self._pinned = pinned
        self._use = threading.Lock()
        self._is_open = True

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def skeleton(self) -> Skeleton:
        return self.layout.source

    def acquire(self) -> bool:
        """Wait for one's turn, which is held from call to call until `release`. False: it is not
        pinned any more, and nobody's turn has begun."""
        self._use.acquire()
        if not self._is_open:
            self._use.release()
        return self._is_open

    def release(self) -> None:
        """From any thread."""
        self._use.release()

    def stretches(self) -> Iterator[tuple[int, Tensor]]:
        """What may be copied at once: where it begins, and its bytes."""
        return _stretches(self._memory)

    def close(self) -> None:
        """Pin it no more, when nobody copies from it. Its memory goes with the last skeleton."""
        with self._use:
            if self._is_open:
                self._is_open = False
                for _, stretch in self.stretches():
                    self._pinned.unpin(stretch)


def made(layout: Layout, memory: DeviceMemory, abandoned: Abandoned) -> HostImage | None:
    """The image of what is laid out. None: it was given up, or the host does not have the memory.

    Takes as long as reading and pinning it all does; answers within one stretch of it when it is
    given up.
    """
    try:
        host = reserved(layout.size)
    except OSError:
        _log.warning("There are no %d bytes of host memory for an image", layout.size)
        return None
    if not _filled(host, layout, abandoned):
        return None
    pinned: list[Tensor] = []
    for _, stretch in _stretches(host):
        if abandoned.is_set() or not memory.pin(stretch):
            for done in pinned:
                memory.unpin(done)
            return None
        pinned.append(stretch)
    return HostImage(Layout.of(layout.place(host)), host, memory)


class Imaging:
    """The making of an image in the background."""

    def __init__(self, make: Callable[[Abandoned], None]) -> None:
        self._abandoned = threading.Event()
        self._thread = threading.Thread(
            target=make, args=(self._abandoned,), name="hotswap-image", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Give it up, if it is not done; afterwards nothing goes on."""
        self._abandoned.set()
        self._thread.join()


def _filled(host: Tensor, layout: Layout, abandoned: Abandoned) -> bool:
    def copy(part: _Copy) -> None:
        if not abandoned.is_set():  # torch would start a team of threads in each of these
            ctypes.memmove(part.target, part.source, part.size)

    contents = [(piece.offset, piece.content) for piece in layout.pieces]
    with ThreadPoolExecutor(_THREADS, "hotswap-image") as threads:
        for _ in threads.map(copy, _copies(host.data_ptr(), contents)):
            pass
    return not abandoned.is_set()


@dataclass(frozen=True, slots=True)
class _Copy:
    """Of bytes, by address."""

    target: int
    source: int
    size: int


def _copies(start: int, contents: Sequence[tuple[int, Tensor]]) -> Iterator[_Copy]:
    for offset, content in contents:
        for begin in range(0, len(content), _COPY_BYTES):
            size = min(_COPY_BYTES, len(content) - begin)
            yield _Copy(start + offset + begin, content.data_ptr() + begin, size)


def _stretches(memory: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(memory), _STRETCH_BYTES):
        yield begin, memory[begin : begin + _STRETCH_BYTES]
