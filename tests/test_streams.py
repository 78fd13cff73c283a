from __future__ import annotations

import os
import subprocess
import sys

import pytest

SETTLED = "import sys; from hotswap.streams import settle_streams; settle_streams()\n"


def run(redirections: str, code: str) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", SETTLED + code]
    return subprocess.run(shell, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_cannot_be_written_is_lost_and_nothing_is_raised(name: str) -> None:
    code = (
        f"for n in range(9): sys.{name}.writelines(['x' * 5000, chr(10)]); sys.{name}.flush()\n"
        f"print('there', file=sys.{'stdout' if name == 'stderr' else 'stderr'}, flush=True)\n"
        "import os; os._exit(0)"
    )
    done = run(f"{1 if name == 'stdout' else 2}>/dev/full", code)
    assert done.stdout + done.stderr == "there\n"
    assert done.returncode == 0


def test_descriptors_that_are_closed_are_taken_for_children_too() -> None:
    code = (
        "import os, subprocess\n"
        "child = 'import os; print([os.readlink(f\"/proc/self/fd/{n}\") for n in (0, 2)])'\n"
        "child = subprocess.run([sys.executable, '-c', child], stdout=subprocess.PIPE, text=True)\n"
        "print(child.stdout, end='')\n"
        "print('nowhere', file=sys.stderr, flush=True)\n"
    )
    done = run("<&- 2>&-", code)
    assert done.stdout == f"{[os.devnull, os.devnull]}\n"


def test_a_name_that_the_encoding_does_not_have_is_written_all_the_same() -> None:
    done = run("", "print('\\udcff')")
    assert done.stdout == "\\udcff\n"
