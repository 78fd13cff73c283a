from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.engine.blocks import BLOCK_TOKENS, BlockPool
from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.scheduler import KVBudget, Plan, Scheduler, SchedulerLimits
from hotswap.engine.sequence import Sequence

Shape = list[tuple[int, int, int]]


def sequence(number: int, prompt: int | list[int], max_tokens: int = 100) -> Sequence:
    """A prompt that is given as its length is like no other."""
    tokens = [1000 + number] * prompt if isinstance(prompt, int) else list(prompt)
    return Sequence(
        id=number,
        tokens=tokens,
        prompt_tokens=len(tokens),
        max_tokens=max_tokens,
        row=SamplingRow(DrawParams(), seed=0),
        text=cast(Any, None),
    )


def scheduler(
    *,
    max_num_seqs: int = 8,
    blocks: int = 1000,
    step_tokens: int = 100,
    beside: int | None = None,
    chunked: bool = True,
    remembered: int | None = None,
    keys: int | None = None,
) -> Scheduler:
    """Of tokens of one byte. ``beside``: as ``step_tokens``, if it is not given."""
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs,
        token_budget=step_tokens,
        token_budget_beside=step_tokens if beside is None else beside,
        chunked=chunked,
        keys_of_a_token=keys,
    )
    budget = KVBudget(limit_bytes=blocks * BLOCK_TOKENS, token_bytes=1)
    return Scheduler(limits, budget, BlockPool(blocks, remembered=remembered))


def draw(sequence: Sequence) -> None:
    """Token after token, so that two answers to one prompt are alike."""
    sequence.pending -= 1
    sequence.tokens.append(len(sequence.tokens))


def step(work: Scheduler) -> Plan:
    """Plan and compute, and draw a token at each end; what has all its tokens leaves."""
    plan = work.plan()
    work.computed(plan)
    for chunk in plan.chunks:
        if chunk.sequence.pending:
            draw(chunk.sequence)
            if not chunk.sequence.wants_more:
                work.remove(chunk.sequence)
    return plan


def shape(plan: Plan) -> Shape:
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in plan.chunks]


def shapes(work: Scheduler, steps: int) -> list[Shape]:
    return [shape(step(work)) for _ in range(steps)]


def steps_until_idle(work: Scheduler, most: int = 5000) -> Iterator[Plan]:
    for _ in range(most):
        if not work.running and not work.waiting:
            return
        yield step(work)
    pytest.fail("the scheduler went round in circles")


def computed_tokens(work: Scheduler) -> int:
    """Until nothing is left to do."""
    return sum(chunk.count for plan in steps_until_idle(work) for chunk in plan.chunks)


# -- shares of a step ------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_beside_decoding_ones() -> None:
    work = scheduler(step_tokens=100)
    work.add(sequence(0, 10))
    step(work)
    work.add(sequence(1, 250))
    assert shapes(work, 4) == [
        [(0, 10, 1), (1, 0, 99)],
        [(0, 11, 1), (1, 99, 99)],
        [(0, 12, 1), (1, 198, 52)],
        [(0, 13, 1), (1, 250, 1)],
    ]


def test_prompts_get_less_beside_decoding_ones_than_alone() -> None:
    work = scheduler(step_tokens=100, beside=20)
    work.add(sequence(0, 150))
    assert shapes(work, 2) == [[(0, 0, 100)], [(0, 100, 50)]]
    work.add(sequence(1, 150))
    assert shapes(work, 2) == [[(0, 150, 1), (1, 0, 19)], [(0, 151, 1), (1, 19, 19)]]
    work.remove(work.running[0])
    assert shapes(work, 1) == [[(1, 38, 100)]]


@pytest.mark.parametrize("beside", [64, 512])
def test_a_short_prompt_behind_a_long_one_is_not_delayed(beside: int) -> None:
    work = scheduler(step_tokens=512, beside=beside)
    work.add(sequence(0, 20))
    step(work)
    work.add(sequence(1, 4000))
    step(work)
    work.add(sequence(2, 30))
    assert (2, 0, 30) in shape(step(work))
    assert (2, 30, 1) in shape(step(work))
    assert sequence_of(work, 1).computed < 4000


