from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast
from unittest import TestCase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotswap.engine.blocks import BLOCK_TOKENS, BlockPool, BlockTable

ALL = 10_000
"""Tokens; more than any prompt here has."""


def prompt(*blocks: int) -> list[int]:
    """Full blocks, each of one token over and over."""
    return [token for token in blocks for _ in range(BLOCK_TOKENS)]


def held(pool: BlockPool, tokens: list[int]) -> BlockTable:
    """A table of tokens that are all computed, and known to others."""
    table = pool.match(tokens, len(tokens))
    assert pool.grow(table, len(tokens))
    pool.remember(table, tokens, len(tokens))
    return table


def left(pool: BlockPool, tokens: list[int]) -> list[int]:
    """The blocks of somebody who came and went."""
    table = held(pool, tokens)
    blocks = list(table.blocks)
    pool.release(table)
    return blocks


def matched(pool: BlockPool, tokens: list[int]) -> int:
    """How many blocks of ``tokens`` the pool knows."""
    table = pool.match(tokens, len(tokens))
    count = len(table.blocks)
    pool.release(table)
    return count


def in_runs(table: BlockTable) -> list[int]:
    return [block for first, count in table.runs for block in range(first, first + count)]


# -- sharing ---------------------------------------------------------------------------------


def test_equal_beginnings_share_their_blocks() -> None:
    pool = BlockPool(8)
    first = held(pool, prompt(1, 2, 3))
    second = pool.match(prompt(1, 2, 4), ALL)
    assert second.blocks == first.blocks[:2]
    assert (second.known, second.tokens) == (2, 32)
    assert pool.used == 3


def test_what_is_in_a_block_counts_only_after_the_same_blocks() -> None:
    """Keys and values depend on all tokens before them."""
    pool = BlockPool(8)
    held(pool, prompt(1, 2))
    assert matched(pool, prompt(2)) == 0
    assert matched(pool, prompt(3, 2)) == 0
    assert matched(pool, prompt(1, 2)) == 2


def test_only_full_computed_blocks_are_found() -> None:
    pool = BlockPool(8)
    tokens = prompt(1, 2, 3)
    table = BlockTable()
    assert pool.grow(table, len(tokens))
    for computed, blocks in ((15, 0), (16, 1), (31, 1), (47, 2), (48, 3)):
        pool.remember(table, tokens, computed)
        assert matched(pool, tokens) == blocks


@pytest.mark.parametrize(("most", "blocks"), [(0, 0), (15, 0), (16, 1), (47, 2), (48, 3), (99, 3)])
def test_no_more_is_matched_than_was_asked_for(most: int, blocks: int) -> None:
    pool = BlockPool(8)
    left(pool, prompt(1, 2, 3))
    assert len(pool.match(prompt(1, 2, 3), most).blocks) == blocks


def test_a_block_is_given_back_when_its_last_user_leaves() -> None:
    pool = BlockPool(4)
    first = held(pool, prompt(1, 2))
    second = pool.match(prompt(1, 2), ALL)
    pool.release(first)
    assert (pool.used, pool.remembered) == (2, 0)
    pool.release(second)
    assert (pool.used, pool.remembered, pool.available) == (0, 2, 4)


def test_blocks_that_nobody_can_find_are_free_at_once() -> None:
    pool = BlockPool(4)
    table = BlockTable()
    assert pool.grow(table, 3 * BLOCK_TOKENS)
    pool.release(table)
    assert (pool.remembered, pool.available) == (0, 4)
    assert (table.blocks, table.runs, table.known, table.tokens) == ([], [], 0, 0)


def test_the_same_computed_twice_is_remembered_once() -> None:
    pool = BlockPool(8)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        assert pool.grow(table, 32)
    for table in tables:
        pool.remember(table, prompt(1, 2), 32)
    for table in tables:
        pool.release(table)
    assert pool.remembered == 2
    assert matched(pool, prompt(1, 2)) == 2


def test_who_computed_it_again_can_be_continued_by_others() -> None:
    pool = BlockPool(8)
    twice = [BlockTable(), BlockTable()]
    for table in twice:
        assert pool.grow(table, 48)
    pool.remember(twice[0], prompt(1), 16)
    pool.remember(twice[1], prompt(1, 2), 32)
    assert matched(pool, prompt(1, 2)) == 2


# -- forgetting ------------------------------------------------------------------------------


