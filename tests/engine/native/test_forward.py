"""Steps of all kinds by the compiled loops, beside those by the operations of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.engine.forward.base import Segment, UnsupportedForward
from tests.engine.forward.test_lean import READABLE, STEPS, model_of
from tests.engine.native.skeletons import (
    EXPERTS,
    Beside,
    Sizes,
    difference,
    firsts_of_the_largest,
    ids_of,
    in_one_piece,
    scattered,
    segments_of,
    skeleton_of,
    with_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.linear import Linear
    from hotswap.engine.forward.skeleton import Skeleton

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

Checkpoint = Callable[..., Path]
DTYPES = ["float32", "bfloat16"]


def skeleton_in(path: Path, dtype: str) -> Skeleton:
    from hotswap.engine.forward.reading import read

    return read(model_of(path, dtype))


@pytest.fixture(params=DTYPES)
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return Sizes(dtype=request.param)


# -- what a skeleton may have --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", sorted(set(READABLE) - EXPERTS))
def test_steps_of_all_kinds_are_those_of_torch(
    checkpoint: Checkpoint, architecture: str, dtype: str
) -> None:
    beside = Beside(skeleton_in(checkpoint(architecture), dtype), scattered(4, 3))
    for step in STEPS:
        beside.step(*(part for part in step if part[1] < part[2]))


@pytest.mark.parametrize("architecture", sorted(EXPERTS))
def test_experts_are_left_to_torch(checkpoint: Checkpoint, architecture: str) -> None:
    skeleton = skeleton_in(checkpoint(architecture), "float32")
    with pytest.raises(UnsupportedForward, match="experts"):
        Beside(skeleton, scattered(1, 1))


def test_norms_of_queries_and_keys_that_differ_are_left_to_torch(sizes: Sizes) -> None:
    import torch

    from hotswap.engine.forward.skeleton import Norm

    norms = [Norm(torch.ones(sizes.size), eps) for eps in (1e-6, 1e-5)]
    for query, key in (norms, (norms[0], None), (None, norms[1])):
        with pytest.raises(UnsupportedForward, match="norms"):
            Beside(with_attention(skeleton_of(sizes), q_norm=query, k_norm=key), scattered(1, 1))


def test_weights_of_another_type_or_layout_are_left_to_torch(sizes: Sizes) -> None:
    import torch

    skeleton = skeleton_of(sizes)
    [(weight, _)] = skeleton.head.parts
    other = torch.float32 if weight.dtype == torch.bfloat16 else torch.bfloat16
    for changed in (weight.to(other), weight.T.contiguous().T):
        with pytest.raises(UnsupportedForward, match="types or layouts"):
            Beside(replace(skeleton, head=linear((changed, None))), scattered(1, 1))
    half = replace(skeleton, embedding=skeleton.embedding.half())
    with pytest.raises(UnsupportedForward, match=r"torch\.float16"):
        Beside(half, scattered(1, 1))


def linear(*parts: tuple[Tensor, Tensor | None]) -> Linear:
    from hotswap.engine.forward.linear import Linear

    return Linear(parts)


@pytest.mark.parametrize("size", [8, 64, 80, 128])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (5, 1), (6, 2), (8, 2)])
def test_heads_may_have_any_size_and_share_keys_in_any_number(
    sizes: Sizes, size: int, heads: int, groups: int
) -> None:
    sizes = replace(sizes, size=size, heads=heads, groups=groups)
    beside = Beside(skeleton_of(sizes), scattered(3, 3))
    beside.begin(37, 1)
    beside.step((0, 37, 38))
    beside.step((0, 38, 39), (1, 1, 2), (2, 0, 5))


@pytest.mark.parametrize("tables", [scattered, in_one_piece])
@pytest.mark.parametrize("window", [1, 7, 16, 17, 40])
def test_a_window_hides_what_is_before_it(sizes: Sizes, window: int, tables: Any) -> None:
    """Shorter and longer than a stretch, and ending within one and at its border."""
    beside = Beside(with_attention(skeleton_of(sizes), window=window), tables(3, 4))
    beside.begin(46, 14, 5)
    for i in range(6):
        beside.step((0, 46 + i, 47 + i), (1, 14 + i, 15 + i), (2, 5 + i, 6 + i))
    beside.step((0, 52, 53), (1, 20, 34))


def test_scores_and_logits_may_be_capped(sizes: Sizes) -> None:
    import torch

    capped = replace(with_attention(skeleton_of(sizes), softcap=0.7), softcap=2.0)
    beside = Beside(capped, scattered(2, 3))
    beside.begin(20, 35)
    beside.step((0, 20, 21), (1, 35, 36))
    beside.step((0, 21, 30), (1, 36, 37))
    with torch.inference_mode():
        logits = beside.native.logits(segments_of(beside.tables, [(0, 30, 31)]))
    assert 1.0 < float(logits.abs().max()) <= 2.0


def test_widths_that_no_vector_fits_are_computed_too(sizes: Sizes) -> None:
    sizes = replace(sizes, width=40, inner=72, size=20, vocab=389)
    beside = Beside(skeleton_of(sizes), scattered(7, 3))
    beside.begin(20, 35, 1, 2, 3)
    beside.step((0, 20, 21), (1, 35, 36))
    beside.step(*((n, start, start + 1) for n, start in enumerate((21, 36, 1, 2, 3))), (5, 0, 9))


# -- what a step may have ------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [scattered, in_one_piece])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 64, 70])
def test_many_sequences_may_take_part(sizes: Sizes, count: int, tables: Any) -> None:
    beside = Beside(skeleton_of(sizes), tables(count, 3))
    lengths = [1 + 7 * number % 45 for number in range(count)]
    beside.begin(*lengths)
    for i in range(2):
        beside.step(*((n, length + i, length + i + 1) for n, length in enumerate(lengths)))


def test_sequences_may_begin_in_the_same_blocks(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(3, 3))
    for table in beside.tables[1:]:
        own = table.blocks[2]
        table.blocks.clear()
        table.runs.clear()
        table.extend([*beside.tables[0].blocks[:2], own])
    beside.begin(32)
    beside.step((0, 32, 33), (1, 32, 33), (2, 32, 36))
    beside.step((0, 33, 34), (1, 33, 34), (2, 36, 37))


def test_short_prompts_are_computed_beside_newest_tokens(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(5, 3))
    beside.begin(20, 3)
    beside.step((0, 20, 21), (1, 3, 4), (2, 0, 7), (3, 0, 1))
    parts = [(0, 21, 22), (1, 4, 8), (2, 7, 17), (4, 0, 2)]
    assert beside.native.highest(segments_of(beside.tables, parts)) is not None
    beside.step(*parts)


@pytest.mark.parametrize("lanes", [0, 3, 66])
def test_a_prompt_that_is_too_long_for_the_loops_is_computed_by_torch(
    sizes: Sizes, lanes: int
) -> None:
    beside = Beside(skeleton_of(sizes), scattered(lanes + 1, 6))
    beside.begin(*(1 + number % 30 for number in range(lanes)))
    parts = [(n, 1 + n % 30, 2 + n % 30) for n in range(lanes)]
    segments = segments_of(beside.tables, [*parts, (lanes, 0, 70)])
    assert beside.native.highest(segments) is None
    beside.compare(segments)
    beside.step(*((n, start + 1, end + 1) for n, start, end in parts), (lanes, 70, 71))


def test_a_chunk_far_down_a_long_prompt_is_computed_by_torch(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(2, 140))
    beside.begin(2200, 5)
    segments = segments_of(beside.tables, [(0, 2200, 2216), (1, 5, 6)])
    assert beside.native.highest(segments) is None
    beside.compare(segments)
    beside.step((0, 2216, 2217), (1, 6, 7))


@pytest.mark.parametrize("prompt", [3, 80])
def test_only_the_segments_that_sample_have_logits(sizes: Sizes, prompt: int) -> None:
    beside = Beside(skeleton_of(sizes), scattered(7, 6))
    beside.begin(20, 3, 16, 40, 1)
    segments = segments_of(
        beside.tables,
        [*((n, at, at + 1) for n, at in enumerate((20, 3, 16, 40, 1))), (5, 0, prompt), (6, 0, 4)],
    )
    for sampling in ({0, 3}, {1, 4, 6}, {5}, set[int]()):
        beside.compare([replace(s, samples=s.sequence in sampling) for s in segments])


def test_tokens_may_be_given_as_a_tensor(sizes: Sizes) -> None:
    import torch

    beside = Beside(skeleton_of(sizes), scattered(70, 1))
    for count in (3, 64, 70):
        known = segments_of(beside.tables, ((n, 0, 1) for n in range(count)))
        unknown = [replace(segment, ids=[0]) for segment in known]
        ids = torch.tensor([segment.ids[0] for segment in known])
        with torch.inference_mode():
            wanted = beside.native.logits(known).clone()
            assert torch.equal(beside.native.logits(unknown, ids), wanted)
            assert not torch.equal(beside.native.logits(unknown), wanted)
        if count <= 64:
            likeliest = beside.native.highest(unknown, ids)
            assert likeliest is not None
            assert likeliest.tolist() == firsts_of_the_largest(wanted)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize("period", [1, 7, 300])
def test_the_first_of_the_largest_logits_is_the_likeliest(
    sizes: Sizes, count: int, period: int
) -> None:
    """Rows of the head come again within a piece and in other pieces."""
    import torch

    skeleton = skeleton_of(replace(sizes, vocab=2000))
    [(weight, _)] = skeleton.head.parts
    head = linear((weight[torch.arange(2000) % period].contiguous(), None))
    beside = Beside(replace(skeleton, head=head), scattered(count, 1))
    segments = segments_of(beside.tables, ((n, 0, 1) for n in range(count)))
    likeliest = beside.native.highest(segments)
    assert likeliest is not None
    logits = beside.native.logits(segments)
    ties = (logits == logits.amax(-1, keepdim=True)).sum(-1)
    assert int(ties.min()) >= 2000 // period
    assert likeliest.dtype == torch.int64
    assert likeliest.tolist() == firsts_of_the_largest(logits)
    assert max(likeliest.tolist()) < period


def test_likeliest_tokens_stay_when_the_next_step_has_others(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(9, 1))
    rows = [segments_of(beside.tables, [(n, 0, 1)]) for n in range(9)]
    found = [beside.native.highest(row) for row in rows]
    wanted = [firsts_of_the_largest(beside.native.logits(row)) for row in rows]
    assert [None if tokens is None else tokens.tolist() for tokens in found] == wanted
    assert len({token for tokens in wanted for token in tokens}) > 3


# -- positions and the pool ----------------------------------------------------------------------


def test_positions_may_go_beyond_those_seen_before(sizes: Sizes) -> None:
    """The rotations are kept in tables, at first for few positions."""
    beside = Beside(skeleton_of(sizes), scattered(3, 20))
    beside.begin(5, 63, 300)
    beside.step((0, 5, 6))
    beside.step((0, 6, 7), (1, 63, 64))
    beside.step((1, 64, 65))
    beside.step((0, 7, 12), (1, 65, 66), (2, 300, 301))
    beside.step((0, 12, 13), (2, 301, 320))


def test_a_sequence_may_fill_the_pool(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), in_one_piece(1, 6))
    beside.begin(90)
    beside.step((0, 90, 95))
    beside.step((0, 95, 96))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_stored_as_zero(sizes: Sizes, value: float) -> None:
    """Others read it: a mask does not hide it."""
    import torch

    skeleton = skeleton_of(sizes)
    first, *others = skeleton.layers
    [(weight, _)] = first.attention.qkv.parts
    bias, of_heads = torch.zeros(len(weight)).to(weight.dtype), sizes.heads * sizes.size
    bias[of_heads + sizes.groups * sizes.size + 5] = value
    attention = replace(first.attention, qkv=linear((weight, bias)))
    layers = replace(first, attention=attention), *others
    beside = Beside(replace(skeleton, layers=layers), scattered(2, 1))
    with torch.inference_mode():
        beside.native.logits(segments_of(beside.tables, [(0, 0, 1), (1, 0, 3)]))
    slots = [16 * beside.tables[0].blocks[0]]
    slots += [16 * beside.tables[1].blocks[0] + i for i in range(3)]
    stored = beside.stored()[1][:, slots]
    assert stored[0, :, 5].tolist() == [0.0] * 4
    assert int((stored == 0).sum()) == 4
    assert bool(stored.isfinite().all())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("part", ["out", "gate", "down", "head", "embedding"])
def test_weights_that_are_no_numbers_give_logits_that_are_none(
    sizes: Sizes, part: str, count: int
) -> None:
    """That is how such a checkpoint is refused."""
    import torch

    skeleton = skeleton_of(sizes)
    layer = skeleton.layers[0]
    mlp: Any = layer.mlp
    weight = {
        "out": layer.attention.out.parts[0][0],
        "gate": mlp.gate_up.parts[0][0],
        "down": mlp.down.parts[0][0],
        "head": skeleton.head.parts[0][0],
        "embedding": skeleton.embedding,
    }[part]
    weight[:3] = float("nan")
    beside = Beside(skeleton, scattered(count, 1))
    beside.begin(*[4] * count)
    ids = [1]
    segments = [Segment(n, ids, 4, True, table) for n, table in enumerate(beside.tables)]
    with torch.inference_mode():
        assert not bool(beside.lean.logits(segments).isfinite().all(-1).any())
        assert not bool(beside.native.logits(segments).isfinite().all(-1).any())


def test_copied_blocks_are_gone_on_from(sizes: Sizes) -> None:
    import torch

    beside = Beside(skeleton_of(sizes), scattered(2, 2))
    beside.begin(20)
    first, second = beside.tables
    beside.native.copy(list(zip(first.blocks, second.blocks, strict=True)))
    ids = ids_of((0, 20, 21))
    segments = [Segment(n, ids, 20, True, table) for n, table in enumerate(beside.tables)]
    with torch.inference_mode():
        got = beside.native.logits(segments)
    assert difference(got[:1], got[1:]) == 0
    beside.compare(segments)


@pytest.mark.parametrize("token", [-1, 384, 2**31])
def test_a_token_that_the_model_does_not_have_is_refused(sizes: Sizes, token: int) -> None:
    beside = Beside(skeleton_of(sizes), scattered(2, 3))
    beside.begin(3, 3)
    segment = dataclasses.replace(segments_of(beside.tables, [(1, 3, 4)])[0], ids=(token,))
    stored = beside.stored()
    with pytest.raises(IndexError, match="none of"):
        beside.native.logits([segments_of(beside.tables, [(0, 3, 4)])[0], segment])
    for before, after in zip(stored, beside.stored(), strict=True):
        assert bool((before == after).all())


def test_a_position_without_a_block_is_refused(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(1, 2))
    [segment] = segments_of(beside.tables, [(0, 31, 32)])
    beside.native.logits([segment])
    with pytest.raises(IndexError, match="no room"):
        beside.native.logits([dataclasses.replace(segment, start=32)])


def test_logits_that_nobody_wants_are_not_computed(sizes: Sizes) -> None:
    beside = Beside(skeleton_of(sizes), scattered(1, 3))
    logits = beside.native._decode._description.logits  # type: ignore[union-attr]
    logits.fill_(7.0)
    [segment] = segments_of(beside.tables, [(0, 0, 5)])
    assert beside.native.logits([dataclasses.replace(segment, samples=False)]).shape[0] == 0
    assert bool((logits == 7.0).all())


def test_a_logit_that_is_no_number_is_the_likeliest_as_in_torch(sizes: Sizes) -> None:
    import torch

    from hotswap.engine.sampler.reference import highest

    skeleton = skeleton_of(sizes)
    [(weight, _)] = skeleton.head.parts
    weight[[40, 200]] = torch.nan
    beside = Beside(skeleton, scattered(1, 3))
    beside.begin(3)
    segments = segments_of(beside.tables, [(0, 3, 4)])
    logits = beside.native.logits(segments).clone()
    assert beside.native.highest(segments).tolist() == highest(logits).tolist() == [40]  # type: ignore[union-attr]