def test_steps_beside_others_get_shorter_as_a_prompt_grows() -> None:
    work = scheduler(step_tokens=512, beside=101, keys=100)
    work.add(sequence(0, 20))
    step(work)
    work.add(sequence(1, 1000, max_tokens=1))
    counts = []
    while sequence_of(work, 1).remaining > 1:
        counts += [(start, count) for number, start, count in shape(step(work)) if number == 1]
        if sum(count for _, count in counts) == 1000:
            break
    # 100 tokens' worth of work, of which each costs 1 + start / 100.
    assert counts[:3] == [(0, 100), (100, 50), (150, 40)]
    assert all(1 <= count * (1 + start / 100) <= 100 for start, count in counts)
    assert sum(count for _, count in counts) == 1000


def sequence_of(work: Scheduler, number: int) -> Sequence:
    [found] = [s for s in (*work.running, *work.waiting) if s.id == number]
    return found


def test_the_oldest_prompt_advances_whatever_comes_behind_it() -> None:
    work = scheduler(step_tokens=64, max_num_seqs=16)
    oldest = sequence(0, 400, max_tokens=1)
    work.add(oldest)
    steps = 0
    while oldest.pending == oldest.answer_tokens == 0:
        for number in range(3):
            work.add(sequence(3 * steps + number + 1, 30, max_tokens=1))
        before = oldest.computed
        step(work)
        assert oldest.computed > before
        steps += 1
        assert steps <= 400 / (64 / 4) + 1, "less than a quarter of each step"


def test_a_step_computes_no_more_than_its_tokens() -> None:
    work = scheduler(step_tokens=50, beside=20, max_num_seqs=6)
    for number, prompt in enumerate((7, 300, 41, 3, 90, 16, 220, 64)):
        work.add(sequence(number, prompt, max_tokens=4 + number))
    for plan in steps_until_idle(work):
        decodes = sum(chunk.start >= chunk.sequence.prompt_tokens for chunk in plan.chunks)
        assert sum(chunk.count for chunk in plan.chunks) <= (20 if decodes else 50)


def test_prompts_are_computed_whole_where_they_must_be() -> None:
    work = scheduler(step_tokens=100, chunked=False)
    for number in range(3):
        work.add(sequence(number, 80))
    assert shapes(work, 2) == [[(0, 0, 80), (1, 0, 80)], [(0, 80, 1), (1, 80, 1), (2, 0, 80)]]


def test_only_chunks_that_reach_the_end_are_sampled() -> None:
    work = scheduler(step_tokens=100)
    work.add(sequence(0, 150))
    for samples in (False, True, True):
        plan = work.plan()
        assert [chunk.samples for chunk in plan.chunks] == [samples]
        work.computed(plan)
        if samples:
            draw(plan.chunks[0].sequence)


def test_no_more_run_than_allowed_and_they_are_admitted_in_order() -> None:
    work = scheduler(max_num_seqs=2)
    for number in range(4):
        work.add(sequence(number, 5))
    step(work)
    assert [s.id for s in work.running] == [0, 1]
    work.remove(work.running[0])
    step(work)
    assert [s.id for s in work.running] == [1, 2]
    assert [s.id for s in work.waiting] == [3]


def test_decoding_goes_on_when_more_run_than_the_step_has_tokens() -> None:
    work = scheduler(max_num_seqs=20, step_tokens=4)
    for number in range(12):
        work.add(sequence(number, 1))
    for _ in range(12):
        step(work)
    assert len(work.plan().chunks) == 12


def test_prompts_start_although_more_decode_than_the_step_has_tokens() -> None:
    work = scheduler(max_num_seqs=20, step_tokens=50, beside=4)
    for number in range(10):
        work.add(sequence(number, 5))
    step(work)
    work.add(sequence(10, 3))
    assert [shape(step(work))[-1] for _ in range(3)] == [(10, 0, 1), (10, 1, 1), (10, 2, 1)]


def test_a_sequence_that_leaves_is_forgotten_wherever_it_was() -> None:
    work = scheduler(max_num_seqs=1)
    running, waiting = sequence(0, 20), sequence(1, 20)
    for one in (running, waiting):
        work.add(one)
    step(work)
    for one in (waiting, running, running):
        work.remove(one)
    assert (work.running, list(work.waiting), work.used_bytes) == ([], [], 0)


