from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Dice = Callable[..., Any]
EPS = 1e-5


@pytest.mark.parametrize("width", [1, 7, 64, 100, 2560])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_it_equals_the_reference(
    fused: Any, dice: Dice, width: int, dtype: str, weight_dtype: str
) -> None:
    import torch

    from hotswap.engine.kernels import reference
    from tests.engine.kernels.closeness import assert_same

    if dtype == "float32" and weight_dtype == "bfloat16":
        with pytest.raises(ValueError, match="weight"):
            fused.rms_norm(dice(1, width), dice(width, dtype=torch.bfloat16), EPS)
        return
    x, residual = (dice(5, width, dtype=getattr(torch, dtype)) for _ in range(2))
    weight = dice(width, dtype=getattr(torch, weight_dtype))
    assert_same(fused.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    got = fused.add_rms_norm(x, residual, weight, EPS)
    wanted = reference.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(got[1], wanted[1])
    assert_same(got[0], wanted[0])


def test_a_weight_of_the_same_type_meets_the_rounded_quotient(dice: Dice) -> None:
    """Llama's way and Gemma's, as transformers computes them."""
    import torch
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from hotswap.engine.kernels import reference

    x, weight = dice(9, 64, dtype=torch.bfloat16), dice(64, dtype=torch.bfloat16)
    llama, gemma = LlamaRMSNorm(64, EPS).bfloat16(), Gemma3RMSNorm(64, EPS).bfloat16()
    for norm in (llama, gemma):
        norm.to(x.device).weight.data.copy_(weight)
    with torch.no_grad():
        assert torch.equal(reference.rms_norm(x, weight, EPS), llama(x))
        assert torch.equal(reference.rms_norm(x, 1 + weight.float(), EPS), gemma(x))
    assert not torch.equal(llama(x), reference.rms_norm(x, weight.float(), EPS))


def test_in_place_and_strided(fused: Any, dice: Dice) -> None:
    import torch

    wide, residual, weight = dice(4, 96), dice(4, 32), dice(32)
    wanted = fused.add_rms_norm(wide[:, 32:64].clone(), residual, weight, EPS)
    before = wide.clone()
    x = wide[:, 32:64]
    fused.add_rms_norm(x, residual, weight, EPS, out=x, total=residual)
    assert torch.equal(x, wanted[0])
    assert torch.equal(residual, wanted[1])
    assert torch.equal(wide[:, :32], before[:, :32])
    assert torch.equal(wide[:, 64:], before[:, 64:])
    alone = fused.rms_norm(residual, weight, EPS)
    fused.rms_norm(residual, weight, EPS, out=residual)
    assert torch.equal(residual, alone)


def test_no_rows_are_no_launch(fused: Any, dice: Dice) -> None:
    assert fused.rms_norm(dice(0, 8), dice(8), EPS).shape == (0, 8)
