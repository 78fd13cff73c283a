from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import hotswap
from hotswap.__main__ import main
from hotswap.config import ConfigError, Settings
from hotswap.errors import DownloadFailed
from hotswap.handover import Image
from hotswap.options import OPTIONS

Run = Callable[[Settings, Image, Callable[[], Settings]], int]


@pytest.fixture
def serve_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Put a function in the place of the server's `run`."""

    def install(run: Run) -> None:
        server: Any = ModuleType("hotswap.server")
        server.run = run
        monkeypatch.setitem(sys.modules, "hotswap.server", server)

    return install


@pytest.fixture
def served(serve_with: Callable[[Run], None]) -> list[Settings]:
    """What the server was asked to serve."""
    asked: list[Settings] = []

    def run(settings: Settings, image: Image, read: Callable[[], Settings]) -> int:
        assert read() == settings
        asked.append(settings)
        return 0

    serve_with(run)
    return asked


def test_the_settings_of_the_command_line_are_served(served: list[Settings]) -> None:
    assert main(["--model", "a/b", "--port", "0"]) == 0
    assert served[0].catalog.model == "a/b"
    assert served[0].server.port == 0


def test_a_mistake_is_one_line_and_exit_code_2(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--modle", "a/b"]) == 2
    assert capsys.readouterr().err == (
        "hotswap: error: there is no option --modle. Did you mean --model? (see hotswap --help)\n"
    )
    assert not served


def test_a_warning_does_not_keep_it_from_serving(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "a/b", "--host", "0.0.0.0"]) == 0
    assert capsys.readouterr().err.startswith("hotswap: warning: ")
    assert served


@pytest.mark.parametrize("error", [ConfigError("port in use"), DownloadFailed("port in use")])
def test_a_server_that_cannot_start_is_one_line_too(
    error: Exception,
    serve_with: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object) -> int:
        raise error

    serve_with(run)
    assert main(["--model", "a/b"]) == 2
    assert capsys.readouterr().err == "hotswap: error: port in use\n"


def test_ctrl_c_while_starting_is_no_traceback(
    serve_with: Callable[[Run], None],
) -> None:
    def run(*_: object) -> int:
        raise KeyboardInterrupt

    serve_with(run)
    assert main(["--model", "a/b"]) == 130


def test_help_shows_every_flag_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{option.flag}" in text for option in OPTIONS)
    assert all(f"\n{option.group}:\n" in text for option in OPTIONS)


def test_version_is_printed_without_importing_torch() -> None:
    code = (
        "import sys, hotswap.__main__\n"
        "try: hotswap.__main__.main(['--version'])\n"
        "except SystemExit: print('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert finished.stdout == f"hotswap {hotswap.__version__}\nFalse\n", finished.stderr


def test_the_module_can_be_run() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "hotswap", "--port", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "hotswap: error: --port must be a whole number from 0 to 65535, not 'x'\n"
    )
