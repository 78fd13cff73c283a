"""The sampler's kernels in Triton: four short ones, each row shared by several programs if rows are
few. `hotswap.engine.sampler.reference` defines what they compute; `fused` launches them.

`survey` takes the logits in and keeps the largest of each of `LANES` interleaved shares of a row:
the k-th largest of these is a lower bound of the k-th largest logit. `gather` reads the row again,
from the L2 cache: with top-k it collects the few candidates above that bound, without it draws from
the whole row. `check` sums up what weighs more than the token drawn so. `choose` ends it: what is
left of the candidates is found by comparing all pairs; a token drawn from the whole row is the
answer if it lies in the nucleus, because the best of all is then the best of the nucleus, and
otherwise the best of what is larger than it is looked at next.

Floats are ordered as integers, NaN above all. No product may be contracted with a sum
(``enable_fp_fusion=False``), or draws would differ from the other samplers'.
"""

# ruff: noqa: N803, N806, PLR0124, PLR0917, SIM102
# mypy: disallow-untyped-decorators=False
# Compile-time constants are in capitals, as is usual in Triton, kernels take what they take, and
# what is decided when they are compiled has an `if` of its own.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from hotswap.engine.sampler import arithmetic as bits

LANES = 2048
"""Of a tile, and shares of a row."""
CANDIDATES = 1024
"""As many as are ranked by comparing all pairs."""
EDITED, MASKED = 1, 2
"""A row's flags: some logits are changed, some are not allowed."""
UNSEEN, FORBIDDEN = -1.0, -2.0
"""Instead of a count: neither in the prompt nor in the answer; not to be drawn."""
INTEGERS, FLOATS = 6, 6
"""Numbers of a row: see `Table`."""


class Table(NamedTuple):
    """What rows ask for, by slot. It changes between steps and its tensors stay where they are."""

    integers: Tensor
    """int32 [slots, INTEGERS]: top-k; the seed's lower and upper word; flags; how many edits; how
    many log-probabilities, -1 for none."""
    floats: Tensor
    """float32 [slots, FLOATS]: scale, top-p, floor, repetition, frequency, presence."""
    ids: Tensor
    """int32 [slots, edits], tokens whose logits are changed, none of them twice."""
    biases: Tensor
    """float32, the same."""
    counts: Tensor
    """float32, the same: how often in the answer, or `UNSEEN` or `FORBIDDEN`."""
    skipped: Tensor
    """int32 [slots, words], a bit for each token, set where it is among ``ids``."""
    allowed: Tensor
    """int32 [slots, words], a bit for each token, set where a grammar allows it."""


class Step(NamedTuple):
    """What changes with each step, and its results."""

    slots: Tensor
    """int32 [rows]; below zero: the row is padding."""
    positions: Tensor
    """int32 [rows], taken for unsigned."""
    tokens: Tensor
    """int64 [rows], receives what is drawn."""
    own: Tensor
    """float32 [rows], receives their log-probabilities."""
    top: Tensor
    """float32 [rows, most], receives the largest."""
    top_ids: Tensor
    """int64 [rows, most], the tokens they belong to."""


class Room(NamedTuple):
    """What kernels leave for one another."""

    lanes: Tensor
    """int32 [rows, LANES], the largest keys of the shares."""
    keys: Tensor
    """int32 [rows, splits], the largest of a stretch."""
    holders: Tensor
    """int32, the same: the first token that has it."""
    scores: Tensor
    """float32, the same: the best of a stretch."""
    winners: Tensor
    """int32, the same: the token that has it."""
    winner_keys: Tensor
    """int32, the same."""
    totals: Tensor
    """int64, the same: the mass of a stretch."""
    above: Tensor
    """int64, the same: what of it lies above the winner of the row."""
    found: Tensor
    """int32 [rows], candidates, also those that there was no room for."""
    found_ids: Tensor
    """int32 [rows, CANDIDATES], their ids."""
    found_logits: Tensor
    """float32, the same."""


