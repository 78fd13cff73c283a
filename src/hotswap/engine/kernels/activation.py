"""The gate of a gated MLP, in Triton."""

# ruff: noqa: N803, PLR0917
# Compile-time constants are in capitals, as is usual in Triton, and kernels take what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotswap.engine.kernels.shapes import expect, output

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_TILE = 1024
_ROOT_OF_HALF = tl.constexpr(0.5**0.5)
_ROOT_OF_TWO_OVER_PI = tl.constexpr(0.7978845608028654)


def gated_activation(gate_up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"no activation is called {activation!r}")
    tokens, both = gate_up.shape
    width = both // 2
    expect("gate_up", gate_up, (tokens, 2 * width), torch.float32, torch.bfloat16, torch.float16)
    out = output("out", out, (tokens, width), gate_up)
    tile = min(_TILE, triton.next_power_of_2(width))
    if tokens:
        _gate[(tokens, triton.cdiv(width, tile))](
            gate_up, out, width, gate_up.stride(0), out.stride(0), activation, tile,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


@triton.jit
def _gate(
    gate_up: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    gate_up_stride: tl.tensor,
    out_stride: tl.tensor,
    ACTIVATION: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < width
    gates = gate_up + row * gate_up_stride + column
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + width, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        active = gate / (1 + tl.exp(-gate))
    elif ACTIVATION == "gelu":
        active = 0.5 * gate * (1 + tl.erf(gate * _ROOT_OF_HALF))
    else:
        inner = _ROOT_OF_TWO_OVER_PI * (gate + 0.044715 * gate * gate * gate)
        active = gate / (1 + tl.exp(-2 * inner))  # (1 + tanh(x)) / 2, without cancellation
    # The model's own modules round here, between the activation and the product.
    rounded = active.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * out_stride + column, rounded * up, mask=inside)