def test_the_least_recently_used_is_forgotten_first() -> None:
    pool = BlockPool(4)
    for token in (1, 2, 3):
        left(pool, prompt(token))
    assert matched(pool, prompt(1)) == 1  # and so it was used after the others
    table = BlockTable()
    assert pool.grow(table, 2 * BLOCK_TOKENS)
    assert [matched(pool, prompt(token)) for token in (1, 2, 3)] == [1, 0, 1]


def test_the_end_is_forgotten_before_the_beginning() -> None:
    pool = BlockPool(4)
    left(pool, prompt(1, 2, 3, 4))
    table = BlockTable()
    for blocks in (1, 2, 3):
        assert pool.grow(table, blocks * BLOCK_TOKENS)
        assert matched(pool, prompt(1, 2, 3, 4)) == 4 - blocks


def test_nothing_is_forgotten_while_blocks_are_free() -> None:
    pool = BlockPool(8)
    left(pool, prompt(1, 2, 3, 4))
    table = BlockTable()
    assert pool.grow(table, 4 * BLOCK_TOKENS)
    assert matched(pool, prompt(1, 2, 3, 4)) == 4


def test_what_is_used_is_never_forgotten() -> None:
    pool = BlockPool(4)
    table = held(pool, prompt(1, 2))
    assert pool.grow(BlockTable(), 32)
    assert not pool.grow(BlockTable(), 1)
    assert pool.match(prompt(1, 2), ALL).blocks == table.blocks


@pytest.mark.parametrize("most", [0, 1, 3])
def test_no_more_unused_blocks_are_remembered_than_allowed(most: int) -> None:
    pool = BlockPool(8, remembered=most)
    left(pool, prompt(1, 2))
    left(pool, prompt(3, 4))
    assert pool.remembered == most
    assert pool.available == 8
    assert matched(pool, prompt(3, 4)) == min(most, 2)


@pytest.mark.parametrize(("most", "kept"), [(0, 0), (2, 2), (3, 3), (9, 5)])
def test_the_beginning_of_the_newest_is_kept(most: int, kept: int) -> None:
    pool = BlockPool(8)
    old, new = left(pool, prompt(1, 2)), left(pool, prompt(3, 4, 5))
    order = [*new, *old]
    assert set(pool.keep(most)) == set(order[:kept])
    assert matched(pool, prompt(3, 4, 5)) == min(most, 3)
    assert pool.remembered == kept


def test_of_what_nobody_asked_for_again_little_is_remembered_and_the_oldest_is_forgotten() -> None:
    pool = BlockPool(16, remembered=8, remembered_once=3)
    for token in (1, 2, 3, 4, 5):
        left(pool, prompt(token))
    assert pool.remembered == 3
    assert [matched(pool, prompt(token)) for token in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 1]


def test_what_was_asked_for_again_is_not_pushed_out_by_what_was_not() -> None:
    pool = BlockPool(16, remembered=8, remembered_once=2)
    left(pool, prompt(1, 2))
    assert matched(pool, prompt(1, 2)) == 2
    for token in (3, 4, 5, 6, 7):
        left(pool, prompt(token))
    assert pool.remembered == 4
    assert matched(pool, prompt(1, 2)) == 2


def test_what_a_long_sequence_leaves_stays_although_nobody_has_asked_for_it() -> None:
    pool = BlockPool(60, remembered=50, remembered_once=2)
    long = prompt(*range(32))
    left(pool, long)
    for token in (101, 102, 103, 104):
        left(pool, prompt(token))
    assert pool.remembered == 34
    assert matched(pool, long) == 32


def test_what_the_newest_sequence_leaves_is_remembered_whole_until_the_next_one_ends() -> None:
    pool = BlockPool(16, remembered=8, remembered_once=2)
    left(pool, prompt(1, 2, 3, 4, 5))
    assert pool.remembered == 5
    left(pool, prompt(6))
    assert pool.remembered == 2
    assert (matched(pool, prompt(6)), matched(pool, prompt(1, 2, 3, 4, 5))) == (1, 1)


def test_room_is_taken_from_the_least_recently_used_even_if_it_was_asked_for_again() -> None:
    pool = BlockPool(4, remembered_once=2)
    left(pool, prompt(1))
    assert matched(pool, prompt(1)) == 1
    left(pool, prompt(2))
    assert pool.grow(BlockTable(), 3 * BLOCK_TOKENS)
    assert (matched(pool, prompt(1)), matched(pool, prompt(2))) == (0, 1)


def test_a_content_that_was_forgotten_has_to_be_asked_for_again() -> None:
    pool = BlockPool(2, remembered_once=0)
    left(pool, prompt(1))
    assert matched(pool, prompt(1)) == 1
    fills_it = BlockTable()
    assert pool.grow(fills_it, 2 * BLOCK_TOKENS)
    pool.release(fills_it)
    left(pool, prompt(1))
    left(pool, prompt(2))
    assert matched(pool, prompt(1)) == 0


