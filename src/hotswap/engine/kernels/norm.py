"""Root mean square norms, with and without the sum before them, in Triton."""

# ruff: noqa: N803, PLR0917
# Compile-time constants are in capitals, as is usual in Triton, and kernels take what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotswap.engine.kernels.shapes import expect, output

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    rows, width = x.shape
    _expect_norm(x, weight)
    out = output("out", out, (rows, width), x)
    if rows:
        tile, warps = _tile(width)
        _normed_rows[(rows,)](
            x, weight, out, width, eps, x.stride(0), out.stride(0),
            weight.dtype == x.dtype, tile, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    _expect_norm(x, weight)
    expect("residual", residual, (rows, width), x.dtype)
    out = output("out", out, (rows, width), x)
    total = output("total", total, (rows, width), x)
    if rows:
        tile, warps = _tile(width)
        _summed_and_normed_rows[(rows,)](
            x, residual, weight, out, total, width, eps,
            x.stride(0), residual.stride(0), out.stride(0), total.stride(0),
            weight.dtype == x.dtype, tile, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out, total


def _expect_norm(x: Tensor, weight: Tensor) -> None:
    expect("x", x, tuple(x.shape), *FLOATS)
    expect("weight", weight, (x.shape[1],), x.dtype, torch.float32)


def _tile(width: int) -> tuple[int, int]:
    """Entries of a program, all of a row, and its warps."""
    tile = triton.next_power_of_2(width)
    return tile, min(max(tile // 512, 1), 16)


@triton.jit
def normed(
    x: tl.tensor,
    weight: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    ROUND_FIRST: tl.constexpr,
    rounding: tl.constexpr,
) -> tl.tensor:
    """Rows of ``x`` along its last axis, float32; what lies beyond ``width`` is zero."""
    scale = tl.rsqrt(tl.sum(x * x, axis=-1, keep_dims=True) / width + eps)
    quotient = x * scale
    if ROUND_FIRST:
        quotient = quotient.to(rounding).to(tl.float32)
    return quotient * weight.to(tl.float32)


@triton.jit
def _normed_rows(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    ROUND_FIRST: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < width
    own = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + column, mask=inside, other=0.0)
    result = normed(own, weights, width, eps, ROUND_FIRST, out.dtype.element_ty)
    tl.store(out + row * out_stride + column, result, mask=inside)


@triton.jit
def _summed_and_normed_rows(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    out_stride: tl.tensor,
    total_stride: tl.tensor,
    ROUND_FIRST: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < width
    own = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
    # The norm sees the sum as the next layer will: rounded.
    summed = (own + before.to(tl.float32)).to(total.dtype.element_ty)
    weights = tl.load(weight + column, mask=inside, other=0.0)
    result = normed(summed.to(tl.float32), weights, width, eps, ROUND_FIRST, out.dtype.element_ty)
    tl.store(total + row * total_stride + column, summed, mask=inside)
    tl.store(out + row * out_stride + column, result, mask=inside)
