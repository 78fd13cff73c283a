"""Decode attention over a paged pool, its keys split over programs, in Triton.

One program serves all heads of a group, so that keys and values are read once, and a stretch of a
sequence; a second kernel joins the stretches. Dao et al., "Flash-Decoding for long-context
inference" (2023); the running softmax is Milakov and Gimelshein's (2018).
"""

# ruff: noqa: N803, PLR0917, PLR0915
# Compile-time constants are in capitals, as is usual in Triton, and kernels take what they take,
# in one function.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotswap.engine.blocks import BLOCK_TOKENS
from hotswap.engine.kernels.norm import FLOATS
from hotswap.engine.kernels.shapes import expect, output

_MOST_SPLITS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 2
_MULTIPROCESSORS_ELSEWHERE = 4
"""What Triton's interpreter is taken for."""
_LEAST_DOT = 16
"""Rows and columns of the smallest product that tensor cores compute."""
_TILE_BYTES = 16 << 10
"""Of the keys that a program looks at in one turn; a few of these are on their way at a time."""
_ENTRIES_OF_4_WARPS = 2048
"""Of the running sums. Compiled for sm_90 in bfloat16 with twice as many, 4 warps take 144
registers a thread and 8 take 99."""
_LOG2_E = tl.constexpr(1.4426950408889634)


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
    rows, heads, size = query.shape
    groups, slots, value_size = values.shape
    expect("query", query, (rows, heads, size), *FLOATS)
    expect("keys", keys, (groups, slots, size), query.dtype)
    expect("values", values, (groups, slots, value_size), query.dtype)
    expect("tables", tables, (rows, tables.shape[1]), torch.int32)
    expect("lengths", lengths, (rows,), torch.int32)
    if heads % groups:
        raise ValueError(f"{heads} heads do not share {groups} groups evenly")
    if sinks is not None:
        expect("sinks", sinks, (heads,), *FLOATS)
    out = output("out", out, (rows, heads, value_size), query)
    if not rows:
        return out
    shape = _scratch_shape(query, values, tables)
    parts = _parts(attention_scratch(query, values, tables) if scratch is None else scratch, shape)
    tile_heads, tile_size, tile_value = (
        max(_LEAST_DOT, triton.next_power_of_2(count))
        for count in (heads // groups, size, value_size)
    )
    _attend_to_split[(rows, groups, shape.splits)](
        query, keys, values, tables, lengths, sinks, out, *parts,
        scale,
        *query.stride()[:2], *keys.stride()[:2], *values.stride()[:2], tables.stride(0),
        *out.stride()[:2],
        window, softcap, shape.splits, heads, heads // groups, size, value_size,
        tile_heads, tile_size, tile_value, _tile_tokens(tile_size * query.element_size()),
        BLOCK_TOKENS,
        num_warps=4 if tile_heads * tile_value <= _ENTRIES_OF_4_WARPS else 8,
        enable_fp_fusion=True,
    )  # fmt: skip
    if shape.splits > 1:
        _join_splits[(rows, heads)](
            *parts, out, *out.stride()[:2],
            heads, shape.splits, value_size, triton.next_power_of_2(value_size),
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


def attention_scratch(query: Tensor, values: Tensor, tables: Tensor) -> Tensor:
    return query.new_empty(_scratch_shape(query, values, tables).entries, dtype=torch.float32)


def split_count(programs: int, blocks: int, multiprocessors: int) -> int:
    """Into how many stretches the longest possible sequence is divided: a power of two, so many
    that ``programs`` (pairs of a row and a group) times it fills the device, and none shorter than
    the shortest turn."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(programs, 1)
    turns = blocks * BLOCK_TOKENS // _LEAST_DOT
    most = max(1, min(wanted, turns, _MOST_SPLITS))
    return 1 << (most.bit_length() - 1)


class _ScratchShape(NamedTuple):
    rows: int
    heads: int
    splits: int
    value_size: int

    @property
    def entries(self) -> int:
        if self.splits == 1:
            return 0
        return self.rows * self.heads * self.splits * (self.value_size + 2)


def _scratch_shape(query: Tensor, values: Tensor, tables: Tensor) -> _ScratchShape:
    rows, heads, _ = query.shape
    groups, _, value_size = values.shape
    multiprocessors = _MULTIPROCESSORS_ELSEWHERE
    if query.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(query.device).multi_processor_count
    splits = split_count(rows * groups, tables.shape[1], multiprocessors)
    return _ScratchShape(rows, heads, splits, value_size)


def _parts(scratch: Tensor, shape: _ScratchShape) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima and sums of the weights, [rows, heads, splits], and weighted sums of the values,
    [rows, heads, splits, value size]."""
    if scratch.numel() < shape.entries:
        raise ValueError(f"scratch has {scratch.numel()} entries and needs {shape.entries}")
    expect("scratch", scratch, (scratch.numel(),), torch.float32)
    stretches = shape.rows * shape.heads * shape.splits if shape.splits > 1 else 0
    return scratch[:stretches], scratch[stretches : 2 * stretches], scratch[2 * stretches :]


def _tile_tokens(row_bytes: int) -> int:
    return min(max(_TILE_BYTES // row_bytes, _LEAST_DOT), 128)


@triton.jit
def _attend_to_split(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    maxima: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    keys_group: tl.tensor,
    keys_slot: tl.tensor,
    values_group: tl.tensor,
    values_slot: tl.tensor,
    tables_row: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TILE_VALUE: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    split = tl.program_id(2)
    in_group = tl.arange(0, TILE_HEADS)
    is_head = in_group < GROUP_HEADS
    head = group * GROUP_HEADS + in_group
    entry = tl.arange(0, TILE_SIZE)
    value_entry = tl.arange(0, TILE_VALUE)

    # This program's share of the turns that the sequence takes, each TILE_TOKENS positions.
    length = tl.load(lengths + row)
    first = 0
    if WINDOW is not None:
        first = tl.maximum(length - WINDOW, 0)
    first_turn = first // TILE_TOKENS
    turns = tl.cdiv(length, TILE_TOKENS) - first_turn
    share = tl.cdiv(turns, SPLITS)
    begin = first_turn + split * share
    end = tl.minimum(begin + share, first_turn + turns)

    queries = tl.load(
        query + row * query_row + head[:, None] * query_head + entry[None, :],
        mask=is_head[:, None] & (entry < SIZE)[None, :],
        other=0.0,
    )
    # Scores and maxima are in powers of two. A sink is a key, seen once, whose value is zero.
    maximum = tl.full([TILE_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_HEADS], tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=is_head, other=0.0).to(tl.float32)
        maximum = tl.where(split == 0, sink * _LOG2_E, maximum)
        total = tl.where(split == 0, 1.0, total)
    attended = tl.zeros([TILE_HEADS, TILE_VALUE], tl.float32)

    for turn in range(begin, end):
        position = turn * TILE_TOKENS + tl.arange(0, TILE_TOKENS)
        visible = (position >= first) & (position < length)
        block = tl.load(tables + row * tables_row + position // BLOCK, mask=visible, other=0)
        slot = block.to(tl.int64) * BLOCK + position % BLOCK
        key = tl.load(
            keys + group.to(tl.int64) * keys_group + slot[None, :] * keys_slot + entry[:, None],
            mask=visible[None, :] & (entry < SIZE)[:, None],
            other=0.0,
        )
        score = tl.dot(queries, key, input_precision="ieee") * scale
        if SOFTCAP is not None:
            score = SOFTCAP * _tanh(score / SOFTCAP)
        score = tl.where(visible[None, :], score * _LOG2_E, float("-inf"))
        # Every turn sees at least one position, so the new maximum is a number.
        higher = tl.maximum(maximum, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        fading = tl.exp2(maximum - higher)
        maximum = higher
        total = total * fading + tl.sum(weight, axis=1)
        value = tl.load(
            values
            + group.to(tl.int64) * values_group
            + slot[:, None] * values_slot
            + value_entry[None, :],
            mask=visible[:, None] & (value_entry < VALUE_SIZE)[None, :],
            other=0.0,
        )
        attended = attended * fading[:, None]
        attended = tl.dot(weight.to(value.dtype), value, attended, input_precision="ieee")

    seen = (is_head & (total > 0))[:, None] & (value_entry < VALUE_SIZE)[None, :]
    if SPLITS == 1:
        result = attended / tl.where(total > 0, total, 1.0)[:, None]
        written = is_head[:, None] & (value_entry < VALUE_SIZE)[None, :]
        at = out + row * out_row + head[:, None] * out_head + value_entry[None, :]
        tl.store(at, result, mask=written)
    else:
        part = (row * HEADS + head) * SPLITS + split
        tl.store(maxima + part, maximum, mask=is_head)
        tl.store(totals + part, total, mask=is_head)
        tl.store(sums + part[:, None] * VALUE_SIZE + value_entry[None, :], attended, mask=seen)


@triton.jit
def _join_splits(
    maxima: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    TILE_VALUE: tl.constexpr,
) -> None:
    """One head of one row. Stretches that saw nothing have a total of zero and no sum."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = (row * HEADS + head) * SPLITS + tl.arange(0, SPLITS)
    entry = tl.arange(0, TILE_VALUE)
    total = tl.load(totals + part)
    maximum = tl.load(maxima + part)
    highest = tl.max(maximum, axis=0)
    share = tl.exp2(maximum - tl.where(highest == float("-inf"), 0.0, highest))
    sum_of_shares = tl.sum(share * total, axis=0)
    stretches = tl.load(
        sums + part[:, None] * VALUE_SIZE + entry[None, :],
        mask=(total > 0)[:, None] & (entry < VALUE_SIZE)[None, :],
        other=0.0,
    )
    joined = tl.sum(stretches * share[:, None], axis=0)
    result = joined / tl.where(sum_of_shares > 0, sum_of_shares, 1.0)
    tl.store(out + row * out_row + head * out_head + entry, result, mask=entry < VALUE_SIZE)


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """Exact to about 1e-7, absolutely."""
    fading = tl.exp(-2 * tl.abs(x))
    size = (1 - fading) / (1 + fading)
    return tl.where(x < 0, -size, size)
