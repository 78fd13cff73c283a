"""What of a model's files is in the page cache: dropped, checked, and read as a floor.

`posix_fadvise(DONTNEED)` needs no root. It drops clean pages only, so that the files are synced
first, and none that any process has mapped, so that nobody may have the model loaded meanwhile.
Below a virtual machine the host may keep its own copy, which nothing here can drop.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

_PAGE = mmap.PAGESIZE
_READ_BYTES = 8 << 20
_TOLERATED_SHARE = 0.02
"""Pages that a reader elsewhere, or the read-ahead, may bring back at once."""
_PATIENCE_S = 2.0
_PAUSE_S = 0.05

_libc = ctypes.CDLL(None, use_errno=True)


class StillCached(Exception):
    """Pages of a file could not be dropped."""


def files_of(model: Path) -> tuple[Path, ...]:
    """The files of a model's directory that are not empty."""
    files = (path.resolve() for path in sorted(model.iterdir()))
    return tuple(path for path in files if path.is_file() and path.stat().st_size)


def drop(model: Path) -> None:
    """Have the next read of the model's files come from the disk. Whoever let go of the model
    lately has two seconds to unmap it.

    Raises:
        StillCached: a process has them mapped, or they are on no disk (tmpfs).
    """
    deadline = time.monotonic() + _PATIENCE_S
    for file in files_of(model):
        while (share := _dropped(file)) > _TOLERATED_SHARE:
            if time.monotonic() > deadline:
                holders = ", ".join(_who_maps(file)) or "nobody"
                raise StillCached(f"{share:.0%} of {file} is still cached; mapped by {holders}")
            time.sleep(_PAUSE_S)


def _dropped(file: Path) -> float:
    """The share of the file that is cached all the same."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return cached_share(file)


def cached_share(file: Path) -> float:
    """The share of a file's pages that are in the page cache, from mincore(2).

    Raises:
        OSError: the kernel does not tell.
    """
    with file.open("rb") as opened:
        # A private map that may be written to, because ctypes takes the address of no other one.
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        pages = -(-len(mapped) // _PAGE)
        states = (ctypes.c_ubyte * pages)()
        begin = ctypes.c_char.from_buffer(mapped)
        failed = _libc.mincore(
            ctypes.c_void_p(ctypes.addressof(begin)), ctypes.c_size_t(len(mapped)), states
        )
        del begin
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed", str(file))
        return sum(state & 1 for state in bytes(states)) / pages
    finally:
        mapped.close()


def touch_s(model: Path) -> float:
    """Seconds to map the model's weights anew and touch each page of theirs."""
    seconds = 0.0
    for file in _weights(model):
        with file.open("rb") as opened:
            began = time.perf_counter()
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            array = np.frombuffer(mapped, np.uint8)
            array[::_PAGE].max()
            seconds += time.perf_counter() - began
            del array
            mapped.close()
    return seconds


def read_s(model: Path) -> float:
    """Seconds to read the model's weights from front to back, wherever they are."""
    seconds = 0.0
    buffer = bytearray(_READ_BYTES)
    for file in _weights(model):
        with file.open("rb", buffering=0) as opened:
            began = time.perf_counter()
            while opened.readinto(buffer):
                pass
            seconds += time.perf_counter() - began
    return seconds


def weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in _weights(model))


def _who_maps(file: Path) -> Iterator[str]:
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any(region.path == str(file) for region in process.memory_maps()):
                yield f"{process.pid} ({' '.join(process.info['cmdline'][:4])})"


def _weights(model: Path) -> tuple[Path, ...]:
    return tuple(file for file in files_of(model) if file.suffix == ".safetensors")
