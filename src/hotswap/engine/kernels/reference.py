"""The decode step's kernels in plain torch: what the fused ones compute, written to be read."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from hotswap.engine.blocks import BLOCK_TOKENS

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
}


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    del scratch  # one pass needs none
    rows, heads, size = query.shape
    groups = keys.shape[0]
    positions = torch.arange(tables.shape[1] * BLOCK_TOKENS, device=query.device)
    visible = positions < lengths[:, None]
    if window is not None:
        visible &= positions >= lengths[:, None] - window
    slots = tables[:, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    seen_keys, seen_values = (
        pool[:, torch.where(visible, slots, 0)].float().where(visible[None, :, :, None], 0)
        for pool in (keys, values)
    )
    grouped = query.float().view(rows, groups, heads // groups, size)
    scores = torch.einsum("bghd,gbld->bghl", grouped, seen_keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible[:, None, None], -math.inf).flatten(1, 2)
    if sinks is None:
        weights = scores.softmax(-1).nan_to_num(0.0)  # a row without tokens
    else:
        column = sinks.float()[None, :, None].expand(rows, heads, 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    weights = weights.view(rows, groups, heads // groups, -1)
    attended = torch.einsum("bghl,gbld->bghd", weights, seen_values).flatten(1, 2)
    return _result(attended.to(query.dtype), out)


def attention_scratch(query: Tensor, values: Tensor, tables: Tensor) -> Tensor:
    del values, tables
    return query.new_empty(0, dtype=torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    exact = x.float()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    rounded = exact.to(x.dtype) if weight.dtype == x.dtype else exact
    return _result((rounded * weight).to(x.dtype), out)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    total = _result(x + residual, total)
    return rms_norm(total, weight, eps, out=out), total


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
    groups = keys.shape[0]
    query, key, value = qkv[:, : -2 * groups], qkv[:, -2 * groups : -groups], qkv[:, -groups:]
    if q_norm is not None and k_norm is not None:
        query, key = rms_norm(query, q_norm, eps), rms_norm(key, k_norm, eps)
    turns = cos[positions][:, None].float(), sin[positions][:, None].float()
    stored = slots >= 0
    keys[:, slots[stored]] = _turned(key, *turns)[stored].transpose(0, 1)
    values[:, slots[stored]] = value[stored].transpose(0, 1)
    return _result(_turned(query, *turns), out)


def gated_activation(gate_up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return _result(_ACTIVATIONS[activation](gate) * up, out)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first entries of each head, rounded once."""
    rotary = cos.shape[-1]
    turned, rest = heads[..., :rotary], heads[..., rotary:]
    first, second = turned.float().chunk(2, dim=-1)
    across = torch.cat([-second, first], dim=-1)
    return torch.cat([(turned.float() * cos + across * sin).to(heads.dtype), rest], dim=-1)


def _result(computed: Tensor, out: Tensor | None) -> Tensor:
    return computed if out is None else out.copy_(computed)
