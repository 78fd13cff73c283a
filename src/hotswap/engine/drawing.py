"""What a sampler is told about one sequence, and what it answers. No torch here."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawParams:
    """`hotswap.contracts.requests.SamplingParams` with nothing left unset."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def filters(self) -> bool:
        """Some tokens may be ruled out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


class History:
    """The distinct tokens of a prompt and its answer, each with a place of its own.

    Places are given once and in order, so a copy elsewhere is brought up to date by what is new.
    """

    __slots__ = ("counts", "ids", "places", "touched")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.counts: list[int] = []
        """How often each is in the answer."""
        self.touched: list[int] = []
        """The place of each token of the answer, in its order."""
        self.places: dict[int, int] = {}

    def add_prompt(self, ids: Iterable[int]) -> None:
        for token in dict.fromkeys(ids):
            self._place(token)

    def add(self, token: int) -> None:
        place = self._place(token)
        self.counts[place] += 1
        self.touched.append(place)

    def _place(self, token: int) -> int:
        place = self.places.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token)
            self.counts.append(0)
        return place


@dataclass(slots=True)
class SamplingRow:
    """The sampler's view of one sequence and of the token that is drawn next."""

    params: DrawParams
    seed: int
    """64 bits."""
    logprobs: int | None = None
    position: int = 0
    """Index of that token in the answer."""
    history: History = field(default_factory=History)
    """Kept only where a penalty needs it."""
    forbidden: Set[int] = frozenset()
    """Ids that it must not be."""
    allowed: bytes | None = None
    """A grammar's mask of what it may be: bit ``i % 8`` of byte ``i // 8`` stands for token ``i``,
    and a mask that ends early allows nothing behind it. None: anything."""

    @property
    def signed_seed(self) -> int:
        """The seed as torch's int64 holds it."""
        return self.seed - (1 << 64) if self.seed >> 63 else self.seed

    @property
    def edits(self) -> bool:
        return bool(
            self.params.logit_bias
            or self.forbidden
            or self.params.penalties
            or self.allowed is not None
        )

    @property
    def plain(self) -> bool:
        """The largest logit wins, and nothing else is asked."""
        return self.params.temperature == 0 and not self.edits and self.logprobs is None

    def see_prompt(self, ids: Iterable[int]) -> None:
        if self.params.penalties:
            self.history.add_prompt(ids)

    def see(self, token: int) -> None:
        """The answer goes on with ``token``."""
        if self.params.penalties:
            self.history.add(token)


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token; with log-probabilities of the raw logits where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, likeliest first."""


def seed_of_choice(seed: int | None, choice: int) -> int:
    """The 64-bit seed of the ``choice``-th answer to one prompt: ``seed`` itself for the first
    one, a hash of both (SplitMix64) for the others, fresh randomness without a seed."""
    if seed is None:
        return secrets.randbits(64)
    word = seed & _WORD
    return word if choice == 0 else _mix(word + choice * _GOLDEN)


def _mix(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
