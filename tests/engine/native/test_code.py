"""When and where the loops are compiled. Nothing is compiled here that is not on disk already."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

THREADS = 8


@pytest.fixture(autouse=True)
def nothing_brought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody has asked for the loops yet, and none are on disk."""
    # Before there is another place for what they compile.
    import hotswap.engine.native.forward
    import hotswap.engine.sampler.looped  # noqa: F401
    from hotswap.engine.native import code

    monkeypatch.setattr(code, "_brought", [])
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


class Compiling:
    """Stands for the process that compiles; notes each and fails as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.commands: list[list[str]] = []
        self._error = error
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **options: Any) -> None:
        assert options["check"]
        self.commands.append(command)
        if self._error is not None:
            raise self._error


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_without_numba_there_are_no_loops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hotswap.engine.native import code

    compiling = Compiling(monkeypatch)
    monkeypatch.setattr(code, "find_spec", lambda name: None)
    assert not code.compiled_on_disk()
    assert code.native_forward() is None
    assert compiling.commands == []
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (subprocess.CalledProcessError(1, "python", stderr="LLVM ERROR: no such thing"), "LLVM"),
        (subprocess.TimeoutExpired("python", 300.0), "timed out"),
        (OSError("no memory for a process"), "no memory"),
    ],
)
def test_loops_that_cannot_be_compiled_are_done_without_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
) -> None:
    from hotswap.engine.native.code import native_forward

    compiling = Compiling(monkeypatch, error)
    assert [native_forward() for _ in range(3)] == [None] * 3
    [warning] = warnings_in(caplog)
    assert said in warning
    assert len(compiling.commands) == 1


def test_loops_are_compiled_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine.native.code import native_forward
    from hotswap.engine.native.forward import NativeForward

    compiling = Compiling(monkeypatch)
    together = threading.Barrier(THREADS)

    def ask() -> Any:
        together.wait()
        return native_forward()

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pool.submit(ask) for _ in range(THREADS)]
        assert [asked.result() for asked in found] == [NativeForward] * THREADS
    [command] = compiling.commands
    assert command[1:] == ["-m", "hotswap.engine.native.code"]


def test_what_is_on_disk_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine.native import code
    from hotswap.engine.native.forward import NativeForward

    compiling = Compiling(monkeypatch)
    assert not code.compiled_on_disk()
    code.compile_all()
    assert code.compiled_on_disk()
    assert code.native_forward() is NativeForward
    assert compiling.commands == []


# -- what other versions have left ---------------------------------------------------------------

DAY_S = 86_400


def left_by_another_version(place: Path, days: float, mark: str = "complete") -> Path:
    place.mkdir(parents=True)
    (place / "engine").mkdir()
    (place / "engine" / "step.nbi").touch()
    (place / mark).touch()
    used = time.time() - days * DAY_S
    os.utime(place / mark, (used, used))
    return place


def test_what_other_versions_compiled_and_nobody_used_for_long_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hotswap.engine.native.code import native_forward

    Compiling(monkeypatch)
    caches = tmp_path / ".cache" / "hotswap"
    elsewhere = left_by_another_version(tmp_path / "elsewhere", 31)
    gone = [left_by_another_version(caches / digit, 31) for digit in ("0" * 16, "f" * 16)]
    kept = [
        left_by_another_version(caches / ("1" * 16), 29),
        left_by_another_version(caches / ("2" * 16), 31, mark="index"),  # not ours
        left_by_another_version(caches / "precious", 31),
        left_by_another_version(caches / ("3" * 17), 31),
    ]
    (caches / ("4" * 16)).symlink_to(elsewhere)
    (caches / ("5" * 16)).touch()
    assert native_forward() is not None
    assert not any(place.exists() for place in gone)
    assert all((place / "engine" / "step.nbi").exists() for place in [*kept, elsewhere])
    assert {"4" * 16, "5" * 16} < {place.name for place in caches.iterdir()}


def test_what_cannot_be_removed_is_told_of_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from hotswap.engine.native.code import native_forward

    def rmtree(place: Path) -> None:
        raise PermissionError(f"no right to remove {place.name}")

    Compiling(monkeypatch)
    place = left_by_another_version(tmp_path / ".cache" / "hotswap" / ("0" * 16), 31)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert native_forward() is not None
    [warning] = warnings_in(caplog)
    assert f"no right to remove {place.name}" in warning
    assert not (place / "complete").exists(), "what is left does not pass for all of it"


def test_loops_that_are_used_are_noted_as_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hotswap.engine.jit import cache_dir
    from hotswap.engine.native.code import native_forward

    Compiling(monkeypatch)
    mark = left_by_another_version(cache_dir(), 31) / "complete"
    assert native_forward() is not None
    assert time.time() - mark.stat().st_mtime < DAY_S


# -- where ---------------------------------------------------------------------------------------


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the engine's sources, which are those that are looked at."""
    from hotswap.engine import jit

    copied = tmp_path / "engine"
    shutil.copytree(jit._SOURCES, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "_SOURCES", copied)
    return copied


def test_compiled_loops_lie_among_what_is_cached_for_the_user(tmp_path: Path) -> None:
    from hotswap.engine.jit import cache_dir

    assert cache_dir().parent == tmp_path / ".cache" / "hotswap"


def test_a_user_without_a_home_does_without_loops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that runs under a number that no user has."""
    from hotswap.engine.native import code

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    compiling = Compiling(monkeypatch)
    monkeypatch.setattr(Path, "home", none)
    assert not code.compiled_on_disk()
    assert code.native_forward() is None
    [warning] = warnings_in(caplog)
    assert "home" in warning
    assert compiling.commands == []


def test_the_same_sources_are_the_same_place(sources: Path) -> None:
    from hotswap.engine.jit import cache_dir

    before = cache_dir()
    (sources / "scheduler.py").write_text("# no loop in here\n")
    assert cache_dir() == before


@pytest.mark.parametrize(
    "changed", ["jit.py", "native/step.py", "native/machine.py", "native/records.py"]
)
def test_a_change_of_what_is_compiled_is_another_place(sources: Path, changed: str) -> None:
    """Numba looks at the file of a compiled function only, not at those it takes parts from."""
    from hotswap.engine.jit import cache_dir

    before = cache_dir()
    source = sources / changed
    source.write_text(source.read_text() + "# changed\n")
    assert cache_dir() != before


def test_a_copy_of_the_sources_is_another_place(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba compiles for each folder anew, whatever has been marked as complete."""
    from hotswap.engine import jit

    before = jit.cache_dir()
    monkeypatch.setattr(jit, "_SOURCES", shutil.copytree(sources, tmp_path / "elsewhere"))
    assert jit.cache_dir() != before


def test_another_processor_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite.binding

    from hotswap.engine.jit import cache_dir

    here = cache_dir()
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_name", lambda: "another")
    assert cache_dir() != here


def test_a_broken_numba_is_done_without_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hotswap.engine.native import code

    def breaks() -> Path:
        raise ImportError("Numba needs NumPy 1.0 or less")

    monkeypatch.setattr(code, "_mark", breaks)
    assert not code.compiled_on_disk()
    assert [code.native_forward() for _ in range(2)] == [None, None]
    [warning] = warnings_in(caplog)
    assert "NumPy" in warning