# -- room ------------------------------------------------------------------------------------


def until_preempted(work: Scheduler) -> list[Sequence]:
    for plan in steps_until_idle(work):
        if plan.preempted:
            return list(plan.preempted)
    return []


def test_the_newest_gives_up_its_room_and_comes_back_first() -> None:
    work = scheduler(blocks=12, step_tokens=1000)
    old, new, later = (sequence(number, 60) for number in range(3))
    waiting = sequence(3, 10)
    for one in (old, new, later, waiting):
        work.add(one)
    step(work)
    assert work.running == [old, new, later]
    assert until_preempted(work) == [later]
    assert (later.computed, later.table.blocks) == (0, [])
    assert list(work.waiting) == [later, waiting]
    assert work.used_bytes <= work.budget.limit_bytes


def test_what_was_preempted_is_computed_from_where_its_blocks_end() -> None:
    work = scheduler(blocks=13, step_tokens=1000)
    old, new = sequence(0, 60, max_tokens=80), sequence(1, 60, max_tokens=80)
    for one in (old, new):
        work.add(one)
    assert until_preempted(work) == [new]
    work.remove(old)
    plan = step(work)
    [chunk] = plan.chunks
    assert chunk.sequence is new
    # All but the tokens after its last full block, if others needed no more than what was free.
    assert 0 < chunk.count <= len(new.tokens) - chunk.start + 1
    assert chunk.start >= 5 * BLOCK_TOKENS
    assert work.reused_tokens == chunk.start
    assert new.cached_tokens == 0, "nothing of it was there when it came"


def test_the_resumed_answer_is_as_long_as_any() -> None:
    work = scheduler(blocks=9, step_tokens=1000)
    both = [sequence(number, 40, max_tokens=90) for number in range(2)]
    for one in both:
        work.add(one)
    preempted = sum(len(plan.preempted) for plan in steps_until_idle(work))
    assert preempted > 0
    assert [one.answer_tokens for one in both] == [90, 90]
    assert both[0].tokens[40:] == both[1].tokens[40:]


def test_an_answer_never_reserves_more_than_its_own_maximum() -> None:
    work = scheduler(blocks=5)
    work.add(sequence(0, 60, max_tokens=20))
    for plan in steps_until_idle(work):
        assert not plan.preempted
    assert work.pool.available == 5


def test_who_does_not_fit_waits_and_holds_nothing() -> None:
    work = scheduler(blocks=4, step_tokens=1000)
    work.add(sequence(0, 40, max_tokens=5))
    work.add(sequence(1, 40, max_tokens=5))
    step(work)
    assert [s.id for s in work.waiting] == [1]
    assert work.waiting[0].table.blocks == []
    assert computed_tokens(work) == 40 + 4 + 4


@pytest.mark.parametrize(
    ("limit", "token_bytes", "fixed_bytes", "longest"),
    [
        (100, 3, 0, 2 * BLOCK_TOKENS),
        (47, 3, 0, 0),
        (100, 0, 10, None),
        (9, 0, 10, 0),
        (160, 1, 100, 3 * BLOCK_TOKENS),
        (100, 1, 101, 0),
    ],
)
def test_the_longest_sequence_that_fits_alone(
    limit: int, token_bytes: int, fixed_bytes: int, longest: int | None
) -> None:
    budget = KVBudget(limit_bytes=limit, token_bytes=token_bytes, fixed_bytes=fixed_bytes)
    assert budget.longest == longest
    if longest:
        assert budget.cost(longest) <= limit < budget.cost(longest + 1)


# -- equal beginnings ------------------------------------------------------------------------

LONG = [token % 50 for token in range(200)]


def test_of_a_known_beginning_only_the_tail_is_computed() -> None:
    work = scheduler(step_tokens=1000)
    work.add(sequence(0, [*LONG, 7, 8, 9], max_tokens=1))
    assert computed_tokens(work) == 203
    work.add(sequence(1, [*LONG, 5, 6, 7, 8], max_tokens=1))
    known = len(LONG) // BLOCK_TOKENS * BLOCK_TOKENS
    assert shape(step(work)) == [(1, known, 204 - known)]
    assert work.reused_tokens == known


