from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# As in tests/engine/kernels/conftest.py, whichever is read first.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Where the fused sampler runs: in Triton's interpreter, or on the CUDA device."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    import numpy as np
    import torch
    import triton

    if not triton.knobs.runtime.interpret:
        yield torch.device("cuda")
        return
    from tests.engine.sampler.interpreter import mend

    mend(monkeypatch)
    with np.errstate(all="ignore"):  # NumPy warns where a device computes an infinity
        yield torch.device("cpu")


@pytest.fixture
def fused(device: Any) -> Any:
    """The sampler in Triton."""
    from hotswap.engine.sampler.fused import FusedSampler

    return FusedSampler(device)


@pytest.fixture
def looped() -> Any:
    """The sampler in compiled loops."""
    if find_spec("numba") is None:
        pytest.skip("Numba is not installed")
    from hotswap.engine.sampler.looped import LoopSampler

    return LoopSampler()
