"""The only caller of a forward and the sampler: a plan in, drawn tokens out."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

from torch import Tensor

from hotswap.engine.drawing import Draw, SamplingRow
from hotswap.engine.forward.base import DrawingForward, Forward, GreedyForward, Segment
from hotswap.engine.forward.layout import in_order
from hotswap.engine.sampler import Drawn, Draws
from hotswap.engine.scheduler import Chunk, Plan
from hotswap.engine.sequence import Sequence
from hotswap.engine.transfers import sent
from hotswap.engine.wide import half_precision_products

_UNKNOWN = (0,)
"""Stands for the token of a sequence that is still on its way."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that the device has been told to take."""

    sequences: tuple[Sequence, ...]
    """Those that it draws a token for."""
    drawn: Drawn | None
    """In the same order; None: it draws none."""

    def results(self) -> list[tuple[Sequence, Draw]]:
        """The next token of each sequence. Waits for the device."""
        if self.drawn is None:
            return []
        return list(zip(self.sequences, self.drawn.results(), strict=True))


class ModelRunner:
    """Owned by the device thread."""

    def __init__(self, forward: Forward, sampler: Draws) -> None:
        self.forward = forward
        self._sampler = sampler
        self._greedy = forward if isinstance(forward, GreedyForward) else None
        self._drawing = forward if isinstance(forward, DrawingForward) else None

    def launch(self, plan: Plan, after: Launched | None = None) -> Launched:
        """Have the plan's chunks computed, and a token drawn for each sequence whose end is
        reached. After an exception nothing has changed that matters: repeating the step is safe,
        except that tier B's caches may have advanced (drop the sequences).

        Args:
            after: the step before, if its results have not been taken; each of the plan's chunks
                is then a token that it draws.
        """
        if plan.copies:
            self.forward.copy(plan.copies)
        sequences = {chunk.sequence.id: chunk.sequence for chunk in plan.chunks}
        segments = in_order(map(_segment, plan.chunks))
        ids = None if after is None else _drawn_for(segments, after)
        sampled = tuple(sequences[segment.sequence] for segment in segments if segment.samples)
        rows = [sequence.next_row() for sequence in sampled]
        with half_precision_products(sum(len(segment.ids) for segment in segments)):
            tokens = self._tokens(segments, ids, rows)
            if tokens is not None:
                return Launched(sampled, Drawn(tokens))
            logits = self.forward.logits(segments, ids)
        return Launched(sampled, self._sampler.draw(logits, rows) if rows else None)

    def _tokens(
        self, segments: list[Segment], ids: Tensor | None, rows: list[SamplingRow]
    ) -> Tensor | None:
        """The draws of a step that only asks for tokens, by the forward itself; None: the step asks
        for more, or the forward draws none."""
        if not rows or any(row.logprobs is not None for row in rows):
            return None
        if self._greedy is not None and all(row.plain for row in rows):
            return self._greedy.highest(segments, ids)
        return None if self._drawing is None else self._drawing.drawn(segments, rows, ids)

    def drop(self, sequence: Sequence) -> None:
        self.forward.drop(sequence.id)


def _segment(chunk: Chunk) -> Segment:
    sequence = chunk.sequence
    ids = sequence.tokens[chunk.start : chunk.start + chunk.count]
    return Segment(sequence.id, ids or _UNKNOWN, chunk.start, chunk.samples, sequence.table)


def _drawn_for(segments: Several[Segment], step: Launched) -> Tensor:
    """What ``step`` draws for the segments' sequences: int64 [segments] on the device."""
    assert step.drawn is not None, "a step that draws nothing leaves no token on its way"
    row_of = {sequence.id: row for row, sequence in enumerate(step.sequences)}
    rows = [row_of[segment.sequence] for segment in segments]
    tokens = step.drawn.tokens
    if rows == list(range(len(tokens))):
        return tokens
    return tokens[sent(rows, tokens.device)]
