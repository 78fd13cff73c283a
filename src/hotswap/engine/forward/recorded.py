"""Tier S on a device with graphs: a decode step is a fixed list of kernels that is replayed.

Such a step is a function of a few small buffers and of tensors that stay where they are: weights,
pools, tables of rotary positions. Whatever else a step has to compute, `LeanForward` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from hotswap.engine.blocks import BLOCK_TOKENS, BlockTable
from hotswap.engine.drawing import SamplingRow
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.skeleton import Attention, GatedMLP, Norm, Skeleton
from hotswap.engine.graphs import DecodeBatch, DecodeGraphs, Outputs, Recorder, Step, StepKind
from hotswap.engine.kernels import Kernels, kernels_on
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.sampler.reference import highest


@runtime_checkable
class StepSampler(Protocol):
    """A sampler that can be part of a step: `hotswap.engine.sampler.fused.FusedSampler`."""

    def reserve(self, rows: int, vocab: int) -> None:
        """Have room for so many rows."""

    def release(self) -> None:
        """Give the room back, as nothing recorded refers to it any more."""

    def compile_for(self, rows: int, vocab: int, dtype: torch.dtype) -> None:
        """Have all ready that launches for up to ``rows`` rows of logits take."""

    def prepare(self, rows: Sequence[SamplingRow], vocab: int) -> int:
        """Have the next launches draw for ``rows``, and for nobody in further rows. Returns a
        number; a recorded launch is good as long as it is the same."""

    def launch(self, logits: Tensor, most: None) -> Tensor:
        """A token for each row of ``logits`` ([rows, vocab]), int64 [rows], overwritten by the next
        launch."""


class RecordedForward(LeanForward):
    """`hotswap.engine.forward.base.GreedyForward` and, with a sampler, `DrawingForward`. After
    `record`, steps that only decode run through `DecodeGraphs`, unless the skeleton has parts that
    the kernels do not know."""

    def __init__(self, skeleton: Skeleton, pool: KVPool, kernels: Kernels | None = None) -> None:
        super().__init__(skeleton, pool)
        self._device = skeleton.embedding.device
        self._kernels = kernels or kernels_on(self._device)
        self._inputs = _Inputs(self._device)
        self._graphs: DecodeGraphs | None = None
        self._sampler: StepSampler | None = None
        self._tables = 0
        """The sampler's number of the tables that graphs are recorded with."""

    def record(
        self,
        *,
        rows: int,
        tokens: int,
        recorder: Recorder | None,
        sampler: StepSampler | None = None,
    ) -> None:
        """Be ready for steps of up to ``rows`` sequences of up to ``tokens`` tokens. To be called
        again after `reserve`.

        Args:
            recorder: None: the kernels are launched anew each time.
            sampler: Draws within the steps; it may draw elsewhere too. None: nothing is `drawn`.
        """
        self._forget_graphs()
        blocks = decode_blocks(self.skeleton)
        if blocks is None:
            return
        logits_of = _DecodeStep(self.skeleton, blocks, self.pool, self._kernels, tokens)
        steps: dict[StepKind, Step] = {StepKind.GREEDY: partial(_greedy, logits_of)}
        if sampler is not None:
            sampler.reserve(rows, self.skeleton.head.rows)
            steps[StepKind.DRAWN] = partial(_drawn, logits_of, sampler)
        self._sampler = sampler
        self._graphs = DecodeGraphs(
            steps,
            max_rows=rows,
            max_blocks=-(-tokens // BLOCK_TOKENS),
            device=self._device,
            recorder=recorder,
        )

    def reserve(self, blocks: int) -> None:
        self._forget_graphs()
        super().reserve(blocks)

    def grow(self, blocks: int) -> None:
        if self._graphs is not None:  # what they refer to moves
            for kind in StepKind:
                self._graphs.forget(kind)
        super().grow(blocks)

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        greedy = self._greedy(segments, ids)
        return super().logits(segments, ids) if greedy is None else greedy[0]

    def highest(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor | None:
        greedy = self._greedy(segments, ids)
        return None if greedy is None else greedy[1]

    def drawn(
        self, segments: Sequence[Segment], rows: Sequence[SamplingRow], ids: Tensor | None = None
    ) -> Tensor | None:
        if self._graphs is None or self._sampler is None or not _only_decode(segments):
            return None
        tables = self._sampler.prepare(rows, self.skeleton.head.rows)
        if tables != self._tables:
            self._graphs.forget(StepKind.DRAWN)
            self._tables = tables
        [tokens] = self._graphs.run(self._inputs.of(segments, ids), StepKind.DRAWN)
        return tokens

    def close(self) -> None:
        self._forget_graphs()
        super().close()

    def _greedy(self, segments: Sequence[Segment], ids: Tensor | None) -> Outputs | None:
        """Logits and the highest of them, to be used before the next step; None: the step is of
        another kind."""
        if self._graphs is None or not _only_decode(segments):
            return None
        return self._graphs.run(self._inputs.of(segments, ids), StepKind.GREEDY)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        if self._sampler is not None:
            self._sampler.release()
        self._graphs = self._sampler = None


def _only_decode(segments: Sequence[Segment]) -> bool:
    return all(segment.samples and len(segment.ids) == 1 for segment in segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBlock:
    """A layer of which a decode step can be made. A norm and the sum before it are one kernel, so
    the norm of the next layer belongs to this one."""

    attention: Attention
    after_attention: Norm | None
    before_mlp: Norm
    mlp: GatedMLP
    after_mlp: Norm | None
    following: Norm
    """Before the next layer, or after the last one."""


def decode_blocks(skeleton: Skeleton) -> tuple[DecodeBlock, ...] | None:
    """None: it has layers that begin without a norm or norm all heads together (OLMo-2), or whose
    tokens go different ways (experts)."""
    blocks = []
    following = [*(layer.before_attention for layer in skeleton.layers[1:]), skeleton.norm]
    for layer, norm in zip(skeleton.layers, following, strict=True):
        if (
            layer.before_attention is None
            or layer.before_mlp is None
            or norm is None
            or not isinstance(layer.mlp, GatedMLP)
            or not _norms_heads_alike(layer.attention)
        ):
            return None
        block = DecodeBlock(
            attention=layer.attention,
            after_attention=layer.after_attention,
            before_mlp=layer.before_mlp,
            mlp=layer.mlp,
            after_mlp=layer.after_mlp,
            following=norm,
        )
        blocks.append(block)
    return tuple(blocks)


def _norms_heads_alike(attention: Attention) -> bool:
    """Each head of queries and keys by itself, all with one epsilon; or none."""
    queries, keys = attention.q_norm, attention.k_norm
    if queries is None or keys is None:
        return queries is keys
    one_head = (attention.size,)
    return queries.weight.shape == keys.weight.shape == one_head and queries.eps == keys.eps


def _greedy(logits_of: _DecodeStep, batch: DecodeBatch) -> Outputs:
    logits = logits_of(batch)
    return logits, highest(logits)


def _drawn(logits_of: _DecodeStep, sampler: StepSampler, batch: DecodeBatch) -> Outputs:
    # Without the logits: what a graph gives out is memory that the others cannot compute in.
    return (sampler.launch(logits_of(batch), None),)


class _DecodeStep:
    """What is recorded: from a batch to its logits, [rows, vocab]."""

    def __init__(
        self,
        skeleton: Skeleton,
        blocks: tuple[DecodeBlock, ...],
        pool: KVPool,
        kernels: Kernels,
        tokens: int,
    ) -> None:
        """``tokens``: of the longest sequence."""
        self._skeleton = skeleton
        self._blocks = blocks
        self._first = skeleton.layers[0].before_attention
        self._pool = pool
        self._kernels = kernels
        self._turns = {
            id(block.attention.rope): block.attention.rope.table(tokens) for block in blocks
        }

    def __call__(self, batch: DecodeBatch) -> Tensor:
        skeleton, kernels = self._skeleton, self._kernels
        total = F.embedding(batch.ids, skeleton.embedding)
        if skeleton.embedding_scale is not None:
            total *= skeleton.embedding_scale
        x = self._normed(total, self._first)
        for index, block in enumerate(self._blocks):
            attended = self._attended(index, block.attention, x, batch)
            x = self._normed(block.attention.out(attended), block.after_attention)
            norm = block.before_mlp
            x, total = kernels.add_rms_norm(x, total, norm.weight, norm.eps)
            gated = kernels.gated_activation(block.mlp.gate_up(x), block.mlp.activation)
            x = self._normed(block.mlp.down(gated), block.after_mlp)
            norm = block.following
            x, total = kernels.add_rms_norm(x, total, norm.weight, norm.eps)
        logits = skeleton.head(x)
        if skeleton.softcap is not None:
            logits = torch.tanh(logits / skeleton.softcap) * skeleton.softcap
        return logits

    def _attended(self, index: int, data: Attention, x: Tensor, batch: DecodeBatch) -> Tensor:
        """x [rows, hidden] to what the heads saw, [rows, heads * size]."""
        qkv = data.qkv(x).view(batch.rows, data.heads + 2 * data.groups, data.size)
        new_keys, new_values = qkv[:, data.heads :].chunk(2, dim=1)
        keys, values = self._pool.layer(index, new_keys, new_values)
        cos, sin = self._turns[id(data.rope)]
        query = self._kernels.rope_and_store(
            qkv,
            cos=cos,
            sin=sin,
            positions=batch.positions,
            slots=batch.slots,
            keys=keys,
            values=values,
            q_norm=None if data.q_norm is None else data.q_norm.weight,
            k_norm=None if data.k_norm is None else data.k_norm.weight,
            eps=0.0 if data.q_norm is None else data.q_norm.eps,
        )
        seen = self._kernels.paged_attention(
            query,
            keys,
            values,
            batch.tables,
            batch.lengths,
            scale=data.scale,
            window=data.window,
            softcap=data.softcap,
        )
        return seen.flatten(1)

    def _normed(self, x: Tensor, norm: Norm | None) -> Tensor:
        return x if norm is None else self._kernels.rms_norm(x, norm.weight, norm.eps)


class _Inputs:
    """Makes the batches, on the host. Of the block tables only what is new is written."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._tables = torch.zeros(0, 0, dtype=torch.int32)
        self._written: list[tuple[BlockTable | None, int]] = []
        """For each row, whose blocks it holds, and how many of them."""

    def of(self, segments: Sequence[Segment], ids: Tensor | None) -> DecodeBatch:
        """Of segments with one token each."""
        columns = [
            [segment.ids[0] for segment in segments],
            [segment.start for segment in segments],
            [_slot(segment) for segment in segments],
            [segment.start + 1 for segment in segments],
        ]
        numbers = torch.tensor(columns, dtype=torch.int32, pin_memory=self._pinned)
        known_ids, positions, slots, lengths = numbers
        tables = self._tables_of([segment.table for segment in segments])
        return DecodeBatch(
            known_ids if ids is None else ids,
            positions,
            slots,
            lengths,
            _pinned_copy(tables) if self._pinned else tables,
        )

    def _tables_of(self, tables: Sequence[BlockTable]) -> Tensor:
        """int32 [tables, blocks of the longest]"""
        longest = max(len(table.blocks) for table in tables)
        self._make_room(len(tables), longest)
        for row, table in enumerate(tables):
            holder, count = self._written[row]
            if holder is not table:
                count = 0
            if count < len(table.blocks):
                new = torch.tensor(table.blocks[count:], dtype=torch.int32)
                self._tables[row, count : len(table.blocks)] = new
                self._written[row] = table, len(table.blocks)
        return self._tables[: len(tables), :longest]

    def _make_room(self, rows: int, blocks: int) -> None:
        shape = tuple(
            size if wanted <= size else max(wanted, 2 * size)
            for wanted, size in zip((rows, blocks), self._tables.shape, strict=True)
        )
        if shape != self._tables.shape:
            self._tables = torch.zeros(shape, dtype=torch.int32)
            self._written = [(None, 0)] * shape[0]


def _pinned_copy(tables: Tensor) -> Tensor:
    """The device may read it after the tables of the next step have been written."""
    return torch.empty(tables.shape, dtype=tables.dtype, pin_memory=True).copy_(tables)


def _slot(segment: Segment) -> int:
    """Where the keys and values of its first token go."""
    block, place = divmod(segment.start, BLOCK_TOKENS)
    return segment.table.blocks[block] * BLOCK_TOKENS + place
