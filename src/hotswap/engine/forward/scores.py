"""What one query makes of its keys: the variants of attention, and how parts of it are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
"""What was seen of some of the keys, [..., size], and the logarithm of its weight, [...]."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    scale: float
    window: int | None = None
    """Keys that a position sees, itself included."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """[heads], logits of a key that has no value."""

    @property
    def by_hand(self) -> bool:
        """torch's kernels do not know of it."""
        return self.softcap is not None or self.sinks is not None

    def limits(self, length: int) -> bool:
        """Some of ``length`` keys are out of a position's sight."""
        return self.window is not None and self.window < length


def attend_in_part(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Part:
    """Queries [batch, heads, rows, size] on some of their keys [batch, heads, keys, size]; CPU
    only. ``mask`` is added to the scores."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    part = flash(queries, keys, values, 0.0, causal, attn_mask=mask, scale=scale)
    return cast(Part, part)


def merged(parts: Sequence[Part]) -> Tensor:
    """Attention to all of the keys (Dao et al., "FlashAttention", 2022, section 3.1)."""
    (out, weight), *others = parts
    for other, its_weight in others:
        share = (its_weight - weight).sigmoid_()
        out = torch.lerp(out, other, share[..., None].to(out.dtype))
        weight = torch.logaddexp(weight, its_weight)
    return out


def attend_by_hand(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    options: AttentionOptions,
    *,
    mask: Tensor | None,
    heads: tuple[int, ...],
) -> Tensor:
    """Queries [..., rows, size] on keys and values [..., keys, size], softcap and sinks included.
    ``heads``: the shape that the sinks, one per head, take among the dimensions of the scores."""
    scores = (queries @ keys.transpose(-1, -2)) * options.scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.float()
    if mask is not None:
        scores += mask
    if options.sinks is None:
        return scores.softmax(-1).to(values.dtype) @ values
    sinks = options.sinks.float().view(heads).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    return weights.to(values.dtype) @ values
