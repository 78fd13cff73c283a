"""The sampler for the CPU: compiled loops over one row at a time, which take it in once.

What they compute is defined in `hotswap.engine.sampler.reference`. A row's logits are copied to
float32 (the copy stays in the core's cache) while the largest of each block of 64 are kept. With
these, most blocks are never looked at again: the k-th largest of them is a lower bound of the k-th
largest logit. An exact threshold is found among the few candidates above such a bound, by counting
them into bins between the largest and the smallest and going on with the bin that holds it.
"""

# ruff: noqa: PLR0124, PLR0917
# mypy: ignore-errors
# What Numba compiles has types of its own and takes no keywords.

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from hotswap.engine.jit import compiled, inlined
from hotswap.engine.sampler import arithmetic as bits

BLOCK = 64
"""Logits; four of them share a counter of the noise."""
SCALE, TOP_P, FLOOR, REPETITION, FREQUENCY, PRESENCE = FLOATS = range(6)
TOP_K, SEED, POSITION, LOGPROBS, MASK = INTEGERS = range(5)
"""Columns of a row's numbers. No log-probabilities and no mask are -1."""

_BINS = 256
_FEW = 48
"""Candidates that are sorted rather than counted."""
_F32 = np.float32
_ZERO, _ONE, _HALF = _F32(0), _F32(1), _F32(0.5)
_NOTHING = _F32(-np.inf)
_LOWEST, _ROUNDING = _F32(bits.LOWEST), _F32(bits.ROUNDING)
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F32(bits.LOG2_E), _F32(bits.LN2_HIGH), _F32(bits.LN2_LOW)
_E0, _E1, _E2, _E3, _E4 = (_F32(term) for term in bits.EXP_TERMS)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (_F32(term) for term in bits.LOG_TERMS)
_ROOT_HALF = np.int32(bits.ROOT_HALF_BITS)
_EXPONENT_BITS = np.int32(23)
_BIAS = np.int32(bits.MASS_BITS + 127)
_WORD_SCALE, _WORD_HALF = _F32(2.0**-32), _F32(2.0**-33)
_BELOW_ONE = _F32(1 - 2.0**-24)
_WORD = np.uint64(0xFFFFFFFF)
_LEAST_WORD, _MAGNITUDE = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MOST_NOISE = _F32(22.9)
"""33 log 2, and a little for rounding."""


def _float(number):
    """A logit as float32; bfloat16 comes as uint16, the upper half of one."""


