from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.engine.blocks import BLOCK_TOKENS, BlockTable
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.layout import (
    Lanes,
    Layout,
    Span,
    in_order,
    last,
    layout,
    stretches,
)

SLOTS = 128 * BLOCK_TOKENS


def table(*blocks: int) -> BlockTable:
    made = BlockTable()
    made.extend(blocks)
    return made


def row(first: int, count: int) -> BlockTable:
    """Neighbours."""
    return table(*range(first, first + count))


def decode(number: int, length: int, where: BlockTable) -> Segment:
    """The last of ``length`` tokens."""
    return Segment(number, [100 + number], length - 1, True, where)


def prefill(number: int, start: int, end: int, where: BlockTable, samples: bool = True) -> Segment:
    return Segment(number, list(range(start, end)), start, samples, where)


def laid(*segments: Segment, slots: int = SLOTS) -> Layout:
    return layout(in_order(segments), slots)


# -- stretches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (0, 0, []),
        (0, 16, [(48, 16)]),
        (0, 33, [(48, 32), (0, 1)]),
        (5, 9, [(53, 4)]),
        (16, 40, [(64, 16), (0, 8)]),
        (40, 64, [(8, 8), (112, 16)]),
        (0, 64, [(48, 32), (0, 16), (112, 16)]),
    ],
)
def test_stretches_are_as_long_as_the_neighbours_are_many(
    start: int, end: int, wanted: list[tuple[int, int]]
) -> None:
    assert list(stretches(table(3, 4, 0, 7), start, end)) == wanted


@pytest.mark.parametrize(
    ("slots", "wanted"),
    [
        (0, []),
        (1, [(127, 1)]),
        (16, [(112, 16)]),
        (17, [(15, 1), (112, 16)]),
        (40, [(72, 8), (0, 16), (112, 16)]),
        (64, [(48, 32), (0, 16), (112, 16)]),
        (99, [(48, 32), (0, 16), (112, 16)]),
    ],
)
def test_the_last_slots_of_some_stretches(slots: int, wanted: list[tuple[int, int]]) -> None:
    assert last([(48, 32), (0, 16), (112, 16)], slots) == wanted


# -- the flat batch --------------------------------------------------------------------------


def test_tokens_lie_one_after_the_other_and_know_where_they_belong() -> None:
    found = laid(
        prefill(0, 14, 18, table(5, 2)),
        decode(1, 20, row(8, 2)),
    )
    assert found.ids == [101, 14, 15, 16, 17]
    assert found.positions == [19, 14, 15, 16, 17]
    assert found.slots == [8 * 16 + 19, 5 * 16 + 14, 5 * 16 + 15, 2 * 16, 2 * 16 + 1]


def test_only_the_last_tokens_of_those_that_sample_are_sampled() -> None:
    found = laid(
        prefill(0, 0, 5, row(0, 1), samples=False),
        prefill(1, 0, 7, row(4, 1)),
        decode(2, 3, row(8, 1)),
    )
    assert found.sampled == [0, 12]


def test_spans_know_where_they_and_their_past_lie() -> None:
    where = table(9, 3, 4)
    found = laid(prefill(0, 0, 20, where), prefill(1, 20, 40, where))
    assert found.spans == [
        Span(slice(0, 20), 0, (), ((9 * 16, 16), (3 * 16, 4))),
        Span(slice(20, 40), 20, ((9 * 16, 16), (3 * 16, 4)), ((3 * 16 + 4, 20),)),
    ]
    assert found.lanes == []


# -- lanes -----------------------------------------------------------------------------------


def test_sequences_at_equal_distances_are_one_group() -> None:
    found = laid(*(decode(n, 20 + n, row(4 * n, 2)) for n in (2, 0, 3, 1)))
    assert found.lanes == [Lanes(slice(0, 4), (), 0, 64, (20, 21, 22, 23))]
    assert found.ids == [100, 101, 102, 103]
    assert found.spans == []


def test_a_hole_divides_a_group() -> None:
    found = laid(*(decode(n, 20, row(4 * n, 2)) for n in (0, 1, 3, 4)))
    assert [(lanes.place, lanes.first, lanes.stride) for lanes in found.lanes] == [
        (slice(0, 2), 0, 64),
        (slice(2, 4), 192, 64),
    ]


def test_a_sequence_at_another_distance_begins_a_group() -> None:
    found = laid(*(decode(n, 9, row(first, 1)) for n, first in enumerate((0, 2, 4, 5, 6))))
    assert [lanes.lengths for lanes in found.lanes] == [(9,) * 3, (9,) * 2]


