"""What the samplers are made of."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.torch


def test_exponential_and_logarithm_are_nearly_exact() -> None:
    import torch

    from hotswap.engine.sampler import arithmetic

    dice = torch.Generator().manual_seed(1)
    x = -torch.rand(200_000, generator=dice) * 26
    exact = x.double().exp() * 2**40
    assert float(((arithmetic.mass(x) - exact).abs() / (exact + 1e7)).max()) < 2e-7
    v = 10 ** (-torch.rand(200_000, generator=dice) * 9)
    exact = -torch.log1p(-v.double())
    ours = arithmetic.exponential(v.clamp(max=1 - 2**-24)).double()
    assert float(((ours - exact) / exact)[v < 0.999].abs().max()) < 5e-7
    y = 10 ** (torch.rand(200_000, generator=dice) * 40 - 20)
    assert float((arithmetic.log(y) - y.double().log()).abs().max()) < 3e-6


def test_what_cannot_be_told_from_nothing_weighs_nothing() -> None:
    import torch

    from hotswap.engine.sampler.arithmetic import mass

    assert mass(torch.tensor([0.0, -0.0, -29.0, -math.inf])).tolist() == [2**40, 2**40, 0, 0]


def test_parameters_come_down_to_few_numbers() -> None:
    from hotswap.engine.drawing import DrawParams
    from hotswap.engine.sampler.settled import settle

    for temperature in (0.0, 1e-45):
        assert settle(DrawParams(temperature=temperature, min_p=0.5), 9).greedy
    known = settle(DrawParams(temperature=0.5, top_k=9, top_p=0.0, min_p=1.0), 9)
    assert (known.scale, known.top_k, known.top_p, known.floor) == (2.0, 0, 0.0, 0.0)
    assert settle(DrawParams(min_p=0.0), 9).floor == -math.inf
    assert settle(DrawParams(temperature=2.0, min_p=0.5), 9).floor == pytest.approx(math.log(0.25))


def test_edits_list_each_token_once_and_follow_the_answer() -> None:
    from hotswap.engine.drawing import DrawParams, SamplingRow
    from hotswap.engine.sampler.edits import Edits

    row = SamplingRow(DrawParams(logit_bias={7: 1.5, 3: -1.0}, presence_penalty=1.0), seed=0)
    row.see_prompt([5, 3, 5])
    edits = Edits(row, 200)
    assert edits.ids.tolist() == [7, 3, 5]
    assert edits.counts.tolist() == [-1.0, 0.0, 0.0]
    for token in (3, 3, *range(100, 140)):
        row.see(token)
    assert edits.update() == [*range(3, 43), 1, 1, *range(3, 43)]
    assert edits.ids.tolist() == [7, 3, 5, *range(100, 140)]
    assert edits.counts.tolist() == [-1.0, 2.0, 0.0, *([1.0] * 40)]
    assert edits.biases.tolist() == [1.5, -1.0, 0.0, *([0.0] * 40)]
    assert edits.update() == []


def test_tokens_that_are_none_are_refused_or_never_drawn(looped: Any) -> None:
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow
    from hotswap.engine.sampler.edits import Edits

    for token in (-1, 97):
        with pytest.raises(ValueError, match="none of 97"):
            Edits(SamplingRow(DrawParams(logit_bias={token: 1.0}), seed=0), 97)
        row = SamplingRow(DrawParams(presence_penalty=1.0), seed=0)
        edits = Edits(row, 97)
        row.see(token)
        with pytest.raises(ValueError, match="none of 97"):
            edits.update()
    row = SamplingRow(DrawParams(temperature=0.0), seed=0, forbidden={96, 97, 2**31 - 1})
    [draw] = looped.draw(torch.arange(97.0)[None], [row]).results()
    assert draw.token == 95


def test_without_numba_and_triton_the_reference_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hotswap.engine import sampler
    from hotswap.engine.sampler.reference import ReferenceSampler

    monkeypatch.setattr(sampler, "find_spec", lambda name: None)
    monkeypatch.setattr(sampler, "native_forward", lambda: None)
    for device in ("cpu", "cuda"):
        assert isinstance(sampler.sampler_on(torch.device(device)), ReferenceSampler)


def test_with_numba_the_loops_draw(looped: Any) -> None:
    import torch

    from hotswap.engine.sampler import sampler_on

    assert type(sampler_on(torch.device("cpu"))) is type(looped)


def test_importing_the_sampler_needs_neither_numba_nor_triton() -> None:
    code = "import sys, hotswap.engine.sampler; print({'numba', 'triton'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_few_rows_are_shared_by_programs_until_the_device_is_full() -> None:
    pytest.importorskip("triton")
    from hotswap.engine.sampler.fused import split_count

    assert [split_count(rows, 151_936, 132) for rows in (1, 8, 32, 128, 256)] == [32, 32, 8, 8, 1]
    assert split_count(1, 2048, 132) == 1
    assert split_count(0, 151_936, 132) == 32


def test_tables_stay_where_they_are_until_there_is_no_room(fused: Any, device: Any) -> None:
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow

    rows = [SamplingRow(DrawParams(presence_penalty=1.0), seed=i) for i in range(5)]
    made = fused.prepare(rows[:3], 97)
    tokens = fused.launch(torch.zeros(3, 97, device=device), None)
    assert fused.prepare(rows[:4], 97) == made
    assert fused.launch(torch.zeros(4, 97, device=device), None).data_ptr() == tokens.data_ptr()
    assert fused.prepare(rows, 97) == made + 1
    assert fused.prepare(rows[1:], 97) == made + 1
    assert fused.prepare(rows, 2000) == made + 2
    rows[2].see_prompt(range(1025))
    assert fused.prepare(rows[1:3], 2000) == made + 3
    assert fused.prepare(rows[:1], 2000) == made + 3


def test_tables_that_a_draw_made_anew_have_another_number(fused: Any, device: Any) -> None:
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow

    rows = [SamplingRow(DrawParams(), seed=i) for i in range(2)]
    made = fused.prepare(rows[:1], 97)
    fused.draw(torch.zeros(2, 97, device=device), rows)
    assert fused.prepare(rows[:1], 97) == made + 1


def test_reserved_tables_have_room_for_all_rows(fused: Any) -> None:
    from hotswap.engine.drawing import DrawParams, SamplingRow

    fused.reserve(12, 2000)
    rows = [SamplingRow(DrawParams(presence_penalty=1.0), seed=i) for i in range(12)]
    made = fused.prepare(rows[:1], 2000)
    assert fused.prepare(rows, 2000) == made
    rows[0].see_prompt(range(1025))
    assert fused.prepare(rows[:1], 2000) == made + 1
    assert fused.prepare(rows, 2000) == made + 1


def test_what_was_not_written_down_because_of_an_error_is_written_later(
    fused: Any, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ran out of memory is taken again."""
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow
    from hotswap.engine.sampler import fused as module
    from hotswap.engine.transfers import sent

    logits = torch.zeros(2, 97, device=device)
    works, left = sent, [0]

    def failing(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        return works(*arguments)

    monkeypatch.setattr(module, "sent", failing)
    for call in range(1, 20):
        rows = [
            SamplingRow(DrawParams(temperature=0.0, logit_bias={token: 9.0}), seed=0)
            for token in (call, 50)
        ]
        left[0] = call
        try:
            draws = fused.draw(logits, rows).results()
        except MemoryError:
            left[0] = 0
            draws = fused.draw(logits, rows).results()
        assert [draw.token for draw in draws] == [call, 50]
    assert left[0] > 0, "each of its copies has failed once"


def test_logits_that_the_tables_are_not_for_are_refused(fused: Any, device: Any) -> None:
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow

    fused.prepare([SamplingRow(DrawParams(), seed=1)], 97)
    for logits, complaint in (
        (torch.zeros(2, 97, device=device), "for 1 x 97"),
        (torch.zeros(1, 96, device=device), "for 1 x 97"),
        (torch.zeros(1, 194, device=device)[:, ::2], "gaps"),
    ):
        with pytest.raises(ValueError, match=complaint):
            fused.launch(logits, None)


def test_rows_beyond_those_prepared_are_left_alone(fused: Any, device: Any) -> None:
    """A graph of eight rows is replayed for five."""
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow

    rows = [
        SamplingRow(DrawParams(temperature=0.0, presence_penalty=1.0), seed=i) for i in range(8)
    ]
    logits = torch.eye(8, 97, device=device)
    fused.prepare(rows, 97)
    assert fused.launch(logits, None).tolist() == list(range(8))
    fused.prepare(rows[:5], 97)
    assert fused.launch(logits.roll(1, 1), None).tolist() == [1, 2, 3, 4, 5, 5, 6, 7]