class Row(NamedTuple):
    """Pointers and numbers of one row."""

    logits: tl.tensor
    vocab: tl.tensor
    ids: tl.tensor
    biases: tl.tensor
    counts: tl.tensor
    skipped: tl.tensor
    allowed: tl.tensor
    flags: tl.tensor
    edits: tl.tensor
    seed: tl.tensor
    position: tl.tensor
    top_k: tl.tensor
    scale: tl.tensor
    top_p: tl.tensor
    floor: tl.tensor
    repetition: tl.tensor
    frequency: tl.tensor
    presence: tl.tensor


_INTEGERS, _FLOATS = tl.constexpr(INTEGERS), tl.constexpr(FLOATS)
_EDITED, _MASKED = tl.constexpr(EDITED), tl.constexpr(MASKED)
_FORBIDDEN = tl.constexpr(FORBIDDEN)
_RANKED, _BESIDE = tl.constexpr(256), tl.constexpr(32)
"""As many candidates are compared with as many others at a time."""
_CANDIDATES = tl.constexpr(CANDIDATES)
_BUCKETS = tl.constexpr(512)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITE_KEY = tl.constexpr(0x7F800000)
_LEAST_KEY = tl.constexpr(-0x7F800001)
"""Of -inf."""
_NO_ID = tl.constexpr(0x7FFFFFFF)
_LOWEST, _ROUNDING = tl.constexpr(bits.LOWEST), tl.constexpr(bits.ROUNDING)
_LOG2_E = tl.constexpr(bits.LOG2_E)
_LN2_HIGH, _LN2_LOW = tl.constexpr(bits.LN2_HIGH), tl.constexpr(bits.LN2_LOW)
_E0, _E1, _E2, _E3, _E4 = (tl.constexpr(term) for term in bits.EXP_TERMS)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (tl.constexpr(term) for term in bits.LOG_TERMS)
_ROOT_HALF = tl.constexpr(bits.ROOT_HALF_BITS)
_EXPONENT_BIAS = tl.constexpr(bits.MASS_BITS + 127)
_WORD_SCALE, _WORD_HALF = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)
_BELOW_ONE = tl.constexpr(1 - 2.0**-24)
_ANY_MASS = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_MASS_LOG = tl.constexpr(bits.MASS_BITS * 0.6931471805599453)


@triton.jit
def _order(x: tl.tensor) -> tl.tensor:
    """int32, ordered as the numbers are: the two zeros equal, NaN the largest."""
    word = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x != x, _MAGNITUDE, word ^ ((word >> 31) & _MAGNITUDE))


@triton.jit
def _number(key: tl.tensor) -> tl.tensor:
    """What `_order` made ``key`` of."""
    return (key ^ ((key >> 31) & _MAGNITUDE)).to(tl.float32, bitcast=True)


