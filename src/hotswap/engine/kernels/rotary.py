"""From the product with the query, key and value weights to queries and a filled pool, in
Triton."""

# ruff: noqa: N803, PLR0917
# Compile-time constants are in capitals, as is usual in Triton, and kernels take what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotswap.engine.kernels.norm import FLOATS, normed
from hotswap.engine.kernels.shapes import INTEGERS, expect, output

_ENTRIES = 1024
"""Of the heads that one program works on."""


def rope_and_store(
    qkv: Tensor,
    *,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    tokens, all_heads, size = qkv.shape
    groups, pool_slots, _ = keys.shape
    heads = all_heads - 2 * groups
    rotary = cos.shape[1]
    expect("qkv", qkv, (tokens, heads + 2 * groups, size), *FLOATS)
    expect("keys", keys, (groups, pool_slots, size), qkv.dtype)
    expect("values", values, (groups, pool_slots, size), qkv.dtype)
    expect("cos", cos, (cos.shape[0], rotary), *FLOATS)
    expect("sin", sin, tuple(cos.shape), cos.dtype)
    expect("positions", positions, (tokens,), *INTEGERS)
    expect("slots", slots, (tokens,), *INTEGERS)
    if rotary % 2 or rotary > size:
        raise ValueError(f"{rotary} entries of a head of {size} cannot be turned")
    if (q_norm is None) != (k_norm is None):
        raise ValueError("queries and keys are both normed or neither")
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            expect(name, weight, (size,), qkv.dtype, torch.float32)
    if q_norm is not None and k_norm is not None and q_norm.dtype != k_norm.dtype:
        raise ValueError("the weights of both norms are of one type")
    out = output("out", out, (tokens, heads, size), qkv)
    if not tokens:
        return out
    tile = triton.next_power_of_2(size)
    tile_heads = min(max(_ENTRIES // tile, 1), triton.next_power_of_2(all_heads))
    _turn_and_store[(tokens, triton.cdiv(all_heads, tile_heads))](
        qkv, cos, sin, positions, slots, keys, values, q_norm, k_norm, out, eps,
        *qkv.stride()[:2], *out.stride()[:2], *keys.stride()[:2], *values.stride()[:2],
        cos.stride(0), sin.stride(0),
        heads, groups, size, rotary, q_norm is not None and q_norm.dtype == qkv.dtype,
        tile_heads, tile, enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit
def _turn_and_store(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    qkv_token: tl.tensor,
    qkv_head: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    keys_group: tl.tensor,
    keys_slot: tl.tensor,
    values_group: tl.tensor,
    values_slot: tl.tensor,
    cos_position: tl.tensor,
    sin_position: tl.tensor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Some heads of one token: queries first, then keys, then values, as they lie in ``qkv``."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS))[:, None]
    entry = tl.arange(0, TILE)[None, :]
    is_query = head < HEADS
    is_turned = head < HEADS + GROUPS
    inside = (head < HEADS + 2 * GROUPS) & (entry < SIZE)

    # Each entry with the one of the other half that it is turned with.
    half: tl.constexpr = ROTARY // 2
    partner = tl.where(entry < half, entry + half, tl.where(entry < ROTARY, entry - half, entry))
    row = qkv + token * qkv_token + head * qkv_head
    own = tl.load(row + entry, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row + partner, mask=inside, other=0.0).to(tl.float32)
    rounding: tl.constexpr = out.dtype.element_ty
    if q_norm is not None:
        weight = tl.where(is_query, q_norm + entry, k_norm + entry)
        own_weight = tl.load(weight, mask=inside & is_turned, other=0.0)
        weight = tl.where(is_query, q_norm + partner, k_norm + partner)
        other_weight = tl.load(weight, mask=inside & is_turned, other=0.0)
        # The partners are the same entries in another order, so their mean square is the same.
        own_normed = normed(own, own_weight, SIZE, eps, ROUND_FIRST, rounding)
        other_normed = normed(other, other_weight, SIZE, eps, ROUND_FIRST, rounding)
        own = tl.where(is_turned, own_normed.to(rounding).to(tl.float32), own)
        other = tl.where(is_turned, other_normed.to(rounding).to(tl.float32), other)

    position = tl.load(positions + token).to(tl.int64)
    turning = entry < ROTARY
    cosine = tl.load(cos + position * cos_position + entry, mask=turning, other=1.0)
    sine = tl.load(sin + position * sin_position + entry, mask=turning, other=0.0)
    sine = tl.where(entry < half, -sine.to(tl.float32), sine.to(tl.float32))
    turned = tl.where(is_turned, own * cosine.to(tl.float32) + other * sine, own)

    slot = tl.load(slots + token).to(tl.int64)
    query_at = out + token * out_token + head * out_head + entry
    tl.store(query_at, turned, mask=inside & is_query)
    if slot >= 0:
        is_key = is_turned & (head >= HEADS)
        key_at = keys + (head - HEADS).to(tl.int64) * keys_group + slot * keys_slot + entry
        tl.store(key_at, turned, mask=inside & is_key)
        group = (head - HEADS - GROUPS).to(tl.int64)
        value_at = values + group * values_group + slot * values_slot + entry
        tl.store(value_at, turned, mask=inside & (head >= HEADS + GROUPS))
