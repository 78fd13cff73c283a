"""The sampler in plain torch: what a faster one is compared with, and what runs where none does.

What every sampler computes, to the last bit:

1. Logits are float32. A bias is added, then the repetition penalty divides or multiplies what is in
   prompt or answer, then ``frequency * count + presence`` is taken off what is in the answer; what
   is forbidden or not allowed is -inf.
2. A row whose largest logit is not a finite number has no distribution: like a greedy row it gets
   what argmax finds, NaN being above everything, the first of equals.
3. Filters are thresholds on those logits, so ties at a threshold survive together, and neither the
   temperature nor the order of sums changes who they are. With weights of one and k, or with
   `mass((logit - largest) * scale)` and the share top-p of their sum over what top-k leaves, a
   logit survives if the weights *above* it sum up to less than that. Min-p ends ``floor`` below
   the largest logit. All sums are integers.
4. The survivor with the largest ``(logit - largest) * scale + gumbel`` is drawn, of equals the
   first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hotswap.engine.drawing import SamplingRow
from hotswap.engine.sampler.arithmetic import mass
from hotswap.engine.sampler.drawn import Drawn, Logprobs
from hotswap.engine.sampler.philox import gumbel, gumbel_rows
from hotswap.engine.sampler.settled import Settled, settle
from hotswap.engine.transfers import sent

_CHUNK = 1024
_HEAD = 256
"""Largest logits that are looked at before a row is sorted whole for top-p."""


class ReferenceSampler:
    """Draws the next token of each row of a batch of logits."""

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Drawn:
        """One draw for each row of ``logits`` ([rows, vocab], any float type)."""
        if all(row.plain for row in rows):
            return Drawn(highest(logits))
        raw = logits.float()
        edited = _edit(raw, rows)
        tokens = highest(edited)
        settled = [settle(row.params, logits.shape[-1]) for row in rows]
        drawn = [i for i, row in enumerate(settled) if not row.greedy]
        if drawn:
            index = sent(drawn, edited.device)
            chosen = _Rows(edited[index], [settled[i] for i in drawn])
            tokens[index] = chosen.sample([rows[i] for i in drawn], tokens[index])
        return Drawn(tokens, _logprobs(raw, tokens, rows))


def highest(logits: Tensor) -> Tensor:
    """The largest of each row, the first one among equals: int64 [rows].

    In two steps, because finding a maximum is ten times faster than finding where it is.
    """
    count, vocab = logits.shape
    whole = vocab - vocab % _CHUNK
    peaks = logits[:, :whole].reshape(count, whole // _CHUNK, _CHUNK).amax(-1)
    if whole < vocab:
        peaks = torch.cat([peaks, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)
    first = peaks.argmax(-1, keepdim=True) * _CHUNK
    ids = (first + torch.arange(_CHUNK, device=logits.device)).clamp_(max=vocab - 1)
    within = logits.gather(1, ids).argmax(-1)
    return first[:, 0].add_(within)


def survivors(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Which tokens may be drawn: bool [rows, vocab], from logits already edited."""
    return _Rows(logits, [settle(row.params, logits.shape[-1]) for row in rows]).survivors()


