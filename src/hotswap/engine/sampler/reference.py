"""The sampler in plain torch: the one for the CPU, and what a faster one is compared with.

Every filter is a threshold on the logit, so ties at a threshold survive together and the survivors
depend on nothing but the row. Only survivors get noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hotswap.engine.drawing import SamplingRow
from hotswap.engine.sampler.drawn import Drawn, Logprobs
from hotswap.engine.sampler.philox import gumbel, gumbel_rows
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
        drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
        if drawn:
            index = sent(drawn, edited.device)
            tokens[index] = _sample(edited[index], [rows[i] for i in drawn])
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
    """Which tokens may be drawn: bool [rows, vocab], from logits already edited and divided by
    the temperature."""
    params = [row.params for row in rows]
    threshold = _threshold(
        logits,
        [p.top_k if 0 < p.top_k < logits.shape[-1] else 0 for p in params],
        [p.top_p for p in params],
        [p.min_p for p in params],
    )
    return logits >= threshold[:, None]


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
    params, device = row.params, logits.device
    if params.logit_bias:
        ids = sent(list(params.logit_bias), device)
        logits[ids] += sent(list(params.logit_bias.values()), device, torch.float32)
    if params.repetition_penalty != 1.0:
        ids = sent(list(row.seen), device)
        seen = logits[ids]
        penalty = params.repetition_penalty
        logits[ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
    if row.counts and (params.frequency_penalty or params.presence_penalty):
        ids = sent(list(row.counts), device)
        counts = sent(list(row.counts.values()), device, torch.float32)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
    if row.forbidden:
        logits[sent(list(row.forbidden), device)] = -math.inf


def _sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Gumbel argmax over the survivors: int64 [rows]."""
    device = logits.device
    temperature = [row.params.temperature for row in rows]
    logits = logits / sent(temperature, device, torch.float32)[:, None]
    seeds = sent([row.signed_seed for row in rows], device)
    positions = sent([row.position for row in rows], device)
    if not any(row.params.filters for row in rows):
        return (logits + gumbel_rows(seeds, positions, logits.shape[-1])).argmax(-1)
    row_of, ids = survivors(logits, rows).nonzero(as_tuple=True)
    scores = logits[row_of, ids] + gumbel(seeds[row_of], positions[row_of], ids)
    best = torch.full((len(rows),), -math.inf, device=device, dtype=torch.float32)
    best.scatter_reduce_(0, row_of, scores, "amax")
    winners = scores == best[row_of]
    # A row without a winner (its logits are NaN) gets what argmax makes of it.
    tokens = logits.argmax(-1)
    first = torch.full_like(tokens, logits.shape[-1])
    first.scatter_reduce_(0, row_of[winners], ids[winners], "amin")
    return torch.where(first < logits.shape[-1], first, tokens)


def _threshold(
    logits: Tensor, top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float]
) -> Tensor:
    """The smallest logit that survives, float32 [rows]."""
    threshold = torch.full((logits.shape[0],), -math.inf, dtype=torch.float32, device=logits.device)
    with_k = [i for i, k in enumerate(top_k) if k]
    if with_k:
        index = sent(with_k, logits.device)
        threshold[index] = _kth_largest(logits[index], [top_k[i] for i in with_k])
    with_p = [i for i, p in enumerate(top_p) if p < 1]
    if with_p:
        index = sent(with_p, logits.device)
        mass = sent([top_p[i] for i in with_p], logits.device, torch.float32)
        threshold[index] = _nucleus_edge(logits[index], threshold[index], mass)
    if any(min_p):
        share = sent(min_p, logits.device, torch.float32)
        threshold = torch.maximum(threshold, logits.amax(-1) + share.log())
    return threshold


def _kth_largest(logits: Tensor, top_k: Sequence[int]) -> Tensor:
    values = logits.topk(max(top_k), dim=-1).values
    ranks = sent(top_k, logits.device) - 1
    return values.gather(1, ranks[:, None])[:, 0]


def _nucleus_edge(logits: Tensor, threshold: Tensor, mass: Tensor) -> Tensor:
    """The smallest logit of each row's nucleus among the logits at or above ``threshold``."""
    kept = torch.where(logits >= threshold[:, None], logits, -math.inf)
    total = kept.logsumexp(-1, keepdim=True)
    head = min(_HEAD, logits.shape[-1])
    ordered = kept.topk(head, dim=-1).values
    before = _mass_before(ordered, total)
    if head < logits.shape[-1] and bool((before[:, -1] < mass).any()):
        ordered = kept.sort(dim=-1, descending=True).values
        before = _mass_before(ordered, total)
    inside = before < mass[:, None]
    inside[:, 0] = True
    return ordered.gather(1, inside.sum(-1, keepdim=True) - 1)[:, 0]


def _mass_before(ordered: Tensor, total: Tensor) -> Tensor:
    share = (ordered - total).exp()
    return share.cumsum(-1) - share


def _logprobs(raw: Tensor, tokens: Tensor, rows: Sequence[SamplingRow]) -> Logprobs | None:
    """None: nobody asks for them."""
    asked = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
    if not asked:
        return None
    index = sent(list(asked), raw.device)
    logprobs = raw[index].log_softmax(-1)
    own = logprobs.gather(1, tokens[index][:, None])[:, 0]
    top = logprobs.topk(min(max(asked.values()), raw.shape[-1]), dim=-1)
    return Logprobs(tuple(asked), tuple(asked.values()), own, top.values, top.indices)