# -- giving memory back ----------------------------------------------------------------------


def test_blocks_are_vacated_when_none_is_in_use() -> None:
    told: list[list[tuple[int, int]]] = []
    pool = BlockPool(8)
    pool.vacate_with(lambda runs: told.append(list(runs)))
    one, other = BlockTable(), BlockTable()
    assert pool.grow(one, 3 * BLOCK_TOKENS)
    assert pool.grow(other, 2 * BLOCK_TOKENS)
    used = set(one.blocks + other.blocks)
    pool.release(one)
    pool.settle()
    assert told == []
    pool.release(other)
    assert told == [], "it is not yet the time"
    pool.settle()
    vacated = {block for first, count in told[0] for block in range(first, first + count)}
    assert used <= vacated
    pool.settle()
    assert len(told) == 1


def test_all_that_is_free_may_be_vacated_when_it_is_asked_for() -> None:
    told: list[list[tuple[int, int]]] = []
    pool = BlockPool(2, worth_vacating=3)
    pool.vacate_with(lambda runs: told.append(list(runs)))
    table = BlockTable()
    assert pool.grow(table, 2 * BLOCK_TOKENS)
    pool.release(table)
    pool.settle()
    assert told == []
    pool.vacate()
    pool.vacate()
    assert told == [[(0, 2)]]


def test_blocks_in_use_again_and_blocks_that_are_remembered_are_not_vacated() -> None:
    told: list[list[tuple[int, int]]] = []
    pool = BlockPool(4, worth_vacating=2)
    pool.vacate_with(lambda runs: told.append(list(runs)))
    table = BlockTable()
    assert pool.grow(table, 1)
    pool.release(table)
    pool.settle()
    assert told == []  # one alone is not worth it
    kept = left(pool, prompt(1, 2))
    pool.settle()
    assert told == []
    assert pool.grow(table, 2 * BLOCK_TOKENS)
    pool.release(table)
    pool.settle()
    assert told == [[(2, 2)]]
    assert kept == [0, 1]


def test_free_neighbours_are_vacated_again_because_they_may_share_a_page() -> None:
    told: list[list[tuple[int, int]]] = []
    pool = BlockPool(3)
    pool.vacate_with(lambda runs: told.append(list(runs)))
    tables = [BlockTable(), BlockTable(), BlockTable()]
    for table in tables:
        assert pool.grow(table, 1)
    for table in tables[:2]:
        pool.release(table)
    pool.vacate()
    pool.release(tables[2])
    pool.vacate()
    assert told == [[(0, 2)], [(1, 2)]]


def test_a_growth_that_fails_changes_nothing() -> None:
    pool = BlockPool(4)
    left(pool, prompt(9))
    table = held(pool, prompt(1, 2))
    before = list(table.blocks), list(table.runs), pool.available, pool.remembered
    assert not pool.grow(table, 4 * BLOCK_TOKENS + 1)
    assert (table.blocks, table.runs, pool.available, pool.remembered) == before
    assert matched(pool, prompt(9)) == 1
    assert pool.grow(table, 4 * BLOCK_TOKENS)


# -- neighbours ------------------------------------------------------------------------------


def test_a_table_grows_into_the_blocks_after_its_own() -> None:
    pool = BlockPool(64)
    tables = [BlockTable(), BlockTable()]
    for tokens in range(1, 16 * BLOCK_TOKENS, 7):
        for table in tables:
            assert pool.grow(table, tokens)
    assert [len(table.runs) for table in tables] == [1, 1]


def test_sequences_of_a_kind_begin_at_equal_distances() -> None:
    pool = BlockPool(256)
    firsts = []
    for tokens in (3, 60, 100, 17, 128):
        table = BlockTable()
        assert pool.grow(table, tokens)
        firsts.append(table.blocks[0])
    assert len({b - a for a, b in pairwise(firsts)}) == 1


def test_a_long_sequence_gets_room_to_double() -> None:
    pool = BlockPool(512)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        assert pool.grow(table, 50 * BLOCK_TOKENS)
    for table in tables:
        assert pool.grow(table, 100 * BLOCK_TOKENS)
    assert [len(table.runs) for table in tables] == [1, 1]


def test_sequences_lie_closer_where_there_is_no_room_for_more() -> None:
    pool = BlockPool(16)
    tables = [BlockTable() for _ in range(4)]
    for table in tables:
        assert pool.grow(table, 4 * BLOCK_TOKENS)
    assert sorted(table.runs[0] for table in tables) == [(0, 4), (4, 4), (8, 4), (12, 4)]


