from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Read when Triton is first imported. Whether there is a device cannot be asked of torch here: its
# import takes seconds, and the fast run reads this file too.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The interpreter computes bfloat16 as the device does, and without looking for overflows."""
    if "fused" not in request.fixturenames:
        return
    request.getfixturevalue("fused")
    import triton

    if triton.knobs.runtime.interpret:
        from tests.engine.kernels.interpreter import mend_bfloat16
        from tests.engine.quick_interpreter import quicken

        mend_bfloat16(monkeypatch)
        quicken(monkeypatch)


@pytest.fixture
def fused() -> Any:
    """The kernels under test."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from hotswap.engine.kernels import fused

    return fused


@pytest.fixture
def device(fused: Any) -> Any:
    """Where they run: in Triton's interpreter, or on the CUDA device."""
    import torch
    import triton

    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")


@pytest.fixture
def dice(device: Any) -> Callable[..., Any]:
    """Standard normal tensors, the same in every run: ``dice(*shape, dtype=...)``."""
    import torch

    generator = torch.Generator().manual_seed(3)

    def throw(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return throw