def test_lengths_that_differ_much_are_apart() -> None:
    """Each row of a group costs as much as its longest."""
    lengths = (30, 33, 500, 510)
    found = laid(*(decode(n, length, row(32 * n, 32)) for n, length in enumerate(lengths)))
    assert [lanes.lengths for lanes in found.lanes] == [(30, 33), (500, 510)]


def test_sequences_that_begin_alike_are_one_group_where_they_go_on() -> None:
    beginning = (20, 21, 30)
    found = laid(*(decode(n, 50 + n, table(*beginning, 4 * n, 4 * n + 1)) for n in (2, 0, 1)))
    shared = ((20 * 16, 32), (30 * 16, 16))
    assert found.lanes == [Lanes(slice(0, 3), shared, 0, 64, (2, 3, 4))]
    assert found.lanes[0].longest == 52
    assert found.lanes[0].stretches(2) == (*shared, (128, 4))
    assert found.ids == [100, 101, 102]


def test_sequences_that_begin_otherwise_are_apart() -> None:
    found = laid(*(decode(n, 20, table(20 + n % 2, 4 * n)) for n in range(4)))
    assert [(lanes.shared, lanes.first, lanes.stride) for lanes in found.lanes] == [
        (((320, 16),), 0, 128),
        (((336, 16),), 64, 128),
    ]


def test_a_chunk_of_a_prompt_is_no_lane() -> None:
    found = laid(prefill(0, 16, 18, row(0, 2)), decode(1, 17, row(2, 2)))
    assert [lanes.place for lanes in found.lanes] == [slice(0, 1)]
    assert [span.place for span in found.spans] == [slice(1, 3)]


def test_a_group_does_not_look_beyond_the_pool() -> None:
    """The last one is short, and the longest would reach over the end from where it begins."""
    lengths = (40, 40, 10)
    segments = [decode(n, length, row(3 * n, 3)) for n, length in enumerate(lengths[:2])]
    segments.append(decode(2, 10, row(6, 1)))
    assert [lanes.lengths for lanes in laid(*segments).lanes] == [lengths]
    assert [x.lengths for x in laid(*segments, slots=7 * 16).lanes] == [(40, 40), (10,)]


# -- any step --------------------------------------------------------------------------------

BLOCKS = 40


@settings(deadline=None)
@given(
    sequences=st.lists(
        st.tuples(
            st.integers(1, 70),  # length
            st.one_of(st.just(1), st.integers(1, 70)),  # tokens to compute
            st.booleans(),  # samples
        ),
        min_size=1,
        max_size=8,
    ),
    disorder=st.integers(0, 12),
    dice=st.randoms(use_true_random=False),
)
def test_whatever_the_step_every_token_is_there_once_and_sees_its_own(
    sequences: list[tuple[int, int, bool]], disorder: int, dice: random.Random
) -> None:
    blocks = list(range(BLOCKS))
    for _ in range(disorder):
        i, j = dice.randrange(BLOCKS), dice.randrange(BLOCKS)
        blocks[i], blocks[j] = blocks[j], blocks[i]
    segments = []
    for number, (length, count, samples) in enumerate(sequences):
        where = table(*(blocks.pop(0) for _ in range(-(-length // BLOCK_TOKENS))))
        start = max(0, length - count)
        segments.append(prefill(number, start, length, where, samples))
    ordered = in_order(segments)
    found = layout(ordered, BLOCKS * BLOCK_TOKENS)

    assert found.ids == [token for segment in ordered for token in segment.ids]
    assert found.positions == [
        segment.start + i for segment in ordered for i in range(len(segment.ids))
    ]
    ends = [sum(len(s.ids) for s in ordered[: i + 1]) - 1 for i in range(len(ordered))]
    assert found.sampled == [
        end for end, segment in zip(ends, ordered, strict=True) if segment.samples
    ]
    places = [lanes.place for lanes in found.lanes] + [span.place for span in found.spans]
    assert places[0].start == 0
    assert places[-1].stop == len(found.ids)
    assert all(before.stop == after.start for before, after in pairwise(places))

    wanted = iter(ordered)
    for lanes in found.lanes:
        assert lanes.place.stop - lanes.place.start == len(lanes.lengths)
        for index in range(len(lanes.lengths)):
            segment = next(wanted)
            end = segment.start + 1
            assert len(segment.ids) == 1
            assert list(lanes.stretches(index)) == list(stretches(segment.table, 0, end))
            assert lanes.longest >= end
        last = lanes.first + (len(lanes.lengths) - 1) * lanes.stride
        assert last + max(lanes.lengths) <= BLOCKS * BLOCK_TOKENS
    for span in found.spans:
        segment = next(wanted)
        assert span.start == segment.start
        end = segment.start + len(segment.ids)
        assert list(span.past) == list(stretches(segment.table, 0, segment.start))
        assert list(span.own) == list(stretches(segment.table, segment.start, end))
