"""Random batches of logits and rows, a function of their number: what samplers must agree on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotswap.engine.drawing import Draw, DrawParams, SamplingRow

VOCABS = (1, 2, 5, 63, 64, 65, 97, 500, 1000, 2049)


@dataclass(frozen=True, slots=True)
class Case:
    logits: Tensor
    rows: list[SamplingRow]


def case(number: int, vocab: int | None = None) -> Case:
    """The ``number``-th one. ``vocab``: None: a small one."""
    dice = random.Random(number)
    vocab = dice.choice(VOCABS) if vocab is None else vocab
    count = dice.choice((1, 1, 2, 5))
    generator = torch.Generator().manual_seed(number)
    logits = torch.stack([_logits(dice, vocab, generator) for _ in range(count)])
    if dice.random() < 0.5:
        logits = logits.bfloat16()
    return Case(logits, [random_row(dice, vocab) for _ in range(count)])


def _logits(dice: random.Random, vocab: int, generator: torch.Generator) -> Tensor:
    spread = dice.choice((0.01, 1.0, 3.0, 3.0, 30.0))
    logits = torch.randn(vocab, generator=generator) * spread + dice.choice((0, 0, -20, 1000))
    return FILLINGS[dice.choice(list(FILLINGS))](logits, dice)


def _with(number: float, share: float) -> Callable[[Tensor, random.Random], Tensor]:
    def fill(logits: Tensor, dice: random.Random) -> Tensor:
        for place in dice.sample(range(len(logits)), math.ceil(len(logits) * share)):
            logits[place] = number
        return logits

    return fill


FILLINGS: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "random": lambda logits, dice: logits,
    "random too": lambda logits, dice: logits,
    "peaked": lambda logits, dice: logits.index_fill(
        0, torch.tensor(dice.randrange(len(logits))), 50
    ),
    "ties": lambda logits, dice: logits.round(),
    "few values": lambda logits, dice: (logits > logits.mean()).float(),
    "all alike": lambda logits, dice: logits * 0 + 1.5,
    "zeros of both signs": lambda logits, dice: logits * 0,
    "some -inf": _with(-math.inf, 0.3),
    "nearly all -inf": _with(-math.inf, 0.97),
    "all -inf": _with(-math.inf, 1.0),
    "some +inf": _with(math.inf, 0.02),
    "some NaN": _with(math.nan, 0.02),
    "some -NaN": _with(-math.nan, 0.02),
    "the largest numbers": lambda logits, dice: logits.clamp(-3, 3) * 1e38,
    "the smallest numbers": lambda logits, dice: logits * 1e-40,
}


def random_row(dice: random.Random, vocab: int) -> SamplingRow:
    def one_of(*values: Any) -> Any:
        return dice.choice(values)

    params = DrawParams(
        temperature=one_of(0.0, 1e-40, 1e-3, 0.7, 1.0, 1.0, 2.0),
        top_k=one_of(0, 0, 1, 2, 7, 50, vocab - 1, vocab, vocab + 9),
        top_p=one_of(1.0, 1.0, 0.95, 0.5, 0.05, 1e-9, 0.0, 1 - 1e-12, dice.random()),
        min_p=one_of(0.0, 0.0, 0.0, 0.1, 1.0, dice.random() / 10),
        repetition_penalty=one_of(1.0, 1.0, 1.3, 0.7),
        frequency_penalty=one_of(0.0, 0.0, 0.7, -2.0),
        presence_penalty=one_of(0.0, 0.0, 0.3, -1.5),
        logit_bias=one_of(
            {}, {}, {dice.randrange(vocab): dice.uniform(-100, 100) for _ in range(9)}
        ),
    )
    row = SamplingRow(
        params,
        seed=dice.getrandbits(64),
        position=one_of(0, 1, 77, 2**31, 2**32 + 5),
        logprobs=one_of(None, None, 0, 3, 20),
        forbidden=one_of(frozenset(), frozenset(), _ids(dice, vocab, 3)),
        allowed=one_of(
            None, None, None, dice.randbytes(-(-vocab // 8)), dice.randbytes(vocab // 9)
        ),
    )
    row.see_prompt(dice.choices(range(vocab), k=20))
    for token in dice.choices(range(vocab), k=dice.choice((0, 3, 40))):
        row.see(token)
    return row


def _ids(dice: random.Random, vocab: int, most: int) -> frozenset[int]:
    return frozenset(dice.choices(range(vocab), k=most))


def assert_draws_agree(got: list[Draw], wanted: list[Draw]) -> None:
    """Equal tokens and ids; log-probabilities may differ by what their sums do."""
    assert [draw.token for draw in got] == [draw.token for draw in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.logprob is None) == (theirs.logprob is None)
        if ours.logprob is None or theirs.logprob is None:
            continue
        _assert_close(ours.logprob, theirs.logprob)
        assert len(ours.top) == len(theirs.top)
        if math.isnan(theirs.logprob):
            continue
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        for (_, mine), (_, other) in zip(ours.top, theirs.top, strict=True):
            _assert_close(mine, other)


def _assert_close(got: float, wanted: float) -> None:
    """NaN is close to NaN."""
    alike = got == wanted or (math.isnan(got) and math.isnan(wanted))
    assert alike or math.isclose(got, wanted, rel_tol=1e-5, abs_tol=2e-4), (got, wanted)