def test_a_repeated_prompt_still_has_a_token_to_compute() -> None:
    work = scheduler(step_tokens=1000)
    for number in range(2):
        work.add(sequence(number, LONG[:64], max_tokens=1))
        assert computed_tokens(work) == (64, 16)[number]


def test_an_answer_is_the_beginning_of_the_next_prompt() -> None:
    work = scheduler(step_tokens=1000)
    first = sequence(0, LONG[:30], max_tokens=40)
    work.add(first)
    computed_tokens(work)
    work.add(sequence(1, [*first.tokens, 3, 3, 3], max_tokens=1))
    assert shape(step(work)) == [(1, 64, 9)]


def test_choices_of_one_prompt_compute_it_once() -> None:
    work = scheduler(step_tokens=64, max_num_seqs=16)
    for number in range(16):
        work.add(sequence(number, LONG, max_tokens=1))
    known = (len(LONG) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert computed_tokens(work) == len(LONG) + 15 * (len(LONG) - known)


def test_who_waits_for_a_beginning_lets_others_pass() -> None:
    work = scheduler(step_tokens=40)
    for number in range(2):
        work.add(sequence(number, LONG, max_tokens=2))
    work.add(sequence(2, 10, max_tokens=2))
    assert shape(step(work)) == [(0, 0, 30), (2, 0, 10)]
    assert [s.id for s in work.waiting] == [1]


def test_a_beginning_is_computed_again_when_its_owner_has_left() -> None:
    work = scheduler(step_tokens=40)
    for number in range(2):
        work.add(sequence(number, LONG, max_tokens=2))
    step(work)
    work.remove(sequence_of(work, 0))
    assert shape(step(work)) == [(1, 32, 40)]


def test_nothing_is_shared_where_prompts_are_computed_whole() -> None:
    work = scheduler(step_tokens=1000, chunked=False)
    for number in range(2):
        work.add(sequence(number, LONG, max_tokens=1))
    assert computed_tokens(work) == 400
    assert (work.reused_tokens, work.remembered_bytes) == (0, 0)


def beside_its_owner(work: Scheduler, shared: int) -> tuple[Sequence, Sequence, Plan]:
    """One that runs, one that begins with ``shared`` of its tokens, and the latter's first step."""
    beginning = [token % 50 for token in range(shared)]
    first, second = sequence(0, [*beginning, 7, 8]), sequence(1, [*beginning, 5, 6, 7])
    work.add(first)
    step(work)
    work.add(second)
    plan = work.plan()
    work.computed(plan)
    assert (1, shared, 3) in shape(plan)
    assert work.reused_tokens == shared
    return first, second, plan


@pytest.mark.parametrize("shared", [16, 96, 512])
def test_a_short_beginning_is_copied_to_where_the_sequence_goes_on(shared: int) -> None:
    work = scheduler(step_tokens=1000)
    first, second, plan = beside_its_owner(work, shared)
    blocks = shared // BLOCK_TOKENS
    assert len(second.table.runs) == 1
    assert not set(first.table.blocks) & set(second.table.blocks)
    wanted = zip(first.table.blocks[:blocks], second.table.blocks[:blocks], strict=True)
    assert plan.copies == tuple(wanted)
    assert work.plan().copies == ()


def test_a_long_beginning_is_shared() -> None:
    work = scheduler(step_tokens=1000)
    first, second, plan = beside_its_owner(work, 528)
    assert plan.copies == ()
    assert second.table.blocks[:33] == first.table.blocks[:33]
    assert len(second.table.runs) == 2


def test_a_short_beginning_is_shared_where_there_is_no_room_for_a_copy() -> None:
    work = scheduler(step_tokens=1000, blocks=10)
    first, second, plan = beside_its_owner(work, 96)
    assert plan.copies == ()
    assert second.table.blocks[:6] == first.table.blocks[:6]


def test_who_was_given_a_copy_leaves_nothing_behind() -> None:
    work = scheduler(step_tokens=1000, blocks=40)
    first, second, _ = beside_its_owner(work, 96)
    work.remove(second)
    assert work.pool.used == len(first.table.blocks)
    work.remove(first)
    assert (work.pool.used, work.pool.available) == (0, 40)


# -- one step ahead --------------------------------------------------------------------------


def test_a_step_is_planned_before_the_tokens_of_the_last_one_are_known() -> None:
    work = scheduler(step_tokens=100)
    only = sequence(0, 31, max_tokens=3)
    work.add(only)
    for start, count in ((0, 31), (31, 1), (32, 1)):
        plan = work.plan()
        assert shape(plan) == [(0, start, count)]
        work.computed(plan)
    assert (only.pending, only.length, len(only.tokens)) == (3, 34, 31)
    assert shape(work.plan()) == [], "the tokens on their way fill the answer up"
    for _ in range(3):
        draw(only)
    assert (only.pending, only.length, only.answer_tokens) == (0, 34, 3)


def test_a_block_is_not_known_to_others_before_its_tokens_are() -> None:
    work = scheduler(step_tokens=100)
    only = sequence(0, 31, max_tokens=9)
    work.add(only)
    for _ in range(3):
        work.computed(work.plan())
    assert only.computed == 33
    assert only.table.known == 1
    draw(only)
    work.computed(work.plan())
    assert only.table.known == 2


def test_tokens_on_their_way_have_room() -> None:
    work = scheduler(step_tokens=100)
    only = sequence(0, 15, max_tokens=50)
    work.add(only)
    for _ in range(20):
        work.computed(work.plan())
        assert only.computed <= only.table.tokens
    assert only.table.tokens == 3 * BLOCK_TOKENS


def decoding(work: Scheduler, count: int, **options: int) -> list[Sequence]:
    """Sequences whose prompts are computed and whose first token is on its way."""
    sequences = [sequence(number, 20, **options) for number in range(count)]
    for one in sequences:
        work.add(one)
    work.computed(work.plan())
    return sequences


def test_work_is_steady_while_all_decode() -> None:
    work = scheduler(step_tokens=1000)
    decoding(work, 3)
    assert work.steady


def test_no_work_is_not_steady() -> None:
    assert not scheduler().steady


def test_work_is_not_steady_while_somebody_waits_and_there_is_a_place() -> None:
    work = scheduler(step_tokens=1000)
    decoding(work, 3)
    work.add(sequence(9, 20))
    assert not work.steady


def test_work_is_not_steady_in_the_midst_of_a_prompt() -> None:
    work = scheduler(step_tokens=10)
    work.add(sequence(0, 15))
    seen = []
    for _ in range(3):
        work.computed(work.plan())
        seen.append(work.steady)
    assert seen == [False, True, True]


def test_who_waits_for_a_place_does_not_disturb() -> None:
    work = scheduler(step_tokens=1000, max_num_seqs=2)
    decoding(work, 3)
    assert len(work.waiting) == 1
    assert work.steady


def test_work_is_not_steady_where_somebody_might_have_to_give_up_room() -> None:
    work = scheduler(step_tokens=1000, blocks=8)
    decoding(work, 3)
    assert work.pool.available == 2
    assert not work.steady


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty"])
def test_work_is_not_steady_where_draws_depend_on_tokens(penalty: str) -> None:
    work = scheduler(step_tokens=1000)
    first, _ = decoding(work, 2)
    first.row.params = DrawParams(**cast(Any, {penalty: 1.5}))
    assert not work.steady


def test_work_is_not_steady_where_the_last_token_decides_what_the_next_may_be() -> None:
    work = scheduler(step_tokens=1000)
    _, second = decoding(work, 2)
    second.row.allowed = b"\xff"
    assert not work.steady
    second.row.allowed, second.row.logprobs = None, 3
    assert work.steady, "log-probabilities are no hindrance"


def test_a_preempted_sequence_draws_the_tokens_on_their_way_again() -> None:
    work = scheduler(step_tokens=1000)
    first, second = decoding(work, 2)
    work.preempt(second)
    assert (second.pending, second.length, second.computed) == (0, 20, 0)
    assert (second.next_row().position, first.next_row().position) == (0, 1)


# -- what lies in the blocks -----------------------------------------------------------------


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 40), st.integers(1, 60)),
        min_size=2,
        max_size=12,
    ),
    blocks=st.integers(14, 60),
    remembered=st.integers(0, 60),
    step_tokens=st.integers(8, 200),
)
def test_every_token_finds_those_before_it(
    prompts: list[tuple[int, int, int]], blocks: int, remembered: int, step_tokens: int
) -> None:
    """Prompts as (blocks that begin alike, further tokens, tokens of the answer). Steps are taken
    with the tokens themselves in the place of their keys and values."""
    work = scheduler(blocks=blocks, step_tokens=step_tokens, remembered=remembered)
    for number, (alike, further, answer) in enumerate(prompts):
        ids = LONG[: alike * BLOCK_TOKENS] + [1000 + number] * further
        work.add(sequence(number, ids, answer))
    slots = [-1] * blocks * BLOCK_TOKENS
    for _ in range(5000):
        if not (work.running or work.waiting):
            break
        plan = work.plan()
        read = [slots[_place(source)] for source, _ in plan.copies]
        for (_, target), content in zip(plan.copies, read, strict=True):
            slots[_place(target)] = content
        for chunk in plan.chunks:
            where = [slot for block in chunk.sequence.table.blocks for slot in _slots(block)]
            end = chunk.start + chunk.count
            for position in range(chunk.start, end):
                slots[where[position]] = chunk.sequence.tokens[position]
            assert [slots[slot] for slot in where[:end]] == chunk.sequence.tokens[:end]
        work.computed(plan)
        for chunk in plan.chunks:
            if chunk.sequence.pending:
                draw(chunk.sequence)
                if not chunk.sequence.wants_more:
                    work.remove(chunk.sequence)
    assert work.pool.used == 0