def test_holes_are_filled_when_nothing_else_is_left() -> None:
    pool = BlockPool(6)
    ones = [BlockTable() for _ in range(6)]
    for table in ones:
        assert pool.grow(table, 1)
    holes = [table for table in ones if table.blocks[0] % 2]
    for table in holes:
        pool.release(table)
    scattered = BlockTable()
    assert pool.grow(scattered, 3 * BLOCK_TOKENS)
    assert scattered.blocks == [1, 3, 5]
    assert scattered.runs == [(1, 1), (3, 1), (5, 1)]


def test_neighbours_are_one_run_of_free_blocks() -> None:
    pool = BlockPool(8)
    assert pool.grow(BlockTable(), 2 * BLOCK_TOKENS)
    table = pool.neighbours(4)
    assert table is not None
    assert [count for _, count in table.runs] == [4]
    assert in_runs(table) == table.blocks
    assert (table.known, pool.used) == (0, 6)
    pool.release(table)
    assert (pool.used, pool.remembered) == (2, 0)


def test_where_free_blocks_lie_apart_there_are_no_neighbours() -> None:
    pool = BlockPool(6)
    ones = [BlockTable() for _ in range(6)]
    for table in ones:
        assert pool.grow(table, 1)
    for table in [table for table in ones if table.blocks[0] % 2]:
        pool.release(table)
    assert pool.neighbours(2) is None
    assert (pool.used, pool.available) == (3, 3)
    assert pool.neighbours(1) is not None


def test_nothing_is_forgotten_for_neighbours() -> None:
    pool = BlockPool(6)
    left(pool, prompt(1, 2, 3, 4))
    assert pool.neighbours(3) is None
    assert pool.remembered == 4
    assert matched(pool, prompt(1, 2, 3, 4)) == 4


@given(st.lists(st.integers(0, 30), max_size=40))
def test_runs_say_what_the_blocks_say(blocks: list[int]) -> None:
    table = BlockTable()
    for block in blocks:
        table.extend([block])
    assert in_runs(table) == table.blocks == blocks
    assert all(sum(a) != b[0] for a, b in pairwise(table.runs))


# -- any history -----------------------------------------------------------------------------


@dataclass(eq=False)
class User:
    tokens: list[int]
    table: BlockTable
    computed: int
    shared: int = field(init=False)
    """Blocks that were there when it came."""

    def __post_init__(self) -> None:
        self.shared = len(self.table.blocks)


BEGINNINGS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=5).map(lambda b: prompt(*b))
ENDS = st.lists(st.integers(3, 4), max_size=20)
NUMBERS = st.integers(0, 1000)


