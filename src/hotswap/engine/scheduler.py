"""Which tokens of which sequences the next step computes. Pure: no torch, no clock, no thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from hotswap.engine.blocks import BLOCK_TOKENS, BlockPool
from hotswap.engine.sequence import Sequence

_PROMPTS_AT_ONCE = 8
"""Prompts that are begun although the step has no tokens left for them: a short one behind a long
one then need not wait for its end."""
_LOOK_BEHIND = 32
"""Waiting sequences that may be admitted while the first ones wait for a prefix."""
_WORTH_SHARING_TOKENS = 512
"""A shorter beginning is copied where that makes the sequence's blocks neighbours: attention to
several stretches costs more in a few steps than the copy."""
_SURE_SHARE = 4
"""The oldest prompt gets at least one in this many of a step's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBudget:
    """What keys, values and other per-sequence state may take, in bytes and in blocks."""

    limit_bytes: int
    token_bytes: int
    fixed_bytes: int = 0
    """Per sequence, whatever its length (the state of a recurrent model)."""

    @property
    def block_bytes(self) -> int:
        """A state that does not grow is a block of its own."""
        return self.token_bytes * BLOCK_TOKENS or max(1, self.fixed_bytes)

    @property
    def blocks(self) -> int:
        return self.limit_bytes // self.block_bytes

    @property
    def longest(self) -> int | None:
        """Tokens that one sequence may have when it is alone; None: as many as it likes."""
        if self.token_bytes == 0:
            return None if self.blocks else 0
        return max(0, (self.blocks - self._fixed_blocks) * BLOCK_TOKENS)

    def room(self, tokens: int) -> int:
        """What to ask the pool for, in tokens, to hold ``tokens`` tokens of one sequence."""
        if self.token_bytes == 0:
            return 1
        return tokens + self._fixed_blocks * BLOCK_TOKENS

    def blocks_of(self, tokens: int) -> int:
        """Blocks of a sequence of ``tokens`` tokens."""
        return -(-self.room(tokens) // BLOCK_TOKENS)

    def cost(self, tokens: int) -> int:
        """Bytes of a sequence of ``tokens`` tokens."""
        return self.blocks_of(tokens) * self.block_bytes

    @property
    def _fixed_blocks(self) -> int:
        return -(-self.fixed_bytes // self.block_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    max_num_seqs: int
    token_budget: int
    """Tokens a step computes; decoding sequences are never held back by it."""
    token_budget_beside: int
    """The same while others decode: what a prompt may delay their next token by."""
    chunked: bool
    """A prompt may be computed in several steps, and a known beginning need not be."""
    keys_of_a_token: int | None = None
    """Beside others that decode, a token that sees so many before it counts twice, and so on;
    None: all count alike."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute ``count`` tokens of ``sequence`` from the ``start``-th on in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """The chunk reaches the end of the sequence, so the next token is drawn."""
        return self.start + self.count == self.sequence.length


@dataclass(frozen=True, slots=True)
class Plan:
    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()
    """These gave up their room and are computed afresh later."""
    copies: tuple[tuple[int, int], ...] = ()
    """Blocks to be copied before anything is computed, from the first of each pair to the second;
    all are to be read before any is written."""


class Scheduler:
    """Decoding goes first; prompts share what the step has left, the shortest first, the oldest
    never without a share.

    A sequence is admitted when its whole prompt has room and then grows; when room runs out the
    newest running one gives up its own. The oldest always advances, so nothing can lock up, as
    long as each sequence alone fits the budget (``KVBudget.longest``).
    """

    def __init__(
        self, limits: SchedulerLimits, budget: KVBudget, pool: BlockPool | None = None
    ) -> None:
        self.limits = limits
        self.budget = budget
        self.pool = pool or BlockPool(budget.blocks)
        self._fixed_room = budget.room(0)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._copies: list[tuple[int, int]] = []
        self.reused_tokens = 0
        """Of prompts, whose keys and values were there already."""

    @property
    def used_bytes(self) -> int:
        """What the running sequences hold."""
        return self.pool.used * self.budget.block_bytes

    @property
    def remembered_bytes(self) -> int:
        """What is kept for prompts that begin alike."""
        return self.pool.remembered * self.budget.block_bytes

    @property
    def steady(self) -> bool:
        """The next step may be planned and begun before the tokens on their way are known: nothing
        but decoding is to be done, there is room for it, and how a token is drawn depends on none
        of them. Waiting sequences are no hindrance as long as no place is free."""
        running = self.running
        return (
            0 < len(running) <= self.pool.available
            and (not self.waiting or len(running) >= self.limits.max_num_seqs)
            and all(s.decodes and not _draws_by_last_token(s) for s in running)
        )

    @property
    def needed(self) -> int:
        """Blocks that the next plan takes if there are as many: for the next tokens of those that
        run, and for the first one waiting."""
        room, fixed = self.budget.blocks_of, self._fixed_room
        needed = sum(
            room(s.length) - len(s.table.blocks)
            for s in self.running
            if s.length + fixed > s.table.tokens
        )
        if self.waiting and len(self.running) < self.limits.max_num_seqs:
            needed += room(self.waiting[0].length)
        return needed

    @property
    def stuck(self) -> bool:
        """The first one waiting has no room although it is alone: there are fewer blocks than its
        budget says. To be asked behind `plan`."""
        return (
            bool(self.waiting)
            and not self.running
            and not self.pool.used
            and self.budget.blocks_of(self.waiting[0].length) > self.pool.count
        )

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, whether it waits, runs or is long gone."""
        self.pool.release(sequence.table)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Make a running sequence the first one waiting. Tokens on their way to it are lost, and
        drawn again."""
        self.running.remove(sequence)
        self.pool.release(sequence.table)
        sequence.computed = sequence.pending = 0
        self.waiting.appendleft(sequence)

    def plan(self) -> Plan:
        preempted: list[Sequence] = []
        chunks = self._decodes(preempted)
        limits = self.limits
        budget = limits.token_budget_beside if chunks else limits.token_budget
        keys = limits.keys_of_a_token if chunks else None
        prompts = self._prompts_to_compute(max(1, budget - len(chunks)), not preempted)
        chunks += self._prefills(prompts, max(1, budget - len(chunks)), keys)
        copies, self._copies = tuple(self._copies), []
        return Plan(tuple(chunks), tuple(preempted), copies)

    def computed(self, plan: Plan) -> None:
        """The plan's step has been taken, or is sure to be before the next one."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.pending += chunk.samples
            sequence.computed = chunk.start + chunk.count
            if self.limits.chunked:
                known = min(sequence.computed, len(sequence.tokens))
                self.pool.remember(sequence.table, sequence.tokens, known)

    def _decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in list(self.running):
            if not sequence.decodes or not sequence.wants_more:
                continue
            if self._make_room(sequence, preempted):
                chunks.append(Chunk(sequence, sequence.computed, 1))
        return chunks

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Whether ``sequence`` has room for its next token, perhaps at the newest one's cost."""
        if sequence in preempted:
            return False
        if sequence.length + self._fixed_room <= sequence.table.tokens:
            return True
        while not self.pool.grow(sequence.table, self.budget.room(sequence.length)):
            newest = self.running[-1]
            self.preempt(newest)
            preempted.append(newest)
            if newest is sequence:
                return False
        return True

    def _prompts_to_compute(self, budget: int, may_admit: bool) -> list[Sequence]:
        """In the order of their arrival; enough to use the budget up, where there are."""
        prompts = [s for s in self.running if not s.decodes]
        wanted = sum(s.remaining for s in prompts)
        while may_admit and (wanted < budget or len(prompts) < _PROMPTS_AT_ONCE):
            admitted = self._admit()
            if admitted is None:
                break
            prompts.append(admitted)
            wanted += admitted.remaining
        return prompts

    def _prefills(self, prompts: list[Sequence], budget: int, keys: int | None) -> list[Chunk]:
        """``keys``: as many as cost what a token does, if they count."""
        shares = _shares(prompts, budget, keys) if self.limits.chunked else _whole(prompts, budget)
        return [Chunk(s, s.computed, share) for s, share in shares if share]

    def _admit(self) -> Sequence | None:
        if len(self.running) >= self.limits.max_num_seqs:
            return None
        for index, sequence in enumerate(islice(self.waiting, _LOOK_BEHIND)):
            if self.limits.chunked:
                sequence.table = self.pool.match(sequence.tokens, sequence.length - 1)
                if self._is_computed_elsewhere(sequence):
                    self.pool.release(sequence.table)
                    continue
            matched = sequence.table.tokens
            if not self.pool.grow(sequence.table, self.budget.room(sequence.length)):
                self.pool.release(sequence.table)
                return None
            self._bring_together(sequence, matched)
            sequence.computed = matched
            if sequence.cached_tokens is None:
                sequence.cached_tokens = matched
            self.reused_tokens += matched
            del self.waiting[index]
            self.running.append(sequence)
            return sequence
        return None

    def _bring_together(self, sequence: Sequence, matched: int) -> None:
        """Copy a short beginning that is another's to where the sequence goes on."""
        scattered = sequence.table
        if len(scattered.runs) == 1 or not 0 < matched <= _WORTH_SHARING_TOKENS:
            return
        together = self.pool.neighbours(len(scattered.blocks))
        if together is None:
            return
        shared = matched // BLOCK_TOKENS
        self._copies += zip(scattered.blocks[:shared], together.blocks, strict=False)
        together.known, together.last_known = scattered.known, scattered.last_known
        self.pool.release(scattered)
        sequence.table = together

    def _is_computed_elsewhere(self, sequence: Sequence) -> bool:
        """A running sequence is about to compute more of the same beginning."""
        end = sequence.table.tokens + BLOCK_TOKENS
        if end >= sequence.length:
            return False
        beginning = sequence.tokens[:end]
        return any(
            other.computed < end <= len(other.tokens) and other.tokens[:end] == beginning
            for other in self._prompts()
        )

    def _prompts(self) -> Iterator[Sequence]:
        return (sequence for sequence in self.running if not sequence.decodes)


def _draws_by_last_token(sequence: Sequence) -> bool:
    """What the next token may be, or how likely, depends on the one before."""
    row = sequence.row
    return row.params.penalties or row.allowed is not None or sequence.guide is not None


def _shares(prompts: list[Sequence], budget: float, keys: int | None) -> list[tuple[Sequence, int]]:
    """Tokens for each of ``prompts``, which are in the order of their arrival. A token counts the
    more the longer its sequence is already."""
    if not prompts:
        return []

    def cost(sequence: Sequence) -> float:
        return 1.0 if keys is None else 1.0 + sequence.computed / keys

    oldest = prompts[0]
    shares = dict.fromkeys(prompts, 0)
    sure = max(1, int(-(-budget // _SURE_SHARE) / cost(oldest)))
    shares[oldest] = min(oldest.remaining, sure)
    budget -= shares[oldest] * cost(oldest)
    for sequence in sorted(prompts, key=lambda s: s.remaining):
        room = max(0, int(budget / cost(sequence)))
        more = min(sequence.remaining - shares[sequence], room)
        shares[sequence] += more
        budget -= more * cost(sequence)
    return list(shares.items())


def _whole(prompts: list[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """As many whole prompts as it takes to use the budget up."""
    shares = []
    for sequence in prompts:
        if budget <= 0:
            break
        shares.append((sequence, sequence.remaining))
        budget -= sequence.remaining
    return shares
