from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

KERNELS = {
    *("_attend_to_split", "_join_splits", "_gate"),
    *("_normed_rows", "_summed_and_normed_rows", "_turn_and_store"),
}


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-m", "tests.engine.kernels.compile_for", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in compiled} == KERNELS
    for name, _registers, stack, shared in compiled:
        assert int(stack) == 0, f"{name} keeps values on the stack"
        assert int(shared) <= 99 << 10, f"{name} needs more than small devices have"
