from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from hotswap.engine.blocks import BlockPool
from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.scheduler import Chunk, Plan

pytestmark = pytest.mark.torch

PLAIN = SamplingRow(DrawParams(temperature=0.0), seed=0)
HOT = SamplingRow(DrawParams(temperature=0.7), seed=0)
PENALISED = SamplingRow(DrawParams(temperature=0.0, presence_penalty=1.0), seed=0)
TOLD = SamplingRow(DrawParams(temperature=0.0), seed=0, logprobs=2)
LOGITS, HIGHEST, DRAWN, SAMPLED = 1, 2, 3, 4
"""Whom a token is from."""


class Eager:
    """A forward, and its sampler, that note what they are asked for."""

    tier = "S"
    chunked = True

    def __init__(self, *, able: bool = True) -> None:
        """``able``: steps are such that the forward finds their tokens."""
        self.asked: list[str] = []
        self.able = able

    def logits(self, segments: Sequence[Any], ids: Any = None) -> Any:
        import torch

        self.asked.append("logits")
        return torch.full((len(segments), 9), LOGITS)

    def draw(self, logits: Any, rows: Sequence[Any]) -> Any:
        import torch

        from hotswap.engine.sampler import Drawn

        self.asked.append("draw")
        return Drawn(torch.full((len(rows),), SAMPLED))

    def _tokens(self, what: str, count: int, token: int) -> Any:
        import torch

        self.asked.append(what)
        return torch.full((count,), token) if self.able else None

    def reserve(self, blocks: int) -> None: ...
    def copy(self, blocks: Sequence[Any]) -> None: ...
    def drop(self, sequence: int) -> None: ...
    def close(self) -> None: ...


class Greedy(Eager):
    def highest(self, segments: Sequence[Any], ids: Any = None) -> Any:
        return self._tokens("highest", len(segments), HIGHEST)


class Drawing(Greedy):
    def drawn(self, segments: Sequence[Any], rows: Sequence[Any], ids: Any = None) -> Any:
        assert len(segments) == len(rows)
        return self._tokens("drawn", len(segments), DRAWN)


def decode(forward: Eager, rows: list[SamplingRow]) -> list[int]:
    """A token for each row."""
    from hotswap.engine.runner import ModelRunner
    from hotswap.engine.sequence import Sequence

    pool, chunks = BlockPool(len(rows)), []
    for number, row in enumerate(rows):
        sequence = Sequence(
            id=number,
            tokens=[1, 2, 3],
            prompt_tokens=2,
            max_tokens=9,
            row=row,
            text=cast(Any, None),
            computed=2,
        )
        assert pool.grow(sequence.table, 3)
        chunks.append(Chunk(sequence, 2, 1))
    launched = ModelRunner(forward, cast(Any, forward)).launch(Plan(tuple(chunks)))
    return [draw.token for _, draw in launched.results()]


@pytest.mark.parametrize(
    ("rows", "asked", "token"),
    [
        ([PLAIN, PLAIN], ["highest"], HIGHEST),
        ([HOT], ["drawn"], DRAWN),
        ([PLAIN, HOT], ["drawn"], DRAWN),
        ([PENALISED, PLAIN], ["drawn"], DRAWN),
        ([HOT, TOLD], ["logits", "draw"], SAMPLED),
        ([TOLD], ["logits", "draw"], SAMPLED),
    ],
)
def test_the_forward_finds_tokens_where_nothing_else_is_wanted(
    rows: list[SamplingRow], asked: list[str], token: int
) -> None:
    forward = Drawing()
    assert decode(forward, rows) == [token] * len(rows)
    assert forward.asked == asked


@pytest.mark.parametrize(("row", "first"), [(PLAIN, "highest"), (HOT, "drawn")])
def test_where_it_finds_none_the_sampler_draws(row: SamplingRow, first: str) -> None:
    forward = Drawing(able=False)
    assert decode(forward, [row]) == [SAMPLED]
    assert forward.asked == [first, "logits", "draw"]


@pytest.mark.parametrize(
    ("kind", "row", "asked"),
    [
        (Greedy, PLAIN, ["highest"]),
        (Greedy, HOT, ["logits", "draw"]),
        (Eager, PLAIN, ["logits", "draw"]),
        (Eager, HOT, ["logits", "draw"]),
    ],
)
def test_a_forward_is_asked_for_what_it_can_do(
    kind: type[Eager], row: SamplingRow, asked: list[str]
) -> None:
    forward = kind()
    decode(forward, [row])
    assert forward.asked == asked


def test_a_step_that_draws_nothing_asks_for_no_tokens() -> None:
    from hotswap.engine.runner import ModelRunner
    from hotswap.engine.sequence import Sequence

    forward = Drawing()
    sequence = Sequence(
        id=0, tokens=[1, 2, 3], prompt_tokens=3, max_tokens=9, row=HOT, text=cast(Any, None)
    )
    launched = ModelRunner(forward, cast(Any, forward)).launch(Plan((Chunk(sequence, 0, 2),)))
    assert launched.results() == []
    assert forward.asked == ["logits"]
