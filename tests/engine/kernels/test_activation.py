from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Dice = Callable[..., Any]


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1, 33, 1024, 1500])
def test_it_equals_the_reference(
    fused: Any, dice: Dice, activation: str, dtype: str, width: int
) -> None:
    import torch

    from hotswap.engine.kernels import reference
    from tests.engine.kernels.closeness import assert_same

    gate_up = dice(3, 2 * width, dtype=getattr(torch, dtype))
    got = fused.gated_activation(gate_up, activation)
    wanted = reference.gated_activation(gate_up, activation)
    assert_same(got, wanted, 1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy, for the interpreter
def test_large_gates_open_and_close(fused: Any, dice: Dice, activation: str) -> None:
    import torch

    up = dice(1, 2)
    gate = torch.tensor([[200.0, -200.0]], device=up.device)
    got = fused.gated_activation(torch.cat([gate, up], dim=1), activation)
    torch.testing.assert_close(got, torch.where(gate > 0, gate * up, 0.0))


def test_rows_may_be_strided_and_the_output_given(fused: Any, dice: Dice) -> None:
    import torch

    wide = dice(4, 20)
    out = dice(4, 9)
    kept = out[:, 5:].clone()
    got = fused.gated_activation(wide[:, 3:13], "silu", out=out[:, :5])
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(out[:, :5], fused.gated_activation(wide[:, 3:13].clone(), "silu"))
    assert torch.equal(out[:, 5:], kept)


def test_what_does_not_fit_is_refused(fused: Any, dice: Dice) -> None:
    with pytest.raises(ValueError, match="relu"):
        fused.gated_activation(dice(2, 8), "relu")
    with pytest.raises(ValueError, match="gate_up"):
        fused.gated_activation(dice(2, 7), "silu")
    with pytest.raises(ValueError, match="gaps"):
        fused.gated_activation(dice(8, 2).T, "silu")