@triton.jit
def _mass(exponent: tl.tensor) -> tl.tensor:
    x = tl.maximum(exponent, _LOWEST)
    n = (x * _LOG2_E + _ROUNDING) - _ROUNDING
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    terms = (((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4
    scale = ((n.to(tl.int32) + _EXPONENT_BIAS) << 23).to(tl.float32, bitcast=True)
    return (((r * r * terms + r) + 1.0) * scale).to(tl.int64)


@triton.jit
def _log(exponent: tl.tensor, r: tl.tensor) -> tl.tensor:
    n = exponent.to(tl.float32)
    terms = (((((_L0 * r + _L1) * r + _L2) * r + _L3) * r + _L4) * r + _L5) * r + _L6
    square = r * r
    return (((terms * (square * r) - square * 0.5) + r) + n * _LN2_LOW) + n * _LN2_HIGH


@triton.jit
def _gumbel(word: tl.tensor) -> tl.tensor:
    v = tl.minimum(word.to(tl.float32) * _WORD_SCALE + _WORD_HALF, _BELOW_ONE)
    whole = (1.0 - v).to(tl.int32, bitcast=True)
    n = (whole - _ROOT_HALF) >> 23
    r = (whole - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    exponential = (-_log(n, tl.where(n == 0, -v, r))).to(tl.int32, bitcast=True)
    n = (exponential - _ROOT_HALF) >> 23
    return -_log(n, (exponential - (n << 23)).to(tl.float32, bitcast=True) - 1.0)


@triton.jit
def _noise(seed: tl.tensor, position: tl.tensor, counters: tl.tensor) -> tuple[tl.tensor, ...]:
    """The four words of each counter."""
    zero = counters * 0
    place = zero + position.to(tl.uint32, bitcast=True)
    first, second, third, fourth = tl.philox(seed, counters, place, zero, zero)
    return first, second, third, fourth


@triton.jit
def _noise_of_tile(row: Row, start: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Of tokens ``start`` and following."""
    counters = (start // 4 + tl.arange(0, TILE // 4)).to(tl.uint32)
    words = _noise(row.seed, row.position, counters)
    words = tl.interleave(tl.interleave(words[0], words[2]), tl.interleave(words[1], words[3]))
    return _gumbel(words)


@triton.jit
def _noise_of(row: Row, ids: tl.tensor) -> tl.tensor:
    """Of any tokens."""
    words = _noise(row.seed, row.position, (ids // 4).to(tl.uint32))
    lane = ids % 4
    low = tl.where(lane == 0, words[0], words[1])
    return _gumbel(tl.where(lane < 2, low, tl.where(lane == 2, words[2], words[3])))


@triton.jit
def _row(
    logits: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    slot: tl.tensor,
    position: tl.tensor,
    capacity: tl.tensor,
    RAW: tl.constexpr,
) -> Row:
    """``RAW``: the logits as they are, and as many of the largest as log-probabilities are asked
    for."""
    integers, floats = table.integers + slot * _INTEGERS, table.floats + slot * _FLOATS
    words = tl.cdiv(vocab, 32)
    low = tl.load(integers + 1).to(tl.int64) & 0xFFFFFFFF
    seed = low | (tl.load(integers + 2).to(tl.int64) << 32)
    flags, edits = tl.load(integers + 3), tl.load(integers + 4)
    top_k, scale = tl.load(integers), tl.load(floats)
    top_p, floor = tl.load(floats + 1), tl.load(floats + 2)
    if RAW:
        top_k, scale = tl.load(integers + 5), tl.full((), 1.0, tl.float32)
        top_p, floor = tl.full((), 1.0, tl.float32), tl.full((), float("-inf"), tl.float32)
        flags, edits = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    return Row(
        logits,
        vocab,
        table.ids + slot * capacity,
        table.biases + slot * capacity,
        table.counts + slot * capacity,
        table.skipped + slot * words,
        table.allowed + slot * words,
        flags,
        edits,
        seed,
        position,
        top_k,
        scale,
        top_p,
        floor,
        tl.load(floats + 3),
        tl.load(floats + 4),
        tl.load(floats + 5),
    )


@triton.jit
def _padded(row: Row, TILE: tl.constexpr) -> tl.tensor:
    """Where the edits of a row begin, behind its logits."""
    return tl.cdiv(row.vocab, TILE) * TILE


@triton.jit
def _end(row: Row, TILE: tl.constexpr) -> tl.tensor:
    return _padded(row, TILE) + row.edits


@triton.jit
def _tile(row: Row, start: tl.tensor, TILE: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Logits and their tokens from ``start`` on: those that are not edited, or of the edited ones.
    What is not there is -inf."""
    if start < _padded(row, TILE):
        ids = start + tl.arange(0, TILE)
        inside = ids < row.vocab
        x = tl.load(row.logits + ids, mask=inside, other=float("-inf")).to(tl.float32)
        if row.flags & _EDITED:
            word = tl.load(row.skipped + (ids >> 5), mask=inside, other=0)
            inside = inside & (((word >> (ids & 31)) & 1) == 0)
    else:
        entry = start - _padded(row, TILE) + tl.arange(0, TILE)
        inside = entry < row.edits
        ids = tl.load(row.ids + entry, mask=inside, other=0)
        count = tl.load(row.counts + entry, mask=inside, other=-1.0)
        x = tl.load(row.logits + ids, mask=inside, other=float("-inf")).to(tl.float32)
        x += tl.load(row.biases + entry, mask=inside, other=0.0)
        once = tl.where(x < 0, x * row.repetition, tl.div_rn(x, row.repetition))
        x = tl.where(count >= 0, once, x)
        x = tl.where(count > 0, x - (count * row.frequency + row.presence), x)
        inside = inside & (count != _FORBIDDEN)
    if row.flags & _MASKED:
        word = tl.load(row.allowed + (ids >> 5), mask=inside, other=0)
        inside = inside & (((word >> (ids & 31)) & 1) != 0)
    return tl.where(inside, x, float("-inf")), ids


@triton.jit
def _stretch(
    row: Row, split: tl.tensor, SPLITS: tl.constexpr, TILE: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """From where to where a program reads."""
    end = _end(row, TILE)
    share = tl.cdiv(tl.cdiv(end, TILE), SPLITS) * TILE
    return split * share, tl.minimum(split * share + share, end)


@triton.jit
def _bucket(peak: tl.tensor, keys: tl.tensor) -> tl.tensor:
    """How far below the largest key: 0 to 257, eight for each doubling of the distance."""
    distance = (peak.to(tl.uint32, bitcast=True) - keys.to(tl.uint32, bitcast=True)).to(tl.float32)
    return tl.maximum((distance.to(tl.int32, bitcast=True) >> 20) - 1015, 0)


@triton.jit
def _drawn(row: Row, peak: tl.tensor) -> tl.tensor:
    """There is a distribution to draw from."""
    return (row.scale > 0) & (peak < _INFINITE_KEY) & (peak > _LEAST_KEY)


@triton.jit
def _best(
    row: Row,
    begin: tl.tensor,
    end: tl.tensor,
    low: tl.tensor,
    peak: tl.tensor,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Gumbel argmax over the logits of a stretch whose keys are ``low`` or more and which min-p
    leaves: its score, token and key; and the mass of the stretch."""
    scores = tl.full([TILE], float("-inf"), tl.float32)
    winners = tl.full([TILE], _NO_ID, tl.int32)
    winner_keys = tl.full([TILE], _LEAST_KEY, tl.int32)
    masses = tl.zeros([TILE], tl.int64)
    for start in range(begin, end, TILE):
        x, ids = _tile(row, start, TILE)
        key = _order(x)
        exponent = (x - peak) * row.scale
        if start < _padded(row, TILE):
            noise = _noise_of_tile(row, start, TILE)
        else:
            noise = _noise_of(row, ids)
        score = tl.where((x >= peak + row.floor) & (key >= low), exponent + noise, float("-inf"))
        better = (score > scores) | ((score == scores) & (ids < winners))
        scores = tl.where(better, score, scores)
        winners = tl.where(better, ids, winners)
        winner_keys = tl.where(better, key, winner_keys)
        masses += _mass(exponent)
    score, winner, key = _first_best(scores, winners, winner_keys)
    return score, winner, key, tl.sum(masses, 0)


@triton.jit
def _first_best(scores: tl.tensor, winners: tl.tensor, keys: tl.tensor) -> tuple[tl.tensor, ...]:
    """The largest score, of equal ones that of the first token; the token, and its key."""
    score = tl.max(scores, 0)
    winner = tl.min(tl.where(scores == score, winners, _NO_ID), 0)
    mine = (scores == score) & (winners == winner)
    return score, winner, tl.max(tl.where(mine, keys, _LEAST_KEY), 0)


@triton.jit
def _mass_above(
    row: Row,
    begin: tl.tensor,
    end: tl.tensor,
    key: tl.tensor,
    peak: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Of the logits of a stretch that are larger than that of ``key``."""
    masses = tl.zeros([TILE], tl.int64)
    for start in range(begin, end, TILE):
        x, _ = _tile(row, start, TILE)
        masses += tl.where(_order(x) > key, _mass((x - peak) * row.scale), 0)
    return tl.sum(masses, 0)


@triton.jit
def _target(row: Row, total: tl.tensor) -> tl.tensor:
    """The mass that must not lie above a token of the nucleus."""
    if row.top_p < 1:
        target = tl.maximum((row.top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)
    else:
        target = tl.full((), _ANY_MASS, tl.int64)
    return target


@triton.jit
def _kth_key(row: Row, peak: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """The key of the top-k-th largest logit, by halving the interval that it lies in."""
    low, high = tl.full((), _LEAST_KEY, tl.int64), peak.to(tl.int64)
    while low < high:
        middle = low + ((high - low) >> 1)
        counts = tl.zeros([TILE], tl.int32)
        for start in range(0, _end(row, TILE), TILE):
            x, _ = _tile(row, start, TILE)
            counts += (_order(x) > middle.to(tl.int32)).to(tl.int32)
        if tl.sum(counts, 0) < row.top_k:
            high = middle
        else:
            low = middle + 1
    return low.to(tl.int32)


@triton.jit
def _accepted(
    row: Row, low: tl.tensor, target: tl.tensor, peak: tl.tensor, TILE: tl.constexpr
) -> tl.tensor:
    """The best token of the nucleus among keys of ``low`` or more: of all of them, or of those
    larger than the best of all, and so on."""
    end = _end(row, TILE)
    token = tl.full((), 0, tl.int32)
    searching = tl.full((), 1, tl.int32)
    while searching > 0:
        _, token, key, _ = _best(row, 0, end, low, peak, TILE)
        if _mass_above(row, 0, end, key, peak, TILE) < target:
            searching = searching * 0
        else:
            low = key + 1
    return token


@triton.jit
def _ranked(row: Row, room: Room, place: tl.tensor, found: tl.tensor, peak: tl.tensor) -> tl.tensor:
    """The best token of the candidates, of which top-k leaves some and top-p some of these."""
    edge = peak
    for first in range(0, found, _RANKED):
        x, _, inside = _candidates(room, place, first, found, _RANKED)
        alive = inside & (_larger(room, place, found, x) < row.top_k)
        edge = tl.minimum(edge, tl.min(tl.where(alive, x, peak), 0))
    if row.top_p < 1:
        total = tl.full((), 0, tl.int64)
        for first in range(0, found, _RANKED):
            x, _, _ = _candidates(room, place, first, found, _RANKED)
            total += tl.sum(tl.where(x >= edge, _mass((x - peak) * row.scale), 0), 0)
        target, nucleus = _target(row, total), peak
        for first in range(0, found, _RANKED):
            x, _, _ = _candidates(room, place, first, found, _RANKED)
            alive = (x >= edge) & (_heavier(row, room, place, found, x, peak) < target)
            nucleus = tl.minimum(nucleus, tl.min(tl.where(alive, x, peak), 0))
        edge = nucleus
    edge = tl.maximum(edge, peak + row.floor)
    scores = tl.full([_RANKED], float("-inf"), tl.float32)
    winners = tl.full([_RANKED], _NO_ID, tl.int32)
    for first in range(0, found, _RANKED):
        x, ids, _ = _candidates(room, place, first, found, _RANKED)
        score = (x - peak) * row.scale + _noise_of(row, ids)
        score = tl.where(x >= edge, score, float("-inf"))
        better = (score > scores) | ((score == scores) & (ids < winners))
        scores = tl.where(better, score, scores)
        winners = tl.where(better, ids, winners)
    _, token, _ = _first_best(scores, winners, winners)
    return token


@triton.jit
def _candidates(
    room: Room, place: tl.tensor, first: tl.tensor, found: tl.tensor, COUNT: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Logits and tokens of some candidates, and which of them there are."""
    entry = first + tl.arange(0, COUNT)
    inside = entry < found
    spot = place * _CANDIDATES + entry
    x = tl.load(room.found_logits + spot, mask=inside, other=float("-inf"))
    return x, tl.load(room.found_ids + spot, mask=inside, other=_NO_ID), inside


@triton.jit
def _larger(room: Room, place: tl.tensor, found: tl.tensor, x: tl.tensor) -> tl.tensor:
    """How many candidates are larger than each of ``x``."""
    larger = tl.zeros([_RANKED], tl.int32)
    for first in range(0, found, _BESIDE):
        other, _, _ = _candidates(room, place, first, found, _BESIDE)
        larger += tl.sum((other[None, :] > x[:, None]).to(tl.int32), 1)
    return larger


@triton.jit
def _heavier(
    row: Row,
    room: Room,
    place: tl.tensor,
    found: tl.tensor,
    x: tl.tensor,
    peak: tl.tensor,
) -> tl.tensor:
    """The mass of the candidates that are larger than each of ``x``."""
    above = tl.zeros([_RANKED], tl.int64)
    for first in range(0, found, _BESIDE):
        other, _, _ = _candidates(room, place, first, found, _BESIDE)
        mass = _mass((other - peak) * row.scale)
        above += tl.sum(tl.where(other[None, :] > x[:, None], mass[None, :], 0), 1)
    return above


@triton.jit
def _rank(
    room: Room, place: tl.tensor, found: tl.tensor, x: tl.tensor, ids: tl.tensor
) -> tl.tensor:
    """How many candidates come before each of ``x``: they are larger, or equal and first."""
    before = tl.zeros([_RANKED], tl.int32)
    for first in range(0, found, _BESIDE):
        other, other_ids, _ = _candidates(room, place, first, found, _BESIDE)
        equal = (other[None, :] == x[:, None]) & (other_ids[None, :] < ids[:, None])
        before += tl.sum(((other[None, :] > x[:, None]) | equal).to(tl.int32), 1)
    return before


@triton.jit
def _next(
    row: Row, last_key: tl.tensor, last_id: tl.tensor, TILE: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The largest key, and of equal ones the first token, that comes after another."""
    keys = tl.full([TILE], _LEAST_KEY - 1, tl.int32)
    holders = tl.full([TILE], _NO_ID, tl.int32)
    for start in range(0, _end(row, TILE), TILE):
        x, ids = _tile(row, start, TILE)
        key = _order(x)
        after = (key < last_key) | ((key == last_key) & (ids > last_id))
        after = after & (ids < row.vocab)
        first = after & ((key > keys) | ((key == keys) & (ids < holders)))
        keys, holders = tl.where(first, key, keys), tl.where(first, ids, holders)
    key = tl.max(keys, 0)
    return key, tl.min(tl.where(keys == key, holders, _NO_ID), 0)


@triton.jit
def survey(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    step: Step,
    room: Room,
    capacity: tl.tensor,
    RAW: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid [rows, splits]. Keeps the largest of each share and stretch."""
    place, split = tl.program_id(0), tl.program_id(1)
    slot, position = tl.load(step.slots + place), tl.load(step.positions + place)
    if slot >= 0:
        own = logits + place.to(tl.int64) * stride
        row = _row(own, vocab, table, slot, position, capacity, RAW)
        lanes = tl.full([TILE], _LEAST_KEY, tl.int32)
        holders = tl.full([TILE], _NO_ID, tl.int32)
        begin, end = _stretch(row, split, SPLITS, TILE)
        for start in range(begin, end, TILE):
            x, ids = _tile(row, start, TILE)
            key = _order(x)
            first = (key > lanes) | ((key == lanes) & (ids < holders))
            holders = tl.where(first, ids, holders)
            lanes = tl.where(first, key, lanes)
        peak = tl.max(lanes, 0)
        tl.store(room.keys + place * SPLITS + split, peak)
        holder = tl.min(tl.where(lanes == peak, holders, _NO_ID), 0)
        tl.store(room.holders + place * SPLITS + split, holder)
        KEPT: tl.constexpr = TILE // SPLITS
        kept = tl.max(tl.reshape(lanes, [KEPT, SPLITS]), 1)
        tl.store(room.lanes + place * TILE + split * KEPT + tl.arange(0, KEPT), kept)
        if split == 0:
            tl.store(room.found + place, 0)


@triton.jit
def gather(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    step: Step,
    room: Room,
    capacity: tl.tensor,
    RAW: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid [rows, splits]. Collects the candidates of a row with top-k, or draws from a stretch of
    one without; the raw logits' masses are summed up besides."""
    place, split = tl.program_id(0), tl.program_id(1)
    slot, position = tl.load(step.slots + place), tl.load(step.positions + place)
    if slot >= 0:
        own = logits + place.to(tl.int64) * stride
        row = _row(own, vocab, table, slot, position, capacity, RAW)
        peak_key = tl.max(tl.load(room.keys + place * SPLITS + tl.arange(0, SPLITS)), 0)
        begin, end = _stretch(row, split, SPLITS, TILE)
        spot = place * SPLITS + split
        if _drawn(row, peak_key):
            peak = _number(peak_key)
            if row.top_k > 0:
                lanes = tl.load(room.lanes + place * TILE + tl.arange(0, TILE))
                counts = tl.histogram(_bucket(peak_key, lanes), _BUCKETS)
                last = tl.sum((tl.cumsum(counts, 0) < row.top_k).to(tl.int32), 0)
                counters = room.found + place + tl.zeros([TILE], tl.int32)
                for start in range(begin, end, TILE):
                    x, ids = _tile(row, start, TILE)
                    near = (_bucket(peak_key, _order(x)) <= last) & (x > float("-inf"))
                    entry = tl.atomic_add(counters, 1, mask=near)
                    near = near & (entry < _CANDIDATES)
                    target = place * _CANDIDATES + entry
                    tl.store(room.found_ids + target, ids, mask=near)
                    tl.store(room.found_logits + target, x, mask=near)
            elif not RAW:
                score, winner, key, total = _best(row, begin, end, _LEAST_KEY, peak, TILE)
                tl.store(room.scores + spot, score)
                tl.store(room.winners + spot, winner)
                tl.store(room.winner_keys + spot, key)
                tl.store(room.totals + spot, total)
            if RAW:
                if row.top_k >= 0:
                    total = _mass_above(row, begin, end, _LEAST_KEY, peak, TILE)
                    tl.store(room.totals + spot, total)


@triton.jit
def _winner(room: Room, place: tl.tensor, SPLITS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """The best token of all stretches, and its key."""
    spots = place * SPLITS + tl.arange(0, SPLITS)
    winners, keys = tl.load(room.winners + spots), tl.load(room.winner_keys + spots)
    _, winner, key = _first_best(tl.load(room.scores + spots), winners, keys)
    return winner, key


@triton.jit
def check(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    step: Step,
    room: Room,
    capacity: tl.tensor,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid [rows, splits]. Sums up what weighs more than the token drawn from the whole row."""
    place, split = tl.program_id(0), tl.program_id(1)
    slot, position = tl.load(step.slots + place), tl.load(step.positions + place)
    if slot >= 0:
        own = logits + place.to(tl.int64) * stride
        row = _row(own, vocab, table, slot, position, capacity, False)
        peak_key = tl.max(tl.load(room.keys + place * SPLITS + tl.arange(0, SPLITS)), 0)
        if _drawn(row, peak_key) & (row.top_k == 0) & (row.top_p < 1):
            begin, end = _stretch(row, split, SPLITS, TILE)
            _, key = _winner(room, place, SPLITS)
            above = _mass_above(row, begin, end, key, _number(peak_key), TILE)
            tl.store(room.above + place * SPLITS + split, above)


@triton.jit
def choose(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    step: Step,
    room: Room,
    capacity: tl.tensor,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid [rows]. Stores each row's token."""
    place = tl.program_id(0)
    slot, position = tl.load(step.slots + place), tl.load(step.positions + place)
    if slot >= 0:
        own = logits + place.to(tl.int64) * stride
        row = _row(own, vocab, table, slot, position, capacity, False)
        spots = place * SPLITS + tl.arange(0, SPLITS)
        keys = tl.load(room.keys + spots)
        peak_key = tl.max(keys, 0)
        peak = _number(peak_key)
        found = tl.load(room.found + place)
        if _drawn(row, peak_key) == 0:
            token = tl.min(tl.where(keys == peak_key, tl.load(room.holders + spots), _NO_ID), 0)
        elif row.top_k == 0:
            token, key = _winner(room, place, SPLITS)
            if row.top_p < 1:
                target = _target(row, tl.sum(tl.load(room.totals + spots), 0))
                if tl.sum(tl.load(room.above + spots), 0) >= target:
                    token = _accepted(row, key + 1, target, peak, TILE)
        elif found <= _CANDIDATES:
            token = _ranked(row, room, place, found, peak)
        else:
            low = _kth_key(row, peak_key, TILE)
            total = _mass_above(row, 0, _end(row, TILE), low - 1, peak, TILE)
            token = _accepted(row, low, _target(row, total), peak, TILE)
        tl.store(step.tokens + place, token.to(tl.int64))


@triton.jit
def tell(
    logits: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    table: Table,
    step: Step,
    room: Room,
    capacity: tl.tensor,
    most: tl.tensor,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid [rows]. Stores log-probabilities, after `survey` and `gather` of the raw logits: the
    token's, and the largest ones, of equal ones those of the first tokens."""
    place = tl.program_id(0)
    slot, position = tl.load(step.slots + place), tl.load(step.positions + place)
    if slot >= 0:
        own = logits + place.to(tl.int64) * stride
        row = _row(own, vocab, table, slot, position, capacity, True)
        spots = place * SPLITS + tl.arange(0, SPLITS)
        peak_key = tl.max(tl.load(room.keys + spots), 0)
        wanted = tl.minimum(row.top_k, most)
        found = tl.load(room.found + place)
        if (row.top_k >= 0) & _drawn(row, peak_key):
            peak = _number(peak_key)
            total = tl.sum(tl.load(room.totals + spots), 0)
            norm = tl.log(total.to(tl.float32)) - _MASS_LOG
            drawn = tl.load(own + tl.load(step.tokens + place)).to(tl.float32)
            tl.store(step.own + place, (drawn - peak) - norm)
            if (found >= wanted) & (found <= _CANDIDATES):
                for first in range(0, found, _RANKED):
                    x, ids, inside = _candidates(room, place, first, found, _RANKED)
                    rank = _rank(room, place, found, x, ids)
                    inside = inside & (rank < wanted)
                    tl.store(step.top + place * most + rank, (x - peak) - norm, mask=inside)
                    tl.store(step.top_ids + place * most + rank, ids.to(tl.int64), mask=inside)
            else:
                key, token = peak_key, tl.full((), -1, tl.int32)
                for rank in range(0, wanted):
                    key, token = _next(row, key, token, TILE)
                    tl.store(step.top + place * most + rank, (_number(key) - peak) - norm)
                    tl.store(step.top_ids + place * most + rank, token.to(tl.int64))
        elif row.top_k >= 0:
            tl.store(step.own + place, float("nan"))
            for rank in range(0, wanted):
                tl.store(step.top + place * most + rank, float("nan"))
                tl.store(step.top_ids + place * most + rank, rank)
