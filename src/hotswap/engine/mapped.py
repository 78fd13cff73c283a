"""Pages of mapped checkpoint files that will not be read again.

They would be given up under pressure anyway; until then they count as this process's memory.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")  # Linux only
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d*\s+/")
"""First and last address of a mapping that has a file behind it."""
_OWN = ("Anonymous:", "Swap:", "Private_Hugetlb:", "Shared_Hugetlb:")
"""Pages that have nothing behind them: copied when they were first written to (and no longer
"private" after a fork, no longer "dirty" after a swap), or huge ones, which look like a file's."""


def drop_file_pages(places: Iterable[tuple[int, int]]) -> None:
    """Let go of the pages that lie wholly within ``places`` (address, bytes). What is read there
    again comes from the page cache. Places that are no mapped file, or one that has been written
    to, are left alone: their content would be lost."""
    if not _SMAPS.exists():
        return
    clean = _clean_mappings(_SMAPS.read_text(errors="replace"))
    libc = ctypes.CDLL(None, use_errno=True)
    for address, size in places:
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        inside = any(begin <= first and last <= end for begin, end in clean)
        if inside and first < last:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _clean_mappings(smaps: str) -> list[tuple[int, int]]:
    """Mapped files none of whose pages has been changed here."""
    clean = []
    mapping = None
    for line in smaps.splitlines():
        if "-" in line.split(" ", 1)[0]:
            found = _MAPPING.match(line)
            mapping = (int(found[1], 16), int(found[2], 16)) if found else None
        elif line.startswith(_OWN) and line.split()[1] != "0":
            mapping = None
        elif mapping is not None and line.startswith("VmFlags:"):  # the last line of each
            clean.append(mapping)
    return clean
