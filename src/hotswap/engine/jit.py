"""Loops for the CPU, compiled by Numba when they are first needed and kept on disk.

A module that imports this one takes half a second to import, and many seconds the first time on a
machine; `hotswap.engine.native` sees to it that nobody waits for that.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba

_OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
_SOURCES = Path(__file__).parent
Function = TypeVar("Function", bound=Callable[..., Any])


def cache_dir() -> Path:
    """Where compiled loops are kept: another place for each version of the code, of Numba and of
    the processor. Numba itself would only notice a change of the file that it compiles, and not of
    those that it calls. And for each place where the code lies: Numba finds nothing again that it
    has compiled for a copy elsewhere, and would compile in the middle of a load.

    Raises:
        RuntimeError: the user has no home, and NUMBA_CACHE_DIR is not set.
    """
    features = llvmlite.binding.get_host_cpu_features().flatten()
    processor = llvmlite.binding.get_host_cpu_name(), features, *_OTHER_PROCESSOR
    versions = sys.version, numba.__version__, llvmlite.__version__
    digest = hashlib.sha256(repr((versions, processor, str(_SOURCES))).encode())
    parts = ("jit.py", "native/*.py", "sampler/*.py")
    for source in sorted(path for part in parts for path in _SOURCES.glob(part)):
        digest.update(source.read_bytes())
    home = Path(_CHOSEN) if _CHOSEN else Path.home() / ".cache" / "hotswap"
    return home / digest.hexdigest()[:16]


_CHOSEN: str = getattr(numba.config, "CACHE_DIR", "")
_OTHER_PROCESSOR = (
    getattr(numba.config, "CPU_NAME", None),
    getattr(numba.config, "CPU_FEATURES", None),
)
COMPILES_FOR_THIS = _OTHER_PROCESSOR == (None, None)
"""Numba has not been told to compile for another processor than the one that is here."""
if getattr(numba.config, "DISABLE_JIT", False):
    raise ImportError("NUMBA_DISABLE_JIT is set, and these loops are nothing uncompiled")
setattr(numba.config, "CACHE_DIR", str(cache_dir()))  # noqa: B010 - typed as if it had none


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile a function when it is defined, for the types of ``signature`` (as `numba.njit` takes
    it). It runs without the interpreter's lock, and divides by zero as floats do."""
    make: Any = numba.njit(signature, cache=True, **_OPTIONS)
    return cast("Callable[[Function], Function]", make)


def inlined(function: Function) -> Function:
    """A part of compiled functions, for whatever types they call it with."""
    made: Any = numba.njit(**_OPTIONS)(function)
    return cast("Function", made)


def reordered(function: Function) -> Function:
    """As `inlined`, and sums may be added up in any order, the same one every time."""
    fastmath = {"reassoc", "contract", "nsz", "arcp"}
    made: Any = numba.njit(fastmath=fastmath, **_OPTIONS)(function)
    return cast("Function", made)
