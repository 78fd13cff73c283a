"""All samplers draw the same tokens.

``SAMPLER_ROWS`` says of how many random rows each: 60 in every run, which take seconds in Triton's
interpreter, and as many as one has time for after a change of the sampler.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

pytestmark = pytest.mark.torch

ROWS = int(os.environ.get("SAMPLER_ROWS", "60"))


def assert_they_agree(sampler: Any, logits: Any, rows: list[Any]) -> None:
    from hotswap.engine.sampler.reference import ReferenceSampler
    from tests.engine.sampler.cases import assert_draws_agree

    wanted = ReferenceSampler().draw(logits, rows).results()
    assert_draws_agree(sampler.draw(logits, rows).results(), wanted)


def assert_they_agree_on_random_rows(sampler: Any, count: int, device: Any = "cpu") -> None:
    from tests.engine.sampler.cases import case

    number = 0
    while count > 0:
        given = case(number)
        assert_they_agree(sampler, given.logits.to(device), given.rows)
        number, count = number + 1, count - len(given.rows)


def test_loops_draw_what_the_reference_draws(looped: Any) -> None:
    assert_they_agree_on_random_rows(looped, 15 * ROWS)


def test_kernels_draw_what_the_reference_draws(fused: Any, device: Any) -> None:
    assert_they_agree_on_random_rows(fused, ROWS, device)


@pytest.mark.parametrize("vocab", [32_000, 151_936])
def test_loops_draw_what_the_reference_draws_of_large_vocabularies(looped: Any, vocab: int) -> None:
    from tests.engine.sampler.cases import case

    for number in range(12):
        given = case(number, vocab)
        assert_they_agree(looped, given.logits, given.rows)


@pytest.mark.parametrize(("vocab", "count"), [(9001, ROWS // 30), (40_000, 1)])
def test_kernels_that_share_a_row_draw_what_the_reference_draws(
    fused: Any, device: Any, vocab: int, count: int
) -> None:
    from tests.engine.sampler.cases import case

    for number in range(count):
        given = case(number, vocab)
        assert_they_agree(fused, given.logits.to(device), given.rows)


@pytest.mark.parametrize("kind", ["looped", "fused"])
def test_they_agree_while_rows_come_go_and_change(
    kind: str, request: pytest.FixtureRequest
) -> None:
    import torch

    from tests.engine.sampler.cases import random_row

    sampler: Any = request.getfixturevalue(kind)
    device = request.getfixturevalue("device") if kind == "fused" else "cpu"
    dice, vocab = random.Random(5), 97
    rows: list[Any] = []
    for step in range(25):
        rows = [row for row in rows if dice.random() < 0.8]
        rows += [random_row(dice, vocab) for _ in range(1 if rows else 2)]
        dice.shuffle(rows)
        for row in rows:
            row.position = step
            row.forbidden = dice.choice((frozenset(), frozenset({3, 50}), row.forbidden))
            row.allowed = dice.choice((None, dice.randbytes(13), row.allowed))
            for token in dice.choices(range(vocab), k=dice.choice((0, 1, 1, 3))):
                row.see(token)
        logits = torch.randn(len(rows), vocab, generator=torch.Generator().manual_seed(step))
        assert_they_agree(sampler, logits.to(device), rows)


@pytest.mark.parametrize("kind", ["looped", "fused"])
def test_same_seed_same_token_alone_and_in_a_batch_of_64(
    kind: str, request: pytest.FixtureRequest
) -> None:
    import torch

    from hotswap.engine.drawing import DrawParams, SamplingRow

    sampler: Any = request.getfixturevalue(kind)
    device = request.getfixturevalue("device") if kind == "fused" else "cpu"
    logits = torch.randn(64, 200, generator=torch.Generator().manual_seed(1)).to(device)
    rows = [
        SamplingRow(DrawParams(top_k=(i % 3) * 10, top_p=1 - (i % 4) / 10), seed=i * 7919)
        for i in range(64)
    ]
    together = [draw.token for draw in sampler.draw(logits, rows).results()]
    for i in (0, 1, 7, 30, 63):
        [alone] = sampler.draw(logits[i : i + 1], [rows[i]]).results()
        assert alone.token == together[i]


def test_bfloat16_float16_and_views_are_drawn_from_as_float32(looped: Any) -> None:
    import torch

    from tests.engine.sampler.cases import random_row

    wide = torch.randn(3, 3000, generator=torch.Generator().manual_seed(2))
    rows = [random_row(random.Random(i), 999) for i in range(3)]
    halves = wide.half()[:, :999], wide.bfloat16()[:, 1:1000]
    for logits in (wide[:, 7:1006], wide[:, ::3][:, :999], *halves):
        assert_they_agree(looped, logits, rows)


@pytest.mark.gpu
def test_a_launch_can_be_replayed_from_a_graph() -> None:
    import torch

    from hotswap.engine.sampler.fused import FusedSampler
    from hotswap.engine.sampler.reference import ReferenceSampler
    from tests.engine.sampler.cases import random_row

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    vocab = 32_000
    sampler, dice = FusedSampler(torch.device("cuda")), random.Random(1)
    rows = [random_row(dice, vocab) for _ in range(8)]
    logits = torch.randn(8, vocab, device="cuda")
    tables = sampler.prepare(rows, vocab)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):  # compiles, which cannot be captured
        sampler.launch(logits, 20)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sampler.launch(logits, 20)
    for step in range(5):
        for row in rows:
            row.position = step
        logits.normal_()
        assert sampler.prepare(rows, vocab) == tables
        graph.replay()
        wanted = ReferenceSampler().draw(logits, rows).results()
        assert tokens.tolist() == [draw.token for draw in wanted]
    graph.reset()