class Histories(RuleBasedStateMachine):
    """Users that come, grow, compute and go. What a block holds is written down beside the pool:
    all tokens up to its last one, because keys and values depend on them."""

    BLOCKS, REMEMBERED = 14, 5

    def __init__(self) -> None:
        super().__init__()
        self.users: list[User] = []
        self.content: dict[int, list[int]] = {}
        self.pool = BlockPool(self.BLOCKS, remembered=self.REMEMBERED, remembered_once=2)
        self.pool.vacate_with(self.vacated)

    def vacated(self, runs: Sequence[tuple[int, int]]) -> None:
        """Whoever finds one of these blocks from here on finds nothing in it."""
        for first, count in runs:
            for block in range(first, first + count):
                self.content.pop(block, None)

    @rule()
    def settle(self) -> None:
        self.pool.settle()

    @rule(beginning=BEGINNINGS, end=ENDS, short=st.integers(0, 20))
    def come(self, beginning: list[int], end: list[int], short: int) -> None:
        tokens = beginning + end
        most = max(0, len(tokens) - short)
        table = self.pool.match(tokens, most)
        assert table.tokens <= most
        assert table.known == len(table.blocks)
        for index, block in enumerate(table.blocks):
            assert self.content[block] == tokens[: (index + 1) * BLOCK_TOKENS]
        self.users.append(User(tokens, table, table.tokens))

    @precondition(lambda self: self.users)
    @rule(who=NUMBERS, more=st.integers(0, 100))
    def grow(self, who: int, more: int) -> None:
        user = self._user(who)
        wanted = user.computed + more
        before, pool = list(user.table.blocks), self.pool
        missing = max(0, -(-wanted // BLOCK_TOKENS) - len(before))
        state = pool.available, pool.remembered
        grown = pool.grow(user.table, wanted)
        assert grown == (missing <= state[0])
        if not grown:
            assert (user.table.blocks, pool.available, pool.remembered) == (before, *state)
            return
        assert user.table.blocks[: len(before)] == before
        assert len(user.table.blocks) == len(before) + missing
        assert pool.available == state[0] - missing
        for block in user.table.blocks[len(before) :]:
            self.content.pop(block, None)

    @precondition(lambda self: self.users)
    @rule(who=NUMBERS, more=st.integers(1, 40), told=st.booleans())
    def compute(self, who: int, more: int, told: bool) -> None:
        user = self._user(who)
        end = min(user.computed + more, user.table.tokens)
        while len(user.tokens) < end:
            user.tokens.append(len(user.tokens) % 2)
        for index in range(user.computed // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
            block = user.table.blocks[index]
            assert self._users_of(block) == [user], "somebody else reads what is written here"
            self.content[block] = user.tokens[: min(end, (index + 1) * BLOCK_TOKENS)]
        user.computed = max(end, user.computed)
        if told:
            self.pool.remember(user.table, user.tokens, user.computed)
            assert user.table.known == user.computed // BLOCK_TOKENS

    @precondition(lambda self: self.users)
    @rule(who=NUMBERS)
    def go(self, who: int) -> None:
        user = self._user(who)
        self.pool.release(user.table)
        assert user.table.blocks == []
        self.users.remove(user)

    @invariant()
    def blocks_are_shared_by_their_content_only(self) -> None:
        for user in self.users:
            assert in_runs(user.table) == user.table.blocks
            assert len(set(user.table.blocks)) == len(user.table.blocks)
            for index, block in enumerate(user.table.blocks):
                end = (index + 1) * BLOCK_TOKENS
                for other in self._users_of(block):
                    assert other.table.blocks[index] == block
                    assert other.tokens[:end] == user.tokens[:end]

    @invariant()
    def the_numbers_add_up(self) -> None:
        pool = self.pool
        in_use = {block for user in self.users for block in user.table.blocks}
        assert in_use <= set(range(self.BLOCKS))
        assert pool.used == len(in_use)
        assert pool.used + pool.available == pool.count == self.BLOCKS
        assert 0 <= pool.remembered <= min(self.REMEMBERED, pool.available)

    @invariant()
    def what_is_available_can_be_had(self) -> None:
        """Taken and given back; a history in which nothing is remembered is one like any other."""
        if self.pool.remembered:
            return
        table = BlockTable()
        assert self.pool.grow(table, self.pool.available * BLOCK_TOKENS)
        assert not self.pool.grow(table, table.tokens + 1)
        self.pool.release(table)

    def _user(self, number: int) -> User:
        return self.users[number % len(self.users)]

    def _users_of(self, block: int) -> list[User]:
        return [user for user in self.users if block in user.table.blocks]


TestHistories = cast(type[TestCase], Histories.TestCase)
TestHistories.settings = settings(  # type: ignore[attr-defined]
    stateful_step_count=40
)


def test_a_pool_can_have_more_blocks() -> None:
    pool, table = BlockPool(2), BlockTable()
    assert not pool.grow(table, 3 * BLOCK_TOKENS)
    assert pool.grow(table, 2 * BLOCK_TOKENS)
    pool.extend(5)
    assert (pool.count, pool.free, pool.used) == (5, 3, 2)
    assert pool.grow(table, 5 * BLOCK_TOKENS)
    assert sorted(table.blocks) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("least", "count"), [(0, 2), (4, 4), (99, 9)])
def test_what_is_remembered_can_be_packed_into_the_first_blocks(least: int, count: int) -> None:
    pool, first, kept, last = BlockPool(9), BlockTable(), BlockTable(), BlockTable()
    tokens = list(range(2 * BLOCK_TOKENS))
    assert pool.grow(first, 3 * BLOCK_TOKENS)
    assert pool.grow(kept, 2 * BLOCK_TOKENS)
    assert pool.grow(last, BLOCK_TOKENS)
    pool.remember(kept, tokens, 2 * BLOCK_TOKENS)
    where = kept.blocks.copy()
    for table in (first, kept, last):
        pool.release(table)
    sources = pool.pack(least)
    assert sorted(sources) == sorted(where)
    assert (pool.count, pool.free, pool.remembered, pool.used) == (count, count - 2, 2, 0)
    found = pool.match(tokens, ALL)
    assert [sources[block] for block in found.blocks] == where
    pool.release(found)
    everything = BlockTable()
    assert pool.grow(everything, count * BLOCK_TOKENS)
    assert pool.remembered == 0
