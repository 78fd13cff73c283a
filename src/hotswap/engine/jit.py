"""Loops for the CPU, compiled by Numba when they are first needed and kept on disk.

A module that imports this one takes half a second to import, and many seconds the first time on a
machine; `hotswap.engine.native` sees to it that nobody waits for that.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_SOURCES = Path(__file__).parent
Function = TypeVar("Function", bound=Callable[..., Any])


def cache_dir() -> Path:
    """Where compiled loops are kept: another place for each version of the code and of Numba, which
    itself would only notice a change of the file that it compiles, and not of those it calls."""
    digest = hashlib.sha256(f"{sys.version} {numba.__version__}".encode())
    for source in sorted(_SOURCES.rglob("*.py")):
        if "jit" in source.read_text():
            digest.update(source.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "hotswap" / digest.hexdigest()[:16]


numba.config.CACHE_DIR = str(cache_dir())


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile a function for the types of ``signature`` (as `numba.njit` takes it) when it is defined. It runs without the
    interpreter's lock, and divides by zero as floats do."""
    make: Callable[[Function], Function] = numba.njit(
        signature, nogil=True, cache=True, error_model="numpy"
    )
    return make


def inlined(function: Function) -> Function:
    """A part of compiled functions, for whatever types they call it with."""
    made: Function = numba.njit(nogil=True, error_model="numpy")(function)
    return made


def reordered(function: Function) -> Function:
    """As `inlined`, and sums may be added up in any order, the same one every time."""
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    made: Function = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    return made
