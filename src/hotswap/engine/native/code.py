"""The compiled loops, once they are there; importing this needs no Numba.

Compiling takes about ten seconds, once on a machine for each version of the code, and is done in a
process of its own, so that the event loop of this one has its interpreter to itself.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotswap.engine.native.forward import NativeForward

_log = logging.getLogger(__name__)

_COMPILE_TIMEOUT_S = 300.0
_brought: list[type[NativeForward] | None] = []
_bringing = threading.Lock()


def native_forward() -> type[NativeForward] | None:
    """The forward that the loops are part of. Waits until they are compiled, the first time. None:
    there is no Numba here, or it cannot compile them or keep what it has compiled."""
    with _bringing:
        if not _brought:
            _brought.append(_bring())
    return _brought[0]


def compiled_on_disk() -> bool:
    """Nobody has to wait."""
    mark = _mark() if find_spec("numba") is not None else None
    return mark is not None and mark.exists()


def compile_all() -> None:
    """Compile what is not on disk yet, here and now."""
    # Imported, they are compiled.
    import hotswap.engine.native.forward  # noqa: PLC0415
    import hotswap.engine.sampler.looped  # noqa: F401, PLC0415

    mark = _mark()
    assert mark is not None, "importing them has found the place"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _bring() -> type[NativeForward] | None:
    if find_spec("numba") is None:
        _log.info("Without Numba, decoding on the CPU is slower")
        return None
    if _mark() is None:
        _log.warning("This user has no home to keep compiled loops in, decoding is slower")
        return None
    if not compiled_on_disk():
        _log.info("Compiling the decode loops for this processor; only once")
        command = [sys.executable, "-m", "hotswap.engine.native.code"]
        try:
            subprocess.run(  # noqa: S603 - our own interpreter
                command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            _log.warning("The decode loops cannot be compiled, decoding is slower: %s", said[-500:])
            return None
    from hotswap.engine.native.forward import NativeForward  # noqa: PLC0415 - it needs Numba

    return NativeForward


def _mark() -> Path | None:
    """Is there once all is compiled. None: the user has no home, so nothing can be kept."""
    try:
        from hotswap.engine.jit import cache_dir  # noqa: PLC0415 - it needs Numba

        return cache_dir() / "complete"
    except RuntimeError:
        return None


if __name__ == "__main__":
    compile_all()
