"""Draws that are part of a decode step beside those of the reference. A tape stands for the
device's graphs and Triton's interpreter for the device, where there is none."""

from __future__ import annotations

import random
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine.checkpoints import VOCAB
from tests.engine.forward.test_lean import LENGTH, SEQUENCES, model_of
from tests.engine.sampler.test_agreement import ROWS
from tests.engine.serving import Served, serving
from tests.engine.test_ahead import mixed, note_launches, told
from tests.engine.test_graphs import Tape

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


class Decoding:
    """Sequences that draw their own continuation, all of them from the same state."""

    def __init__(self, path: Path, device: Any, recorder: Any) -> None:
        from hotswap.engine.blocks import BlockPool, BlockTable
        from hotswap.engine.forward.reading import read
        from hotswap.engine.forward.recorded import RecordedForward
        from hotswap.engine.kv_pool import KVPool
        from hotswap.engine.sampler.fused import FusedSampler

        self.device = device
        self.sampler = FusedSampler(device)
        self.forward = RecordedForward(read(model_of(path).to(device)), KVPool(device, 1))
        self.forward.reserve(16)
        self.forward.record(rows=SEQUENCES, tokens=LENGTH, recorder=recorder, sampler=self.sampler)
        pool = BlockPool(16)
        self.tables = [BlockTable() for _ in range(SEQUENCES)]
        for table in self.tables:
            assert pool.grow(table, LENGTH)
        self.tokens = [[3 + number, 50, 7 * number] for number in range(SEQUENCES)]
        self._logits([self._segment(n, 0, 2) for n in range(SEQUENCES)])

    def step(self, sequences: Sequence[int], rows: Sequence[Any], *, known: bool = True) -> None:
        """Draw a token for each sequence, in both ways. ``known``: the host tells the last ones."""
        import torch

        from hotswap.engine.sampler.reference import ReferenceSampler

        segments = [self._segment(n, len(self.tokens[n]) - 1) for n in sequences]
        wanted = ReferenceSampler().draw(self._logits(segments).clone(), rows).results()
        ids = None
        if not known:
            ids = torch.tensor([segment.ids[0] for segment in segments], device=self.device)
            segments = [self._segment(n, len(self.tokens[n]) - 1, unknown=True) for n in sequences]
        with torch.inference_mode():
            tokens = self.forward.drawn(segments, rows, ids)
        assert tokens is not None
        assert tokens.tolist() == [draw.token for draw in wanted]
        for number, draw in zip(sequences, wanted, strict=True):
            self.tokens[number].append(draw.token)

    def sizes(self, kind: str) -> tuple[int, ...]:
        """Numbers of rows that are recorded."""
        from hotswap.engine.graphs import StepKind

        assert self.forward._graphs is not None
        return self.forward._graphs.recorded(StepKind[kind])

    def _logits(self, segments: list[Any]) -> Any:
        import torch

        with torch.inference_mode():
            return self.forward.logits(segments)

    def _segment(
        self, number: int, start: int, end: int | None = None, *, unknown: bool = False
    ) -> Any:
        from hotswap.engine.forward.base import Segment

        ids = [0] if unknown else self.tokens[number][start:end]
        return Segment(number, ids, start, True, self.tables[number])


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def small_tables(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have to grow soon."""
    from hotswap.engine.sampler import fused as module

    monkeypatch.setattr(module, "_FEWEST_EDITS", 16)


@pytest.fixture
def decoding(checkpoint: Checkpoint, device: Any, tape: Tape) -> Decoding:
    """On a CUDA device, with its graphs; else with the tape."""
    from hotswap.engine.graphs import recorder_on

    return Decoding(checkpoint("qwen3"), device, recorder_on(device) or tape)


def make_row(seed: int = 1, **params: Any) -> Any:
    from hotswap.engine.drawing import DrawParams, SamplingRow

    return SamplingRow(DrawParams(**params), seed=seed)


def hot_rows(count: int) -> list[Any]:
    return [make_row(seed, temperature=1.5) for seed in range(count)]


def draw_for_rows_of_all_kinds(decoding: Decoding, steps: int) -> None:
    """Sequences join and leave, change what they ask for, and are shuffled."""
    from tests.engine.sampler.cases import random_row

    dice = random.Random(3)
    rows: dict[int, Any] = {}
    for step in range(steps):
        rows = {number: row for number, row in rows.items() if dice.random() < 0.8}
        for number in range(SEQUENCES):
            if number not in rows and (dice.random() < 0.2 or not rows):
                rows[number] = random_row(dice, VOCAB)
        for row in rows.values():
            row.logprobs = None
            row.position = step
            row.forbidden = dice.choice((frozenset(), frozenset({3, 50}), row.forbidden))
            row.allowed = dice.choice((None, dice.randbytes(VOCAB // 8), row.allowed))
        sequences = dice.sample(list(rows), len(rows))
        decoding.step(sequences, [rows[n] for n in sequences], known=dice.random() < 0.5)
        for number, row in rows.items():
            row.see(decoding.tokens[number][-1])


def test_rows_of_all_kinds_draw_in_their_step_what_the_reference_draws(decoding: Decoding) -> None:
    draw_for_rows_of_all_kinds(decoding, ROWS // 3)
    assert decoding.sizes("DRAWN") == (1, 2, 4)


@pytest.mark.usefixtures("small_tables")
def test_they_do_while_tables_are_made_anew(decoding: Decoding) -> None:
    draw_for_rows_of_all_kinds(decoding, ROWS // 6)
    assert decoding.sampler._made > 1


@pytest.mark.gpu
@pytest.mark.usefixtures("small_tables")
def test_graphs_of_the_device_draw_what_the_reference_draws(checkpoint: Checkpoint) -> None:
    import torch

    from hotswap.engine.graphs import recorder_on

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    decoding = Decoding(checkpoint("qwen3"), device, recorder_on(device))
    draw_for_rows_of_all_kinds(decoding, 35)
    assert decoding.sizes("DRAWN")
    decoding.forward.close()


def test_rows_that_are_padding_draw_for_nobody(decoding: Decoding) -> None:
    for _ in range(2):
        decoding.step([3, 2, 0, 1], hot_rows(4))
    decoding.sampler._slots.step.tokens.fill_(77)  # type: ignore[union-attr]
    decoding.step([2, 0, 1], hot_rows(3))
    tokens = decoding.sampler._slots.step.tokens  # type: ignore[union-attr]
    assert tokens.tolist() == [*(decoding.tokens[n][-1] for n in (2, 0, 1)), 77]
    assert decoding.sizes("DRAWN") == (4,)


@pytest.mark.usefixtures("small_tables")
def test_tables_made_anew_cost_the_graphs_that_draw_and_no_others(
    decoding: Decoding,
) -> None:
    rows = [make_row(1, presence_penalty=1.5), make_row(2, temperature=0.7, top_k=9)]
    for _ in range(3):
        decoding.step([0, 1], rows)
    assert decoding.sizes("GREEDY") == decoding.sizes("DRAWN") == (2,)
    rows[0].see_prompt(range(100))
    decoding.step([0, 1], rows)
    assert (decoding.sizes("GREEDY"), decoding.sizes("DRAWN")) == ((2,), ())
    for _ in range(3):
        decoding.step([0, 1], rows)
    assert decoding.sizes("DRAWN") == (2,)


@pytest.mark.usefixtures("small_tables")
def test_tables_that_a_draw_beside_made_anew_are_noticed(decoding: Decoding) -> None:
    """A row with log-probabilities is drawn from the step's logits, by the same sampler."""
    import torch

    rows = hot_rows(2)
    for _ in range(3):
        decoding.step([0, 1], rows)
    many = make_row(9, presence_penalty=1.0)
    many.see_prompt(range(100))
    decoding.sampler.draw(torch.randn(1, VOCAB, device=decoding.device), [many])
    decoding.step([0, 1], rows)
    assert decoding.sizes("DRAWN") == ()
    decoding.step([0, 1], rows)
    assert decoding.sizes("DRAWN") == (2,)


def test_a_draw_beside_leaves_the_graphs_alone(decoding: Decoding) -> None:
    import torch

    rows, other = hot_rows(2), make_row(9, logit_bias={3: 2.0})
    other.logprobs = 4
    for _ in range(5):
        decoding.step([0, 1], rows)
        decoding.sampler.draw(torch.randn(2, VOCAB, device=decoding.device), [other, rows[1]])
    assert decoding.sizes("DRAWN") == (2,)


def test_a_recording_that_fails_is_told_and_the_step_may_be_taken_again(
    checkpoint: Checkpoint, device: Any, tape: Tape
) -> None:
    decoding, rows = Decoding(checkpoint("qwen3"), device, tape), hot_rows(2)
    decoding.step([0, 1], rows)
    segments = [decoding._segment(n, len(decoding.tokens[n]) - 1) for n in (0, 1)]
    tape.broken = True
    with pytest.raises(RuntimeError, match="capturing"):
        decoding.forward.drawn(segments, rows)
    assert decoding.sizes("DRAWN") == ()
    tape.broken = False
    for _ in range(2):
        decoding.step([0, 1], rows)
    assert decoding.sizes("DRAWN") == (2,)


def test_closing_frees_the_graphs_of_both_kinds_and_then_the_tables(
    checkpoint: Checkpoint, device: Any, tape: Tape
) -> None:
    """Whoever else holds the sampler: the device is to be empty for the next model."""
    decoding = Decoding(checkpoint("qwen3"), device, tape)
    for _ in range(2):
        decoding.step([0, 1], hot_rows(2))
    assert tape.log.count("record") == 2
    tables = weakref.ref(decoding.sampler._slots)
    alive: list[bool] = []
    tape.at_reset = lambda: alive.append(tables() is not None)
    decoding.forward.close()
    assert alive == [True, True]
    assert tables() is None
    assert decoding.forward.drawn([], []) is None


def test_a_step_with_a_prompt_is_not_drawn_in(decoding: Decoding) -> None:
    segments = [decoding._segment(0, 2), decoding._segment(1, 0)]
    assert decoding.forward.drawn(segments, hot_rows(2)) is None


def test_without_a_sampler_for_steps_nothing_is_drawn_in_them(
    decoding: Decoding, tape: Tape
) -> None:
    decoding.forward.record(rows=SEQUENCES, tokens=LENGTH, recorder=tape)
    assert decoding.forward.drawn([decoding._segment(0, 2)], hot_rows(1)) is None


def test_only_the_fused_sampler_can_be_part_of_a_step(fused: Any, looped: Any) -> None:
    from hotswap.engine.forward.recorded import StepSampler
    from hotswap.engine.sampler.reference import ReferenceSampler

    assert isinstance(fused, StepSampler)
    assert not isinstance(looped, StepSampler)
    assert not isinstance(ReferenceSampler(), StepSampler)


# -- in an engine ----------------------------------------------------------------------------


@asynccontextmanager
async def recorded(path: Path, tape: Tape, patch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """An engine as it is made for a CUDA device, on the host."""
    import numpy as np

    from hotswap.engine import stage
    from hotswap.engine.forward import choice
    from hotswap.engine.forward.reading import read
    from hotswap.engine.forward.recorded import RecordedForward
    from hotswap.engine.sampler.fused import FusedSampler

    class Kept(RecordedForward):
        """Tokens are looked at after the next step, which overwrites them. To a device it is told
        before that they are to be copied."""

        def highest(self, segments: Any, ids: Any = None) -> Any:
            tokens = super().highest(segments, ids)
            return None if tokens is None else tokens.clone()

        def drawn(self, segments: Any, rows: Any, ids: Any = None) -> Any:
            tokens = super().drawn(segments, rows, ids)
            return None if tokens is None else tokens.clone()

    class Quiet(FusedSampler):
        def launch(self, logits: Any, most: Any) -> Any:
            with np.errstate(all="ignore"):  # as in conftest.py, on the engine's thread
                return super().launch(logits, most)

    patch.setattr(choice, "_lean", lambda placed, pool: Kept(read(placed.model), pool))
    patch.setattr(stage, "sampler_on", Quiet)
    patch.setattr(stage, "recorder_on", lambda device: tape)
    async with serving(path) as served:
        assert isinstance(served.engine._runner.forward, Kept)
        yield served


@pytest.mark.anyio
async def test_answers_are_those_of_the_plain_steps(
    checkpoint: Checkpoint, device: Any, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each step is launched before the tokens of the one before are known."""
    if device.type != "cpu":
        pytest.skip("the model is on the host")
    from hotswap.engine import stage
    from hotswap.engine.forward import choice
    from hotswap.engine.sampler.reference import ReferenceSampler

    path = checkpoint("qwen3")
    monkeypatch.setattr(choice, "native_forward", lambda: None)
    monkeypatch.setattr(stage, "sampler_on", lambda device: ReferenceSampler())
    async with serving(path) as served:
        wanted = await mixed(served)
    for ahead in (False, True):
        tape.log.clear()
        async with recorded(path, tape, monkeypatch) as served:
            served.engine._ahead = ahead
            launches = note_launches(served)
            drawn, beside = note_draws(served)
            got = await mixed(served)
        assert told(got) == told(wanted)
        assert any(launches) == ahead
        assert all(row.logprobs is None for rows in drawn for row in rows)
        assert any(row.params.penalties for rows in drawn for row in rows)
        assert any(row.logprobs is not None for rows in beside for row in rows)
        assert len(drawn) > len(beside) > 0
        assert tape.log.count("replay") > len(drawn) / 2
        assert tape.log.count("reset") == tape.log.count("record") > 0


def note_draws(served: Served) -> tuple[list[Any], list[Any]]:
    """Grow by the rows of each draw from now on: of those in a step, and of those beside."""
    runner, drawn, beside = served.engine._runner, list[Any](), list[Any]()
    in_step, eager = runner.forward.drawn, runner._sampler.draw  # type: ignore[attr-defined]

    def noting_steps(segments: Any, rows: Any, ids: Any = None) -> Any:
        tokens = in_step(segments, rows, ids)
        if tokens is not None:
            drawn.append(list(rows))
        return tokens

    def noting_draws(logits: Any, rows: Any) -> Any:
        beside.append(list(rows))
        return eager(logits, rows)

    runner.forward.drawn = noting_steps  # type: ignore[attr-defined]
    runner._sampler.draw = noting_draws  # type: ignore[method-assign]
    return drawn, beside