@overload(_float, inline="always")
def _float_of(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


@inlined
def _mass(exponent):
    x = max(exponent, _LOWEST)
    n = (x * _LOG2_E + _ROUNDING) - _ROUNDING
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    terms = (((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4
    scale = np.int32((np.int32(n) + _BIAS) << _EXPONENT_BITS).view(np.float32)
    return np.int64(((r * r * terms + r) + _ONE) * scale)


@inlined
def _log(exponent, r):
    n = _F32(exponent)
    terms = (((((_L0 * r + _L1) * r + _L2) * r + _L3) * r + _L4) * r + _L5) * r + _L6
    square = r * r
    return (((terms * (square * r) - square * _HALF) + r) + n * _LN2_LOW) + n * _LN2_HIGH


@inlined
def _exponent(x):
    return np.int32((np.float32(x).view(np.int32) - _ROOT_HALF) >> _EXPONENT_BITS)


@inlined
def _rest(x, exponent):
    scaled = np.int32(np.float32(x).view(np.int32) - np.int32(exponent << _EXPONENT_BITS))
    return scaled.view(np.float32) - _ONE


@inlined
def _philox(block, seed, position, words):
    """The words of a block's counters: uint32 [4, BLOCK / 4]."""
    for lane in range(BLOCK // 4):
        c0 = np.uint64(block * (BLOCK // 4) + lane)
        c1, c2, c3 = np.uint64(position) & _WORD, np.uint64(0), np.uint64(0)
        k0, k1 = np.uint64(seed) & _WORD, np.uint64(seed) >> _SHIFT
        for _ in range(10):
            product0, product1 = _M0 * c0, _M1 * c2
            c0, c2 = (product1 >> _SHIFT) ^ c1 ^ k0, (product0 >> _SHIFT) ^ c3 ^ k1
            c1, c3 = product1 & _WORD, product0 & _WORD
            k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = c0, c1, c2, c3


@inlined
def _noise(block, seed, position, words, ordered, noise):
    """Gumbel noise of the tokens of a block: float32 [BLOCK].

    In loops that the compiler makes vectors of; joined, it does not.
    """
    _philox(block, seed, position, words)
    for lane in range(BLOCK // 4):
        ordered[4 * lane] = words[0, lane]
        ordered[4 * lane + 1] = words[1, lane]
        ordered[4 * lane + 2] = words[2, lane]
        ordered[4 * lane + 3] = words[3, lane]
    for i in range(BLOCK):
        v = min(_F32(ordered[i]) * _WORD_SCALE + _WORD_HALF, _BELOW_ONE)
        u = _ONE - v
        n = _exponent(u)
        rest = _rest(u, n)
        noise[i] = -_log(n, -v if n == 0 else rest)
    for i in range(BLOCK):
        n = _exponent(noise[i])
        noise[i] = -_log(n, _rest(noise[i], n))


@inlined
def _order(number):
    """Integers that are ordered as the numbers are: the compiler finds the largest of integers
    many at a time, and not that of floats, for which NaN is in the way."""
    word = np.float32(number).view(np.int32)
    return word ^ ((word >> np.int32(31)) & _MAGNITUDE)


@inlined
def _copy(row, logits):
    for i in range(row.size):
        logits[i] = _float(row[i])


@inlined
def _number(order):
    """What `_order` made ``order`` of."""
    return np.int32(order ^ ((order >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@inlined
def _peaks(row, logits, peaks):
    """Copy a row and find the largest of each block. The largest of all; NaN, where one is."""
    top, magnitude = _LEAST_WORD, np.int32(0)
    whole = row.size // BLOCK
    for block in range(peaks.size):
        first, peak = block * BLOCK, _LEAST_WORD
        if block < whole:  # so many that the compiler knows how many
            for i in range(BLOCK):
                x = _float(row[first + i])
                logits[first + i] = x
                peak = max(peak, _order(x))
                magnitude = max(magnitude, np.float32(x).view(np.int32) & _MAGNITUDE)
        else:
            for i in range(first, row.size):
                x = _float(row[i])
                logits[i] = x
                peak = max(peak, _order(x))
                magnitude = max(magnitude, np.float32(x).view(np.int32) & _MAGNITUDE)
        top = max(top, peak)
        peaks[block] = _number(peak)
    return _F32(np.nan) if magnitude > _INFINITY else _number(top)


@inlined
def _argmax(logits, vocab, peaks, peak):
    if peak != peak:
        for i in range(vocab):
            if logits[i] != logits[i]:
                return i
    for block in range(peaks.size):
        if peaks[block] == peak:
            for i in range(block * BLOCK, min((block + 1) * BLOCK, vocab)):
                if logits[i] == peak:
                    return i
    return 0


@inlined
def _edit(logits, floats, ids, biases, counts, forbidden):
    """``counts``: -1 for a token that is neither in the prompt nor in the answer."""
    for i in range(ids.size):
        x = logits[ids[i]] + biases[i]
        if counts[i] >= 0:
            x = x * floats[REPETITION] if x < 0 else x / floats[REPETITION]
        if counts[i] > 0:
            x = x - (counts[i] * floats[FREQUENCY] + floats[PRESENCE])
        logits[ids[i]] = x
    for i in range(forbidden.size):
        logits[forbidden[i]] = _NOTHING


@inlined
def _mask(logits, vocab, allowed):
    for i in range(vocab):
        if not (allowed[i >> 3] >> (i & 7)) & 1:
            logits[i] = _NOTHING


@inlined
def _edge(values, weights, count, target, bins, tallies):
    """The smallest of ``values`` whose larger ones together weigh less than ``target``. Values are
    finite and there is at least one; both arrays are shuffled."""
    above = np.int64(0)
    while count > _FEW:
        high, low = values[0], values[0]
        for i in range(count):
            high, low = max(high, values[i]), min(low, values[i])
        if high == low:
            return low
        per_bin = (_BINS - 0.5) / (np.float64(high) - np.float64(low))
        bins[:] = 0
        tallies[:] = 0
        for i in range(count):
            place = np.int64((np.float64(high) - np.float64(values[i])) * per_bin)
            bins[place] += weights[i]
            tallies[place] += 1
        chosen, before, passed = 0, above, above
        for place in range(_BINS):
            if passed >= target:
                break
            if tallies[place] > 0:
                chosen, before = place, passed
            passed += bins[place]
        above = before
        kept = 0
        for i in range(count):
            value, weight = values[i], weights[i]
            values[kept], weights[kept] = value, weight
            kept += np.int64((np.float64(high) - np.float64(value)) * per_bin) == chosen
        count = kept
    _sort(values, weights, count)
    edge = values[0]
    for i in range(count):
        if above >= target:
            break
        edge = values[i]
        above += weights[i]
    return edge


@inlined
def _sort(values, others, count):
    """By insertion, the largest first, and what is equal in its order."""
    for i in range(1, count):
        value, other = values[i], others[i]
        place = i
        while place > 0 and values[place - 1] < value:
            values[place], others[place] = values[place - 1], others[place - 1]
            place -= 1
        values[place], others[place] = value, other


@inlined
def _lower_bound(peaks, count, values, weights, bins, tallies):
    """Not above the ``count``-th largest logit: so many blocks reach it."""
    if count > peaks.size:
        return _NOTHING
    reached = 0
    for block in range(peaks.size):
        if peaks[block] > _NOTHING:
            values[reached], weights[reached] = peaks[block], 1
            reached += 1
    if reached < count:
        return _NOTHING
    return _edge(values, weights, reached, count, bins, tallies)


@inlined
def _top_k_edge(logits, peaks, top_k, values, weights, bins, tallies):
    """The ``top_k``-th largest logit, or the smallest finite one where there are fewer."""
    bound = _lower_bound(peaks, top_k, values, weights, bins, tallies)
    count = 0
    for block in range(peaks.size):
        if peaks[block] >= bound and peaks[block] > _NOTHING:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                values[count], weights[count] = logits[i], 1
                count += logits[i] >= bound and logits[i] > _NOTHING
    return _edge(values, weights, count, top_k, bins, tallies)


@inlined
def _total(logits, peaks, edge, peak, scale):
    """The mass of the logits at or above ``edge``."""
    total = np.int64(0)
    for block in range(peaks.size):
        if peaks[block] >= edge and (peaks[block] - peak) * scale > _LOWEST:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                mass = _mass((logits[i] - peak) * scale)
                total += mass if logits[i] >= edge else 0
    return total


@inlined
def _top_p_edge(logits, peaks, edge, peak, scale, top_p, values, weights, bins, tallies):
    """The smallest logit of the nucleus among those at or above ``edge``."""
    total = _total(logits, peaks, edge, peak, scale)
    target = max(np.int64(np.float64(top_p) * np.float64(total)), 1)
    # Tokens that each weigh less than this cannot make up the rest, so the nucleus ends above them.
    share = (total - target) // logits.size
    least = np.float64(_LOWEST)
    if share > 0:
        least = max(least, math.log(share) - bits.MASS_BITS * math.log(2.0) - 1e-3)
    lowest = _F32(least)
    count = 0
    for block in range(peaks.size):
        if peaks[block] >= edge and (peaks[block] - peak) * scale >= lowest:
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                exponent = (logits[i] - peak) * scale
                values[count], weights[count] = logits[i], _mass(exponent)
                count += logits[i] >= edge and exponent >= lowest
    return _edge(values, weights, count, target, bins, tallies)


@inlined
def _winner(logits, peaks, edge, peak, scale, seed, position, words, ordered, noise):
    """Gumbel argmax over the logits at or above ``edge``."""
    best, winner = _NOTHING, 0
    for block in range(peaks.size):
        if peaks[block] < edge or (peaks[block] - peak) * scale + _MOST_NOISE < best:
            continue
        _noise(block, seed, position, words, ordered, noise)
        first = block * BLOCK
        highest = _LEAST_WORD
        for i in range(BLOCK):
            score = (logits[first + i] - peak) * scale + noise[i]
            noise[i] = score if logits[first + i] >= edge else _NOTHING
            highest = max(highest, _order(noise[i]))
        if _number(highest) > best:
            best = _number(highest)
            for i in range(BLOCK):
                if noise[i] == best:
                    winner = first + i
                    break
    return winner


@inlined
def _logprobs(logits, peaks, peak, token, own, top, top_ids, row, values, weights, bins, tallies):
    """Log-probabilities of the token and, as many as ``top_ids`` has columns, of the largest."""
    if not -np.inf < peak < np.inf:
        own[row] = np.nan
        for place in range(top.shape[1]):
            top[row, place], top_ids[row, place] = np.nan, place
        return
    total = np.float64(_total(logits, peaks, _NOTHING, peak, _ONE))
    norm = math.log(total) - bits.MASS_BITS * math.log(2.0)
    own[row] = _F32((logits[token] - peak) - norm)
    wanted = top.shape[1]
    if not wanted:
        return
    edge = _top_k_edge(logits, peaks, wanted, values, weights, bins, tallies)
    count = 0
    for passing in range(3):  # above the edge, on it, and at last the impossible ones
        for block in range(peaks.size):
            if count >= wanted and passing:
                break
            if passing < 2 and peaks[block] < edge:
                continue
            for i in range(block * BLOCK, min((block + 1) * BLOCK, logits.size)):
                x = logits[i]
                above, on, below = x > edge, x == edge, x < edge
                if (above, on, below)[passing] and (passing == 0 or count < wanted):
                    values[count], weights[count] = x, i
                    count += 1
    _sort(values, weights, count)
    for place in range(wanted):
        top[row, place] = _F32((values[place] - peak) - norm)
        top_ids[row, place] = weights[place]


_TYPES = (
    "float32[:,::1], int64[:,::1], int64[::1], int64[::1], float32[::1], float32[::1], "
    "int64[::1], int64[::1], uint8[:,::1], float32[::1], float32[::1], float32[::1], int64[::1], "
    "int64[::1], float32[::1], float32[:,::1], int64[:,::1])"
)


@compiled(["void(float32[:,::1], " + _TYPES, "void(uint16[:,::1], " + _TYPES])
def draw(
    rows,
    floats,
    integers,
    edits,
    ids,
    biases,
    counts,
    bans,
    forbidden,
    masks,
    logits,
    peaks,
    values,
    weights,
    tokens,
    own,
    top,
    top_ids,
):
    """A token for each of ``rows``, float32, or bfloat16 as uint16: [rows, vocab].

    Args:
        floats: [rows, FLOATS].
        integers: [rows, INTEGERS].
        edits: where the edits of each row begin among ``ids``, ``biases`` and ``counts``, and after
            the last one where they end.
        bans: the same for ``forbidden``, ids too.
        masks: what may be drawn, a bit for each token, the first one lowest.
        logits: room, of whole blocks, -inf behind the vocabulary.
        peaks: room for a number of each block.
        values: as large as ``logits``.
        weights: as large as ``logits``.
        tokens: receives the ids.
        own: receives their log-probabilities.
        top: [rows, most], receives the largest log-probabilities.
        top_ids: the tokens they belong to.
    """
    bins, tallies = np.empty(_BINS, np.int64), np.empty(_BINS, np.int64)
    words, ordered = np.empty((4, BLOCK // 4), np.uint32), np.empty(BLOCK, np.uint32)
    noise = np.empty(BLOCK, np.float32)
    vocab = rows.shape[1]
    for row in range(rows.shape[0]):
        numbers, choices = floats[row], integers[row]
        edited = edits[row] < edits[row + 1] or bans[row] < bans[row + 1] or choices[MASK] >= 0
        if edited:
            _copy(rows[row], logits)
            _edit(
                logits,
                numbers,
                ids[edits[row] : edits[row + 1]],
                biases[edits[row] : edits[row + 1]],
                counts[edits[row] : edits[row + 1]],
                forbidden[bans[row] : bans[row + 1]],
            )
            if choices[MASK] >= 0:
                _mask(logits, vocab, masks[choices[MASK]])
            peak = _peaks(logits[:vocab], logits, peaks)
        else:
            peak = _peaks(rows[row], logits, peaks)
        scale = numbers[SCALE]
        if scale == 0 or not -np.inf < peak < np.inf:
            tokens[row] = _argmax(logits, vocab, peaks, peak)
        else:
            edge = _NOTHING
            if choices[TOP_K] > 0:
                edge = _top_k_edge(logits, peaks, choices[TOP_K], values, weights, bins, tallies)
            if numbers[TOP_P] < 1:
                edge = _top_p_edge(
                    logits,
                    peaks,
                    edge,
                    peak,
                    scale,
                    numbers[TOP_P],
                    values,
                    weights,
                    bins,
                    tallies,
                )
            edge = max(edge, peak + numbers[FLOOR])
            tokens[row] = _winner(
                logits,
                peaks,
                edge,
                peak,
                scale,
                choices[SEED],
                choices[POSITION],
                words,
                ordered,
                noise,
            )
        if choices[LOGPROBS] >= 0:
            if edited:
                peak = _peaks(rows[row], logits, peaks)
            _logprobs(
                logits[:vocab],
                peaks,
                peak,
                tokens[row],
                own,
                top[:, : choices[LOGPROBS]],
                top_ids,
                row,
                values,
                weights,
                bins,
                tallies,
            )
