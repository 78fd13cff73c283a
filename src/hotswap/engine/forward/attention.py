"""Attention over a flat batch of many sequences, whose keys and values lie in a pool of blocks.

On a CPU nothing is gathered: neighbouring slots are one strided view, whether of one sequence or
of several that lie at equal distances. Where a sequence has several stretches, each is attended to
alone (once for all sequences that share it), and what comes out is merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.layout import Lanes, Span, Stretch, last, layout
from hotswap.engine.forward.scores import (
    AttentionOptions,
    Part,
    attend_by_hand,
    attend_in_part,
    merged,
)
from hotswap.engine.kv_pool import KVPool

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class FlatStep:
    """One step: its tokens as tensors on the device, and the attention among them."""

    def __init__(self, pool: KVPool, segments: Sequence[Segment], device: torch.device) -> None:
        """Of segments in the order that `layout.in_order` gives them."""
        self._pool = pool
        self._layout = layout(segments, pool.slots)
        rows = [self._layout.ids, self._layout.positions, self._layout.slots]
        self.ids, self.positions, self._slots = torch.tensor(rows).to(device)
        """Each int64 [tokens]."""
        self.longest = max(self._layout.positions) + 1
        """Tokens of the longest sequence."""
        sampled = self._layout.sampled
        all_of_them = len(sampled) == len(self._layout.ids)
        self.sampled = None if all_of_them else torch.tensor(sampled, dtype=torch.int64).to(device)
        """Tokens whose logits are wanted, int64; None: all."""
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Store keys and values [tokens, groups, size] and let each token attend to its own
        sequence: query [tokens, heads, size] to [tokens, heads, value size]."""
        pools = self._pool.layer(layer, key, value)
        for pool, new in zip(pools, (key, value), strict=True):
            # A lane's mask hides what lies behind its end, but not NaN: none may be stored.
            finite = new.nan_to_num(0.0, 0.0, 0.0) if pool.device.type == "cpu" else new
            pool.index_copy_(1, self._slots, finite.transpose(0, 1))
        parts = [self._lanes(query, pools, lanes, options) for lanes in self._layout.lanes]
        for span in self._layout.spans:
            own = key[span.place], value[span.place]
            parts.append(_span(query[span.place], own, pools, span, options))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _lanes(self, query: Tensor, pools: Pair, lanes: Lanes, options: AttentionOptions) -> Tensor:
        """The heads of a group are as many queries to the same keys."""
        rows, groups = query[lanes.place], pools[0].shape[0]
        count, heads, size = rows.shape
        queries = rows.reshape(count, groups, heads // groups, size)
        if not lanes.shared:
            out = self._whole(queries, pools, lanes, options)
        elif _can_merge(pools, lanes.longest, options):
            own = [_view(pool, lanes) for pool in pools]
            mask = self._mask(lanes, None, query.dtype)
            parts = [attend_in_part(queries, own[0], own[1], options.scale, mask=mask)]
            # What all begin with is looked at by all of them together.
            together = queries.transpose(0, 1).reshape(1, groups, -1, size)
            for stretch in lanes.shared:
                seen = _stretch(pools, stretch)
                part = attend_in_part(together, seen[0], seen[1], options.scale)
                parts.append(_regrouped(part, (groups, count, heads // groups), (1, 0, 2)))
            out = merged(parts)
        else:
            alone = queries[:, :, :, None]
            out = torch.cat(
                [
                    _gathered(alone[row], pools, lanes.stretches(row), options)
                    for row in range(count)
                ]
            )
        return out.reshape(count, heads, -1)

    def _whole(
        self, queries: Tensor, pools: Pair, lanes: Lanes, options: AttentionOptions
    ) -> Tensor:
        """Lanes that are whole sequences."""
        longest = lanes.longest
        if len(lanes.lengths) == 1:
            skipped = max(0, longest - (options.window or longest))
            mask = None
        else:
            skipped = 0
            mask = self._mask(lanes, options.window, queries.dtype)
        keys, values = (_view(pool, lanes, skipped) for pool in pools)
        if options.by_hand:
            heads = *queries.shape[1:3], 1
            return attend_by_hand(queries, keys, values, options, mask=mask, heads=heads)
        out: Tensor = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=options.scale
        )
        return out

    def _mask(self, lanes: Lanes, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What to add to the scores, [count, 1, 1, longest]; None: nothing."""
        name = lanes.place.start, window
        if name not in self._masks:
            self._masks[name] = _lane_mask(lanes, window, dtype, self.ids.device)
        return self._masks[name]


def _can_merge(pools: Pair, length: int, options: AttentionOptions) -> bool:
    """The kernel that tells how much each part weighs can do it."""
    keys, values = pools
    return (
        keys.device.type == "cpu"
        and keys.shape[2] == values.shape[2]
        and not options.by_hand
        and not options.limits(length)
    )


def _view(pool: Tensor, lanes: Lanes, skipped: int = 0) -> Tensor:
    """The lanes of [groups, slots, size] as [count, groups, longest - skipped, size]."""
    groups, _, size = pool.shape
    group_stride, slot_stride, _ = pool.stride()
    return pool.as_strided(
        (len(lanes.lengths), groups, max(lanes.lengths) - skipped, size),
        (lanes.stride * slot_stride, group_stride, slot_stride, 1),
        pool.storage_offset() + (lanes.first + skipped) * slot_stride,
    )


def _stretch(pools: Pair, stretch: Stretch) -> Pair:
    """Keys and values [1, groups, length, size]."""
    first, length = stretch
    keys, values = (pool[None, :, first : first + length] for pool in pools)
    return keys, values


def _regrouped(part: Part, shape: tuple[int, ...], order: tuple[int, ...]) -> Part:
    out, weight = part
    return out.view(*shape, -1).permute(*order, len(order)), weight.view(shape).permute(order)


def _lane_mask(
    lanes: Lanes, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    longest = max(lanes.lengths)
    if min(lanes.lengths) == longest and (window is None or window >= longest):
        return None
    lengths = torch.tensor(lanes.lengths, device=device)[:, None]
    positions = torch.arange(longest, device=device)[None]
    hidden = positions >= lengths
    if window is not None:
        hidden |= positions < lengths - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
    return mask[:, None, None]


def _span(query: Tensor, new: Pair, pools: Pair, span: Span, options: AttentionOptions) -> Tensor:
    """Several tokens of one sequence; ``new``: their own keys and values."""
    count, heads, size = query.shape
    groups = pools[0].shape[0]
    queries = query.reshape(count, groups, heads // groups, size).permute(1, 2, 0, 3)
    keys, values = (
        tensor.transpose(0, 1)[:, None].expand(-1, heads // groups, -1, -1) for tensor in new
    )
    if options.by_hand or options.limits(span.start + count):
        out = _gathered(queries, pools, (*span.past, *span.own), options)
    elif not span.past:
        out = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=options.scale
        )
    elif _can_merge(pools, span.start + count, options):
        parts = [attend_in_part(queries, keys, values, options.scale, causal=True)]
        # To what lies before them all tokens attend alike, with all the heads of a group.
        together = queries.reshape(1, groups, -1, size)
        for stretch in span.past:
            seen = _stretch(pools, stretch)
            part = attend_in_part(together, seen[0], seen[1], options.scale)
            parts.append(_regrouped(part, queries.shape[:3], (0, 1, 2)))
        out = merged(parts)
    else:
        out = _gathered(queries, pools, (*span.past, *span.own), options)
    return out.permute(2, 0, 1, 3).reshape(count, heads, -1)


def _gathered(
    queries: Tensor, pools: Pair, stretches: Sequence[Stretch], options: AttentionOptions
) -> Tensor:
    """The general way, for what the kernels have no place for: the last tokens of a sequence,
    queries [groups, heads of a group, count, size], with its keys copied side by side."""
    groups, shared, count, _ = queries.shape
    if options.window is not None:  # what comes before it nobody sees
        stretches = last(stretches, options.window + count - 1)
    keys, values = (
        torch.cat([pool[:, None, first : first + n] for first, n in stretches], dim=2)
        for pool in pools
    )
    mask = _span_mask(count, keys.shape[2], options.window, queries)
    if options.by_hand:
        heads = groups, shared, 1, 1
        return attend_by_hand(queries, keys, values, options, mask=mask, heads=heads)
    out: Tensor = F.scaled_dot_product_attention(
        queries,
        keys.expand(-1, shared, -1, -1),
        values.expand(-1, shared, -1, -1),
        attn_mask=mask,
        scale=options.scale,
    )
    return out


def _span_mask(count: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """What to add to the scores of the last ``count`` of ``length`` positions."""
    positions = torch.arange(length - count, length, device=like.device)[:, None]
    distance = positions - torch.arange(length, device=like.device)[None]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -math.inf)
