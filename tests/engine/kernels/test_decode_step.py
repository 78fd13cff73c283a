"""All kernels together: the decode steps of small models, beside the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.forward.test_lean import Stepping, model_of, plain
from tests.engine.forward.test_recorded import recorded

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gemma2", "phi3_partial"])
def test_decode_steps_give_the_logits_of_the_model(
    checkpoint: Checkpoint, fused: Any, architecture: str
) -> None:
    import triton

    if not triton.knobs.runtime.interpret:
        pytest.skip("the model and the pool are on the host")
    model = model_of(checkpoint(architecture))
    stepping = Stepping(recorded(model, kernels=fused), plain(model))
    assert stepping.step([(0, 0, 17), (1, 0, 9), (2, 0, 30)]) < 1e-4
    for after in range(2):
        parts = [(n, start + after, start + after + 1) for n, start in ((0, 17), (1, 9), (2, 30))]
        assert stepping.step(parts) < 1e-4
