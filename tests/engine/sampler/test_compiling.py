from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-m", "tests.engine.sampler.compile_for", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in compiled} == {"survey", "gather", "check", "choose", "tell"}
    for name, registers, stack, shared in compiled:
        assert int(stack) == 0, f"{name} keeps values on the stack"
        assert int(shared) <= 99 << 10, f"{name} needs more than small devices have"
        assert int(registers) <= 255, name
    sources = {path: path.read_text() for path in tmp_path.rglob("*.ptx")}
    deciding = [source for path, source in sources.items() if path.stem != "tell"]
    assert len(deciding) >= 4
    for source in deciding:
        assert "fma.rn.f32" not in source, "contracted: draws would differ from other samplers'"
        assert ".ftz." not in source
