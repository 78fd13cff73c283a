from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.torch


def test_the_cpu_gets_the_reference_and_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"  # as if it were not installed
        "import torch; from hotswap.engine import kernels\n"
        "print(kernels.kernels_on(torch.device('cpu')).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "hotswap.engine.kernels.reference"


def test_a_cuda_device_gets_the_fused_ones(fused: Any) -> None:
    import torch

    from hotswap.engine.kernels import kernels_on

    assert kernels_on(torch.device("cuda")) is fused


@pytest.mark.gpu
def test_a_decode_step_of_fused_kernels_can_be_captured(fused: Any, device: Any) -> None:
    """Neither waits for the device nor depends on what is there: a replay sees new lengths."""
    import torch

    if device.type != "cuda":
        pytest.skip("there is no CUDA device")
    made = {"device": device, "dtype": torch.bfloat16}
    query, pool = torch.randn(2, 8, 64, **made), torch.randn(2, 256, 64, **made)
    tables = torch.arange(16, device=device, dtype=torch.int32).view(2, 8)
    lengths = torch.tensor([3, 100], device=device, dtype=torch.int32)
    weight = torch.ones(512, **made)

    def step() -> Any:
        attended = fused.paged_attention(query, pool, pool, tables, lengths, scale=0.1)
        return fused.rms_norm(attended.flatten(1), weight, 1e-6)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    lengths.copy_(torch.tensor([128, 0]))
    graph.replay()
    assert torch.equal(out, step())