def _place(block: int) -> slice:
    return slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)


def _slots(block: int) -> range:
    return range(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)


# -- any work --------------------------------------------------------------------------------

KINDS = [(1, 0, True), (1, 0, False), (3, 40, False), (1, 400, False), (0, 700, False)]
"""Bytes per token, bytes whatever the length, chunked: attention in blocks and with caches of its
own, two hybrids, state only."""


@pytest.mark.parametrize(("token_bytes", "fixed_bytes", "chunked"), KINDS)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 90)),
        min_size=1,
        max_size=12,
    ),
    spare=st.integers(0, 20),
    step_tokens=st.integers(1, 64),
    beside=st.integers(1, 64),
    arrivals=st.integers(1, 12),
)
def test_everything_ends_within_the_budget(
    *,
    prompts: list[tuple[int, int, int]],
    spare: int,
    step_tokens: int,
    beside: int,
    arrivals: int,
    token_bytes: int,
    fixed_bytes: int,
    chunked: bool,
) -> None:
    """Prompts as (length, tokens of the answer, tokens that begin like those of all others),
    ``arrivals`` at a time."""
    alone = KVBudget(limit_bytes=0, token_bytes=token_bytes, fixed_bytes=fixed_bytes).cost(130)
    budget = KVBudget(
        limit_bytes=alone + spare * BLOCK_TOKENS * max(1, token_bytes),
        token_bytes=token_bytes,
        fixed_bytes=fixed_bytes,
    )
    limits = SchedulerLimits(
        max_num_seqs=5, token_budget=step_tokens, token_budget_beside=beside, chunked=chunked
    )
    work = Scheduler(limits, budget)
    sequences = [
        sequence(number, (LONG[:alike] + [1000 + number] * length)[:length], answer)
        for number, (length, answer, alike) in enumerate(prompts)
    ]
    coming = list(sequences)
    for _ in range(20_000):
        for one in coming[:arrivals]:
            work.add(one)
        del coming[:arrivals]
        if not (work.running or work.waiting):
            break
        plan = step(work)
        assert plan.chunks
        assert len(work.running) <= 5
        assert len({chunk.sequence.id for chunk in plan.chunks}) == len(plan.chunks)
        assert not {s.id for s in plan.preempted} & {chunk.sequence.id for chunk in plan.chunks}
        for one in work.running:
            assert len(one.table.blocks) >= budget.blocks_of(one.computed)
        assert work.used_bytes + work.remembered_bytes <= budget.limit_bytes
    assert [one.answer_tokens for one in sequences] == [answer for _, answer, _ in prompts]
    assert work.pool.used == 0
