"""The benchmark of the sampler runs, and what it compares with draws what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parent.parent


@pytest.mark.e2e
def test_the_sampler_is_measured_beside_the_others(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench.sampler", "--quick", "--json", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    figures = {(f["name"], f["contender"], f["unit"]): f["median"] for f in report["figures"]}
    contenders = {"hotswap", "transformers", "torch sort", "one read"}
    tasks = {f"1 x 2,000, bf16, filters {filters}" for filters in ("on", "off")}
    for task in tasks:
        for contender in contenders:
            assert figures[task, contender, "us"] > 0
        assert figures[task, "one read", "x one read"] == 1
    if not torch.cuda.is_available():
        assert {(name, contender) for name, contender, _ in figures} == {
            (task, contender) for task in tasks for contender in contenders
        }
        assert "pivots (for CUDA)" in report["about"]["left out"]


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.95), (5, 1.0), (0, 0.9), (200, 0.5)])
def test_sorting_draws_from_the_survivors(top_k: int, top_p: float) -> None:
    import torch

    from bench.sampler import _sorted_draw
    from hotswap.engine.drawing import DrawParams, SamplingRow
    from hotswap.engine.sampler.reference import survivors

    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(top_k)) * 3
    params = DrawParams(temperature=0.7, top_k=top_k, top_p=top_p)
    kept = survivors(logits, [SamplingRow(params, seed=0)] * 3)
    assert not bool(kept.all(-1).any())
    for _ in range(50):
        assert bool(kept.gather(1, _sorted_draw(logits, top_k, top_p)[:, None]).all())


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_pivots_end_on_the_threshold_of_a_sort() -> None:
    """In a process of its own, because the interpreter is chosen when Triton is imported."""
    code = """
import numpy as np, torch
from bench.pivot import PivotSampler
from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.sampler.reference import survivors
np.seterr(all="ignore")
logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1)) * 3
logits[1] = logits[1].round()
for top_k, top_p in ((50, 0.95), (5, 1.0), (0, 0.9), (1500, 0.5)):
    sampler = PivotSampler(2, 3000, logits.device)
    tokens = sampler.draw(logits, 0.7, top_k, top_p)
    params = DrawParams(temperature=0.7, top_k=top_k, top_p=top_p)
    kept = survivors(logits, [SamplingRow(params, seed=0)] * 2)
    assert bool(kept.gather(1, tokens[:, None]).all()), (top_k, top_p)
    found = logits / 0.7 >= sampler.edges[:, None] - 1e-5
    assert torch.equal(found, kept), (top_k, top_p, found.sum(-1), kept.sum(-1))
print("equal")
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr
