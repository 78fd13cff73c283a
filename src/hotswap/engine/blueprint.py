"""A skeleton without its weights, and where these lie in the files of the checkpoint: so that a
model that has been read once is put together again in a millisecond."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hotswap.engine.forward.linear import Linear
from hotswap.engine.forward.skeleton import Rope, Skeleton

_COPIES_BYTES = 16 << 20
"""Of tensors that are no part of a file, but made of what is: kept with the blueprint. A model with
more of them has been converted."""
_CHUNK_BYTES = 64 << 20
"""Read between two looks whether anybody still waits."""
_POPULATE_READ = 22
"""Of madvise, since Linux 5.14: read pages in, and have them mapped."""

FileId = tuple[int, int]
"""Device and inode of a file, which stay when its name becomes another's."""
Arena = Tensor
"""The bytes of one file, uint8 [size]."""
Leaf = Linear | Rope | Tensor
"""What a skeleton is made of, besides numbers. Layers that rotate alike share a `Rope`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a contiguous tensor."""

    file: int
    offset: int
    """Bytes from the file's beginning."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    skeleton: Skeleton
    """Its tensors have no memory, apart from those that are no part of a file."""
    places: Mapping[int, Place]
    """Of the tensors without memory, by their `id`."""

    @classmethod
    def of(cls, skeleton: Skeleton, files: Sequence[FileId]) -> Blueprint | None:
        """None: the skeleton's weights do not lie in ``files`` as they are mapped."""
        mapped = list(_mapped(files))
        starts = [start for start, _, _, _ in mapped]
        places: dict[int, Place] = {}
        copies = 0

        def strip(tensor: Tensor) -> Tensor:
            nonlocal copies
            address = tensor.data_ptr()
            index = bisect_right(starts, address) - 1
            start, end, file, offset = mapped[index] if index >= 0 else (0, 0, 0, 0)
            place = Place(file, offset + address - start)
            fits = address + tensor.nbytes <= end and not place.offset % tensor.element_size()
            if not (tensor.is_contiguous() and fits):
                copies += tensor.nbytes
                return tensor
            stripped = torch.empty_like(tensor, device="meta")
            places[id(stripped)] = place
            return stripped

        made = with_tensors(skeleton, strip)
        if not places or copies > _COPIES_BYTES:
            return None
        return cls(made, places)

    def bind(self, arenas: Sequence[Arena]) -> Skeleton:
        """The skeleton with its weights in ``arenas``, one for each of the files."""

        def find(tensor: Tensor) -> Tensor:
            place = self.places.get(id(tensor))
            if place is None:
                return tensor
            size = tensor.numel() * tensor.element_size()
            own = arenas[place.file][place.offset : place.offset + size]
            return own.view(tensor.dtype).view(tensor.shape)

        return with_tensors(self.skeleton, find)


def map_files(files: Sequence[Path]) -> list[Arena]:
    """Files as memory. What is written there stays in this process.

    Raises:
        OSError
    """
    arenas = []
    for file in files:
        with file.open("rb") as stream:
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        arenas.append(torch.frombuffer(memory, dtype=torch.uint8))
    return arenas


def file_ids(files: Sequence[Path]) -> tuple[FileId, ...]:
    """Raises: OSError."""
    states = (file.stat() for file in files)
    return tuple((state.st_dev, state.st_ino) for state in states)


def stretches(arenas: Sequence[Arena]) -> Iterator[Arena]:
    """All of them in parts, each read in an instant, so that a load can be given up in between."""
    for arena in arenas:
        for begin in range(0, len(arena), _CHUNK_BYTES):
            yield arena[begin : begin + _CHUNK_BYTES]


def read_in(stretch: Arena) -> None:
    """Have a part of a file read from the disk, and its pages mapped. Elsewhere than on Linux, and
    before 5.14, they are read when they are used.

    Raises:
        OSError
    """
    if not sys.platform.startswith("linux"):
        return
    first, size = _pages(stretch)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _POPULATE_READ):
        error = ctypes.get_errno()
        if error != errno.EINVAL:
            raise OSError(error, os.strerror(error))


def fill_page_cache(stretch: Arena) -> None:
    """As `read_in`, of what is to be mapped elsewhere: what the system has in memory stays where it
    is."""
    if not (sys.platform.startswith("linux") and _is_cached(stretch)):
        read_in(stretch)


def _is_cached(stretch: Arena) -> bool:
    """See mincore(2)."""
    first, size = _pages(stretch)
    pages = -(-size // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(size), resident)
    return not failed and bytes(resident).count(0) == 0


def _pages(stretch: Arena) -> tuple[int, int]:
    """Address of the first page, and bytes from there to the end."""
    address = stretch.data_ptr()
    first = address - address % mmap.PAGESIZE
    return first, address + len(stretch) - first


def with_tensors(skeleton: Skeleton, change: Callable[[Tensor], Tensor]) -> Skeleton:
    """A skeleton with other tensors."""

    def changed(leaf: Leaf) -> Leaf:
        if isinstance(leaf, Linear):
            return Linear([(change(w), None if b is None else change(b)) for w, b in leaf.parts])
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return with_leaves(skeleton, changed)


def with_leaves(skeleton: Skeleton, change: Callable[[Leaf], Leaf]) -> Skeleton:
    """A skeleton with other products, rotary positions and tensors that are part of neither."""
    return cast("Skeleton", _changed(skeleton, change))


def _changed(node: Any, change: Callable[[Leaf], Leaf]) -> Any:
    if isinstance(node, Leaf):
        return change(node)
    if isinstance(node, tuple):
        return tuple(_changed(item, change) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        changed = {f.name: _changed(getattr(node, f.name), change) for f in fields(node)}
        return replace(node, **changed)
    return node


def _mapped(files: Sequence[FileId]) -> Iterator[tuple[int, int, int, int]]:
    """Start, end, number of the file and offset in it, of what is mapped of ``files``, in order of
    addresses; see proc_pid_maps(5)."""
    if not sys.platform.startswith("linux"):
        return
    numbers = {file: number for number, file in enumerate(files)}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode = line.split(maxsplit=5)[:5]
        major, minor = (int(part, 16) for part in device.split(":"))
        number = numbers.get((os.makedev(major, minor), int(inode)))
        if number is not None:
            start, end = (int(part, 16) for part in span.split("-"))
            yield start, end, number, int(offset, 16)
