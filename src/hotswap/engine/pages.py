"""Host memory of our own: torch's pinned one is rounded up to powers of two and kept, and what
malloc gives comes in small pages, each of which costs a fault when it is first written."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only


def reserved(size: int) -> Tensor:
    """uint8 [size], zero, in huge pages where the system has them. It goes with the last reference
    to it.

    Raises:
        OSError: the system has no room for it.
    """
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _HUGE_PAGES is not None:
        memory.madvise(_HUGE_PAGES)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]
