"""Which blocks of the pool hold whose keys and values. Pure: no torch, no clock, no thread.

A block is room for `BLOCK_TOKENS` tokens of every layer. Sequences that begin alike share the
blocks of their beginning; a block that nobody uses any more keeps its content until the room is
needed, the least recently used one first. Content is found by the tokens themselves, so a match
is a match and no matter of hashing.

Most prompts never come again, and a short one is soon computed again. So of short sequences, what
nobody has asked for a second time may take little room, unless it is the newest.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16

_FREE, _TAKEN = b"\x01", b"\x00"
_ROOT = 0
_LANE_BLOCKS = 16
"""Room that a sequence gets to itself at first, where there is plenty."""

_LONG_BLOCKS = 32
"""Computing the beginning of so long a sequence again would be noticed."""

Key = tuple[int, tuple[int, ...]]
"""The block before it, by number of registration, and its own tokens."""
Run = tuple[int, int]
"""Neighbouring blocks: first one, count."""


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one sequence, in the order of its tokens."""

    blocks: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    """The same as stretches of neighbouring blocks."""
    known: int = 0
    """Blocks, from the first one on, whose content others can find."""
    last_known: int = _ROOT
    """Number of registration of the last of them."""

    @property
    def tokens(self) -> int:
        """Tokens there is room for."""
        return len(self.blocks) * BLOCK_TOKENS

    def extend(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self.runs and sum(self.runs[-1]) == block:
                first, count = self.runs[-1]
                self.runs[-1] = first, count + 1
            else:
                self.runs.append((block, 1))
        self.blocks += blocks


class BlockPool:
    """Hands out blocks, counts who uses them, remembers what is in them."""

    def __init__(
        self,
        count: int,
        *,
        remembered: int | None = None,
        remembered_once: int | None = None,
        worth_vacating: int = 1,
    ) -> None:
        """
        Args:
            remembered: unused blocks that may keep their content; None: all.
            remembered_once: as many of them may be of short sequences and have been asked for by
                nobody since they were computed, apart from those of the newest sequence; None: all.
            worth_vacating: as many free blocks are worth telling of.
        """
        self.count = count
        self._most_unused = sys.maxsize if remembered is None else remembered
        self._most_once = sys.maxsize if remembered_once is None else remembered_once
        self._vacate: Callable[[Sequence[Run]], None] | None = None
        self._worth_vacating = worth_vacating
        self._map = bytearray(_FREE * count)
        self._free = count
        self._users = [0] * count
        self._keys: dict[int, Key] = {}
        self._found: dict[Key, tuple[int, int]] = {}
        """Block and number of registration."""
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._unused_once: OrderedDict[int, None] = OrderedDict()
        """Those among them that may be forgotten sooner."""
        self._asked_for: set[int] = set()
        """Blocks with a content that is known and was wanted again."""
        self._to_vacate: set[int] = set()
        self._registered = _ROOT

    @property
    def free(self) -> int:
        """Blocks with nothing in them."""
        return self._free

    @property
    def available(self) -> int:
        """Blocks that could be handed out now."""
        return self._free + len(self._unused)

    @property
    def used(self) -> int:
        """Blocks of running sequences."""
        return self.count - self.available

    @property
    def remembered(self) -> int:
        """Blocks that nobody uses and that keep their content."""
        return len(self._unused)

    def match(self, tokens: Sequence[int], most: int) -> BlockTable:
        """A table with what is there of the beginning of ``tokens``, ``most`` tokens at most. It
        holds its blocks: release it, or go on with it."""
        table = BlockTable()
        blocks = []
        for start in range(0, most - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = table.last_known, tuple(tokens[start : start + BLOCK_TOKENS])
            found = self._found.get(key)
            if found is None:
                break
            block, table.last_known = found
            blocks.append(block)
        for block in blocks:
            self._users[block] += 1
            self._unused.pop(block, None)
            self._unused_once.pop(block, None)
        self._asked_for.update(blocks)
        table.extend(blocks)
        table.known = len(blocks)
        return table

    def grow(self, table: BlockTable, tokens: int) -> bool:
        """Give ``table`` room for ``tokens`` tokens, next to its last block where that is free.
        False: there are not enough blocks, and nothing has changed."""
        count = -(-tokens // BLOCK_TOKENS) - len(table.blocks)
        if count <= 0:
            return True
        if count > self.available:
            return False
        while self._free < count:
            self._forget(next(iter(self._unused)))
        while count:
            first, length = self._stretch(table, count)
            self._take(table, first, length)
            count -= length
        return True

    def neighbours(self, count: int) -> BlockTable | None:
        """A table of so many new blocks that lie next to each other; None: there is no such place
        that is free."""
        if count > self._free:
            return None
        table = BlockTable()
        first, length = self._stretch(table, count)
        if length < count:
            return None
        self._take(table, first, length)
        return table

    def remember(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Let others find the full blocks among the first ``computed`` tokens."""
        while (table.known + 1) * BLOCK_TOKENS <= computed:
            start = table.known * BLOCK_TOKENS
            key = table.last_known, tuple(tokens[start : start + BLOCK_TOKENS])
            block = table.blocks[table.known]
            known = self._found.get(key)
            if known is None:
                self._registered += 1
                known = self._found[key] = block, self._registered
                self._keys[block] = key
            table.last_known = known[1]
            table.known += 1

    def release(self, table: BlockTable) -> None:
        """Its user is gone. The end is forgotten before the beginning, which others share."""
        newest, is_long = 0, len(table.blocks) >= _LONG_BLOCKS
        for block in reversed(table.blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block not in self._keys:
                self._give_back(block)
                continue
            self._unused[block] = None
            if not is_long and block not in self._asked_for:
                self._unused_once[block] = None
                newest += 1
        table.blocks.clear()
        table.runs.clear()
        table.known, table.last_known = 0, _ROOT
        while len(self._unused_once) > max(self._most_once, newest):
            self._forget(next(iter(self._unused_once)))
        while len(self._unused) > self._most_unused:
            self._forget(next(iter(self._unused)))

    def keep(self, most: int) -> list[int]:
        """Forget what unused blocks hold, apart from those used last, ``most`` at most. Returns
        these."""
        while len(self._unused) > most:
            self._forget(next(iter(self._unused)))
        return list(self._unused)

    def extend(self, count: int) -> None:
        """Have ``count`` blocks, not fewer than there are."""
        more = count - self.count
        self._map += _FREE * more
        self._users += [0] * more
        self._free += more
        self.count = count

    def pack(self, least: int) -> list[int]:
        """Have what is remembered lie in the first blocks, in the order of its use, and do without
        those behind it, down to ``least``. Nobody may use any. Returns the blocks that each of the
        first ones is to be copied from."""
        assert not self.used, "blocks are in use"
        old = list(self._unused)
        new = {block: place for place, block in enumerate(old)}
        self.count = min(self.count, max(least, len(old)))
        self._free = self.count - len(old)
        self._map = bytearray(_TAKEN * len(old) + _FREE * self._free)
        self._users = [0] * self.count
        self._keys = {new[block]: key for block, key in self._keys.items()}
        self._found = {key: (new[block], number) for key, (block, number) in self._found.items()}
        self._unused = OrderedDict((new[block], None) for block in self._unused)
        self._unused_once = OrderedDict((new[block], None) for block in self._unused_once)
        self._asked_for = {new[block] for block in self._asked_for}
        self._to_vacate = set()
        return old

    def vacate_with(self, vacate: Callable[[Sequence[Run]], None]) -> None:
        """Have ``vacate`` told of free blocks."""
        self._vacate = vacate

    def settle(self) -> None:
        """Nothing more is to be done for now: where no block is in use, and it is worth while, tell
        of free blocks that have been in use since this was last told."""
        if not self.used and len(self._to_vacate) >= self._worth_vacating:
            self.vacate()

    def vacate(self) -> None:
        """As `settle`, however few they are."""
        if self._to_vacate:
            self._tell_vacant()

    def _take(self, table: BlockTable, first: int, length: int) -> None:
        self._map[first : first + length] = _TAKEN * length
        self._users[first : first + length] = [1] * length
        self._free -= length
        self._to_vacate.difference_update(range(first, first + length))
        table.extend(range(first, first + length))

    def _stretch(self, table: BlockTable, count: int) -> tuple[int, int]:
        """Free neighbouring blocks: first one and how many, ``count`` at most."""
        if table.runs:
            after = sum(table.runs[-1])
            length = self._free_from(after, count)
            if length:
                return after, length
        # Twice the room, at a multiple of it: neighbours then lie at equal distances, which lets
        # attention see them as one strided tensor, and each can grow.
        lane = _LANE_BLOCKS
        while lane < 2 * (len(table.blocks) + count):
            lane *= 2
        while lane > count:
            first = self._lane(lane)
            if first is not None:
                return first, count
            lane //= 2
        first = self._map.find(_FREE * count)
        if first < 0:
            first = self._map.find(_FREE)
            count = self._free_from(first, count)
        return first, count

    def _free_from(self, first: int, count: int) -> int:
        """Free blocks from ``first`` on, ``count`` at most."""
        stop = self._map.find(_TAKEN, first, first + count)
        return (min(first + count, self.count) if stop < 0 else stop) - min(first, self.count)

    def _lane(self, size: int) -> int | None:
        """The first free stretch of ``size`` blocks at a multiple of it."""
        pattern = _FREE * size
        first = self._map.find(pattern)
        while first >= 0 and first % size:
            first = self._map.find(pattern, first + size - first % size)
        return None if first < 0 else first

    def _forget(self, block: int) -> None:
        del self._unused[block]
        self._unused_once.pop(block, None)
        self._asked_for.discard(block)
        del self._found[self._keys.pop(block)]
        self._give_back(block)

    def _give_back(self, block: int) -> None:
        self._map[block] = _FREE[0]
        self._free += 1
        self._to_vacate.add(block)

    def _tell_vacant(self) -> None:
        # With their free neighbours: two small blocks may share a page.
        beside = {block + step for block in self._to_vacate for step in (-1, 1)}
        free = {b for b in beside if 0 <= b < self.count and self._map[b] == _FREE[0]}
        vacant = BlockTable()
        vacant.extend(sorted(self._to_vacate | free))
        self._to_vacate.clear()
        if self._vacate is not None:
            self._vacate(vacant.runs)
