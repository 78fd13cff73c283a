"""The compiled loops, once they are there; importing this needs no Numba.

Compiling takes half a minute to two on two cores, once on a machine for each version of the code.
It is done in a process of its own, so that the event loop of this one has its interpreter to
itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotswap.engine.native.forward import NativeForward

_log = logging.getLogger(__name__)

_COMPILE_TIMEOUT_S = 300.0
_MARK = "complete"
_VERSION = re.compile(r"[0-9a-f]{16}")
"""Names of the folders that `hotswap.engine.jit.cache_dir` makes."""
_UNUSED_S = 30 * 86_400.0
_brought: list[type[NativeForward] | None] = []
_bringing = threading.Lock()


def native_forward() -> type[NativeForward] | None:
    """The forward that the loops are part of. Waits until they are compiled, the first time. None:
    there is no Numba here, or it cannot compile them or keep what it has compiled."""
    with _bringing:
        if not _brought:
            _brought.append(_bring())
    return _brought[0]


async def loops_compiled() -> None:
    """Until `native_forward` need not wait. Who is cancelled here leaves a thread behind that does
    not keep the process from ending, and another process that ends by itself."""
    if _brought:
        return
    loop, brought = asyncio.get_running_loop(), asyncio.Event()

    def bring() -> None:
        native_forward()
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(brought.set)

    threading.Thread(target=bring, name="compiling", daemon=True).start()
    await brought.wait()


def compiled_on_disk() -> bool:
    """Nobody has to wait."""
    try:
        return find_spec("numba") is not None and _mark().exists()
    except Exception:  # whatever a broken Numba raises when it is imported; `_bring` tells
        return False


def compile_all() -> None:
    """Compile what is not on disk yet, here and now."""
    # Imported, they are compiled.
    import hotswap.engine.native.forward  # noqa: PLC0415
    import hotswap.engine.sampler.looped  # noqa: F401, PLC0415

    mark = _mark()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _bring() -> type[NativeForward] | None:
    if find_spec("numba") is None:
        _log.info("Without Numba, decoding on the CPU is slower")
        return None
    try:
        return _compiled()
    except Exception as error:  # whatever Numba, LLVM, the disk and the other process raise
        said = (getattr(error, "stderr", None) or str(error) or repr(error)).strip()
        reason = said.splitlines()[-1][-500:]
        _log.warning("There are no compiled loops, decoding is slower: %s", reason)
        return None


def _compiled() -> type[NativeForward]:
    if not _mark().exists():
        _make_room()
        _log.info("Compiling the decode loops for this processor, only once; half a minute to two")
        command = [sys.executable, "-m", "hotswap.engine.native.code"]
        subprocess.run(  # noqa: S603 - our own interpreter
            command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
        )
    else:
        with suppress(OSError):  # kept where we may not write: it is not ours to remove either
            _mark().touch()
    from hotswap.engine.native.forward import NativeForward  # noqa: PLC0415 - it needs Numba

    return NativeForward


def _make_room() -> None:
    """Raises: OSError; before anything has been compiled in vain."""
    place = _mark().parent
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{place} cannot be made ({error}); NUMBA_CACHE_DIR names another") from error
    try:
        _remove_unused(place)
    except OSError as error:
        _log.warning("Compiled loops of other versions cannot be removed: %s", error)


def _remove_unused(current: Path) -> None:
    """Take away what other versions have compiled, if nobody has used it for long. The folder may
    be one that others keep things in as well."""
    for place in current.parent.iterdir():
        mark = place / _MARK
        if place == current or not _VERSION.fullmatch(place.name) or place.is_symlink():
            continue
        if mark.is_file() and time.time() - mark.stat().st_mtime > _UNUSED_S:
            _log.info("Removing the compiled loops of another version, long unused: %s", place)
            mark.unlink()  # first: half of it must not pass for the whole
            shutil.rmtree(place)


def _mark() -> Path:
    """Is there once all is compiled; its time is that of the last use."""
    from hotswap.engine.jit import cache_dir  # noqa: PLC0415 - it needs Numba

    return cache_dir() / _MARK


if __name__ == "__main__":
    compile_all()