def _edit(raw: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Bias, penalties and forbidden tokens; ``raw`` itself where no row asks for any."""
    if not any(row.edits for row in rows):
        return raw
    edited = raw.clone()
    for row, logits in zip(rows, edited, strict=True):
        if row.edits:
            _edit_row(logits, row)
    return edited


def _edit_row(logits: Tensor, row: SamplingRow) -> None:
    params, device = settle(row.params, logits.shape[0]), logits.device
    bias, history = row.params.logit_bias, row.history
    if bias:
        logits[sent(list(bias), device)] += sent(list(bias.values()), device, torch.float32)
    if history.ids:
        ids = sent(history.ids, device)
        seen, counts = logits[ids], sent(history.counts, device, torch.float32)
        seen = torch.where(seen < 0, seen * params.repetition, seen / params.repetition)
        fewer = seen - (counts * params.frequency + params.presence)
        logits[ids] = torch.where(counts > 0, fewer, seen)
    forbidden = [token for token in row.forbidden if token < logits.shape[0]]
    if forbidden:
        logits[sent(forbidden, device)] = -math.inf
    if row.allowed is not None:
        logits[~_unpacked(row.allowed, logits)] = -math.inf


def _unpacked(allowed: bytes, logits: Tensor) -> Tensor:
    """A mask's bits: bool [vocab]."""
    vocab = logits.shape[0]
    row = allowed[: -(-vocab // 8)].ljust(-(-vocab // 8), b"\0")
    octets = sent(list(row), logits.device, torch.uint8)
    bits = octets[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)
    return (bits & 1).bool().flatten()[:vocab]


class _Rows:
    """Edited logits of rows that are drawn from."""

    def __init__(self, logits: Tensor, settled: Sequence[Settled]) -> None:
        self._logits = logits
        self._settled = settled
        self._peak = logits.amax(-1, keepdim=True)
        self._scale = self._numbers([row.scale for row in settled])

    def sample(self, rows: Sequence[SamplingRow], highest: Tensor) -> Tensor:
        """Gumbel argmax over the survivors: int64 [rows]. ``highest``: of those without a
        distribution."""
        device = self._logits.device
        seeds = sent([row.signed_seed for row in rows], device)
        positions = sent([row.position for row in rows], device)
        exponents = self._exponents(self._logits)
        if any(row.top_k or row.top_p < 1 or row.floor > -math.inf for row in self._settled):
            row_of, ids = self.survivors().nonzero(as_tuple=True)
            scores = torch.full_like(exponents, -math.inf)
            noise = gumbel(seeds[row_of], positions[row_of], ids)
            scores[row_of, ids] = exponents[row_of, ids] + noise
        else:
            scores = exponents + gumbel_rows(seeds, positions, exponents.shape[-1])
        return torch.where(self._peak[:, 0].isfinite(), scores.argmax(-1), highest)

    def survivors(self) -> Tensor:
        """bool [rows, vocab]"""
        edges = torch.full_like(self._peak, -math.inf)
        with_k = [i for i, row in enumerate(self._settled) if row.top_k]
        if with_k:
            index = sent(with_k, edges.device)
            edges[index] = self._top_k(index, [self._settled[i].top_k for i in with_k])
        with_p = [i for i, row in enumerate(self._settled) if row.top_p < 1]
        if with_p:
            index = sent(with_p, edges.device)
            share = self._numbers([self._settled[i].top_p for i in with_p])
            edges[index] = self._top_p(index, edges[index], share)
        floor = self._peak + self._numbers([row.floor for row in self._settled])
        return self._logits >= torch.maximum(edges, floor)

    def _top_k(self, index: Tensor, top_k: Sequence[int]) -> Tensor:
        values = self._logits[index].topk(max(top_k), dim=-1).values
        return values.gather(1, sent(top_k, index.device)[:, None] - 1)

    def _top_p(self, index: Tensor, edges: Tensor, share: Tensor) -> Tensor:
        """The smallest logits of the nuclei among the logits at or above ``edges``."""
        logits = self._logits[index]
        kept = torch.where(logits >= edges, logits, -math.inf)
        total = mass(self._exponents(kept, index)).sum(-1, keepdim=True)
        target = (share.double() * total).long().clamp_(min=1)
        head = min(_HEAD, logits.shape[-1])
        ordered = kept.topk(head, dim=-1).values
        before = self._mass_before(ordered, index)
        if head < logits.shape[-1] and bool((before[:, -1:] < target).any()):
            ordered = kept.sort(dim=-1, descending=True).values
            before = self._mass_before(ordered, index)
        inside = (before < target).sum(-1, keepdim=True)
        return ordered.gather(1, inside - 1)

    def _mass_before(self, ordered: Tensor, index: Tensor) -> Tensor:
        masses = mass(self._exponents(ordered, index))
        return masses.cumsum(-1) - masses

    def _exponents(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """How far below the largest of its row each is, in units of the temperature."""
        if index is None:
            return (logits - self._peak) * self._scale
        return (logits - self._peak[index]) * self._scale[index]

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return sent(values, self._logits.device, torch.float32)[:, None]


def _logprobs(raw: Tensor, tokens: Tensor, rows: Sequence[SamplingRow]) -> Logprobs | None:
    """Of equally likely tokens the first ones. None: nobody asks for them."""
    asked = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
    if not asked:
        return None
    index = sent(list(asked), raw.device)
    logprobs = raw[index].log_softmax(-1)
    own = logprobs.gather(1, tokens[index][:, None])[:, 0]
    most = min(max(asked.values()), raw.shape[-1])
    top_ids = _first_highest(raw[index], most)
    top = logprobs.gather(1, top_ids)
    return Logprobs(tuple(asked), tuple(asked.values()), own, top, top_ids)


def _first_highest(logits: Tensor, count: int) -> Tensor:
    """The ids of the largest of each row, the first ones among equals: int64 [rows, count]."""
    bits = (logits + 0.0).view(torch.int32).long()  # one zero instead of two
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    ranked = (keys << 32) - ids
    return (-ranked.topk(count, dim=-1).values) & 0xFFFFFFFF
