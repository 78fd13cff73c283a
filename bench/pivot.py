"""The strongest open rival of our sampler on CUDA devices, written from its paper: Park et al.,
"Qrita: High-performance Top-k and Top-p using Pivot-based Truncation and Selection" (2026).

A row's logits are taken for normally distributed: only those above mean + z deviations, of which
there are hardly fewer than k, go to a buffer, and if there are fewer after all, the row is searched
whole. The search for a threshold divides the interval that it lies in by three pivots at a time.
With the smallest logit above each pivot and how often it occurs, it ends on the k-th largest logit,
and for top-p on the one that crosses the mass, whatever is equal to it. The draw is part of the
kernel, which is kinder to the rival than vLLM, where softmax and draw follow in torch.
"""

# ruff: noqa: N803, PLR0915, PLR0917
# mypy: disallow-untyped-decorators=False
# Compile-time constants are in capitals, as is usual in Triton, and kernels take what they take.

from __future__ import annotations

from statistics import NormalDist

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
_SLACK = 4.0
"""Logits above the cut, per k."""


class PivotSampler:
    """Draws with one temperature, top-k and top-p for all rows."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        self._buffer = torch.empty(rows, vocab, device=device)
        self._counts = torch.zeros(rows, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.edges = torch.zeros(rows, device=device)
        """What the last draw's survivors were not below, in units of the temperature."""

    def draw(self, logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
        """A token for each row of ``logits`` [rows, vocab]: int64 [rows], overwritten by the next
        draw."""
        rows, vocab = logits.shape
        share = min(0.5, _SLACK * top_k / vocab) if top_k else 0.5
        deviations = NormalDist().inv_cdf(1 - share)
        self._counts.zero_()
        _draw[(rows,)](
            logits, logits.stride(0), self._buffer, self._counts, self._tokens, self.edges,
            vocab, 1 / temperature, deviations, top_k, top_p, 1, _TILE, num_warps=8,
        )  # fmt: skip
        return self._tokens[:rows]


@triton.jit
def _above(
    source: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    pivot: tl.tensor,
    peak: tl.tensor,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Of the numbers above a pivot: how many, their mass, the smallest, and how often it is."""
    counts, masses = tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.float32)
    least, least_counts = tl.full([TILE], float("inf"), tl.float32), tl.zeros([TILE], tl.int32)
    for start in range(0, count, TILE):
        entry = start + tl.arange(0, TILE)
        x = tl.load(source + entry, mask=entry < count, other=float("-inf")).to(tl.float32) * scale
        over = x > pivot
        counts += over.to(tl.int32)
        masses += tl.where(over, tl.exp(x - peak), 0.0)
        least_counts = tl.where(over & (x < least), 1, least_counts + (over & (x == least)))
        least = tl.where(over, tl.minimum(least, x), least)
    smallest = tl.min(least, 0)
    times = tl.sum(tl.where(least == smallest, least_counts, 0), 0)
    return tl.sum(counts, 0).to(tl.float32), tl.sum(masses, 0), smallest, times.to(tl.float32)


@triton.jit
def _edge(
    source: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    low: tl.tensor,
    peak: tl.tensor,
    target: tl.tensor,
    BY_MASS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The number with which those from the largest on reach ``target``, in number or in mass."""
    high, edge = peak, peak
    searching = tl.full((), 64, tl.int32)
    while searching > 0:
        quarter, bottom = (high - low) * 0.25, low
        for step in tl.static_range(3):
            pivot = bottom + quarter * (step + 1)
            number, mass, smallest, times = _above(source, count, scale, pivot, peak, TILE)
            reached, last = number, times
            if BY_MASS:
                reached, last = mass, times * tl.exp(smallest - peak)
            enough = reached >= target
            ends = enough & (reached - last < target)
            edge = tl.where(ends & (searching > 0), smallest, edge)
            searching = tl.where(ends, 0, searching)
            # The threshold is above the last pivot with enough above it.
            low = tl.where(enough & (pivot > low), pivot, low)
            high = tl.where(enough, high, tl.minimum(high, pivot))
        searching -= 1
    return edge


@triton.jit
def _draw(
    logits: tl.tensor,
    stride: tl.tensor,
    buffer: tl.tensor,
    counts: tl.tensor,
    tokens: tl.tensor,
    edges: tl.tensor,
    vocab: tl.tensor,
    scale: tl.tensor,
    deviations: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    seed: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    own = logits + row.to(tl.int64) * stride
    kept = buffer + row.to(tl.int64) * vocab
    sums, squares = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    highs, lows = tl.full([TILE], float("-inf"), tl.float32), tl.full([TILE], 0.0, tl.float32)
    for start in range(0, vocab, TILE):
        entry = start + tl.arange(0, TILE)
        inside = entry < vocab
        x = tl.load(own + entry, mask=inside, other=0.0).to(tl.float32) * scale
        sums += x
        squares += x * x
        highs = tl.maximum(highs, tl.where(inside, x, float("-inf")))
        lows = tl.minimum(lows, x)
    mean = tl.sum(sums, 0) / vocab
    deviation = tl.sqrt(tl.maximum(tl.sum(squares, 0) / vocab - mean * mean, 0.0))
    peak, lowest = tl.max(highs, 0), tl.min(lows, 0) - 1.0
    edge = lowest
    if top_k > 0:
        cut = mean + deviations * deviation
        counters = counts + row + tl.zeros([TILE], tl.int32)
        for start in range(0, vocab, TILE):
            entry = start + tl.arange(0, TILE)
            x = tl.load(own + entry, mask=entry < vocab, other=float("-inf")).to(tl.float32)
            outlier = x * scale > cut
            place = tl.atomic_add(counters, 1, mask=outlier)
            tl.store(kept + place, x, mask=outlier)
        tl.debug_barrier()
        found = tl.load(counts + row, volatile=True)
        if found >= top_k:
            edge = _edge(kept, found, scale, cut, peak, top_k.to(tl.float32), False, TILE)
        else:
            edge = _edge(own, vocab, scale, lowest, peak, top_k.to(tl.float32), False, TILE)
        if top_p < 1:
            below = edge - tl.abs(edge) * 1e-6 - 1e-30
            if found >= top_k:
                _, total, _, _ = _above(kept, found, scale, below, peak, TILE)
                edge = _edge(kept, found, scale, below, peak, total * top_p, True, TILE)
            else:
                _, total, _, _ = _above(own, vocab, scale, below, peak, TILE)
                edge = _edge(own, vocab, scale, below, peak, total * top_p, True, TILE)
    elif top_p < 1:
        _, total, _, _ = _above(own, vocab, scale, lowest, peak, TILE)
        edge = _edge(own, vocab, scale, lowest, peak, total * top_p, True, TILE)
    tl.store(edges + row, edge)
    best, winners = tl.full([TILE], float("-inf"), tl.float32), tl.zeros([TILE], tl.int32)
    for start in range(0, vocab, TILE):
        entry = start + tl.arange(0, TILE)
        x = tl.load(own + entry, mask=entry < vocab, other=float("-inf")).to(tl.float32) * scale
        noise = -tl.log(-tl.log(tl.maximum(tl.rand(seed, row * vocab + entry), 1e-10)))
        score = tl.where(x >= edge, x + noise, float("-inf"))
        winners = tl.where(score > best, entry, winners)
        best = tl.maximum(best, score)
    top = tl.max(best, 0)
    tl.store(tokens + row, tl.max(tl.where(best == top, winners, 0), 0).to(tl.int64))
