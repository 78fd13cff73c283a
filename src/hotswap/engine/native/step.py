"""A step of the decoder skeleton, whole: some dozens of tokens of any sequences.

Several threads run it together, without the interpreter. Each takes the next piece of a phase
until none is left, and waits for the pieces that others have taken, so that nobody waits for a
thread that the system has put aside, except for what is in its hands.

A phase's two words hold the number of the step in their upper half: pieces taken, pieces done. A
thread that comes late, or is still in the step before, sees so and touches nothing.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from hotswap.engine.jit import compiled, inlined, reordered
from hotswap.engine.native.arithmetic import activated, exp, norm_factor, tanh
from hotswap.engine.native.machine import (
    DOTS_BFLOAT16,
    HAS_TILES,
    TILE,
    add_word,
    fetch,
    give_way,
    load,
    load_word,
    pause,
    store,
    store_word,
    swap_word,
    token,
    use_tiles,
)
from hotswap.engine.native.products import SCRATCH_BYTES, dots, mixed, products, write
from hotswap.engine.native.records import (
    ATTEND,
    EMBED,
    GATE,
    KEEP,
    LAYER,
    MODEL,
    PHASE,
    PIECE,
    PROJECT,
    ROW,
)

STEP, ROWS, SAMPLED, STOP, MATRICES, WORKERS = 0, 8, 16, 24, 32, 40
"""Control words: number of the step, tokens in it, those with logits, whether to go home, whether
the processor's matrices are used; from the last one on one for each worker, 1 while it sleeps. Each
has a cache line to itself."""
LINE = 8
"""Words of a cache line."""
COUNT_BITS = 32
_MOST_STEPS = 1 << 31
"""Then their numbers begin again: a word has room for a month of a thousand steps a second."""
_SPINS = 64
"""Looks at a word before another thread is let through."""
_FETCHED_KEYS = 32
"""Looked at while the next ones are on their way from memory."""
_F32 = np.float32(0)
_LARGEST = np.float32(3.3e38)
"""Also of bfloat16."""


# -- pieces of work ------------------------------------------------------------------------------


@reordered
def _normed(phase, residual, scratch):
    """Address of what the next block takes: the residual, with its norm if there is one."""
    weight, width = phase.norm_after, phase.width
    if weight == 0:
        return residual
    factor = norm_factor(residual, width, phase.eps_after)
    for i in range(width):
        store(scratch, i, load(residual, i, _F32) * factor * load(weight, i, _F32), _F32)
    return scratch


@reordered
def _embed(phase, model, rows, number, scratch, weight_like, act):
    width, table, scale = model.width, model.embedding, phase.scale
    residual = model.residual + number * width * 4
    first = rows[number].token * width
    for i in range(width):
        store(residual, i, load(table, first + i, weight_like) * scale, _F32)
    target = token(phase.target, phase.target_stride, number, act)
    write(_normed(phase, residual, scratch), width, target, 0, act)


@reordered
def _add(phase, model, rows, number, scratch, act):
    width, weight = model.width, phase.norm_before
    residual = model.residual + number * width * 4
    made = phase.source + number * phase.source_stride
    if weight == 0:
        for i in range(width):
            store(residual, i, load(residual, i, _F32) + load(made, i, _F32), _F32)
    else:
        factor = norm_factor(made, width, phase.eps_before)
        for i in range(width):
            value = load(made, i, _F32) * factor * load(weight, i, _F32)
            store(residual, i, load(residual, i, _F32) + value, _F32)
    place = rows[number].sampled if phase.sampled == 1 else number
    if place >= 0:
        target = token(phase.target, phase.target_stride, place, act)
        write(_normed(phase, residual, scratch), width, target, 0, act)


@reordered
def _add_bias(bias, count, out):
    if bias != 0:
        for i in range(count):
            store(out, i, load(out, i, _F32) + load(bias, i, _F32), _F32)


@inlined
def _project(phase, piece, number, tokens, scratch, weight_like, weight_size, act):
    target = phase.target + 4 * piece.place
    products(piece.weight, piece.width * weight_size, piece.rows, phase.source,
              phase.source_stride, tokens, target, phase.target_stride, piece.width, scratch,
              weight_like, act)  # fmt: skip
    for row in range(tokens):
        _add_bias(piece.bias, piece.rows, target + row * phase.target_stride)
    if phase.peaks != 0:
        for row in range(tokens):
            _find_peak(phase, piece, number, row, target + row * phase.target_stride)


@inlined
def _is_above(value, best):
    """NaN is above everything, as in torch."""
    return value > best or (math.isnan(value) and not math.isnan(best))


@inlined
def _find_peak(phase, piece, number, row, logits):
    """The largest of a piece's logits, the first one among equals."""
    count, softcap = piece.rows, phase.softcap
    if softcap != 0:
        for i in range(count):
            store(logits, i, softcap * tanh(load(logits, i, _F32) / softcap), _F32)
    best, place = np.float32(-math.inf), 0
    for i in range(count):
        value = load(logits, i, _F32)
        if _is_above(value, best):
            best, place = value, i
    peaks = phase.peaks + 16 * (row * phase.pieces + number)
    store(peaks, 0, best, _F32)
    store_word(peaks + 8, piece.place + place)


@reordered
def _gate(phase, piece, tokens, kind, scratch, weight_like, weight_size, act):
    count = piece.rows
    stride, weight_stride = 8 * count, piece.width * weight_size
    gates = scratch + SCRATCH_BYTES
    for part in range(2):
        weight = piece.weight if part == 0 else piece.gated
        products(weight, weight_stride, count, phase.source, phase.source_stride, tokens,
                  gates + part * 4 * count, stride, piece.width, scratch, weight_like,
                  act)  # fmt: skip
    for row in range(tokens):
        gate = gates + row * stride
        gated = gate + 4 * count
        _add_bias(piece.bias, count, gate)
        _add_bias(piece.gated_bias, count, gated)
        for i in range(count):
            store(gate, i, activated(load(gate, i, _F32), kind) * load(gated, i, _F32), _F32)
        target = token(phase.target, phase.target_stride, row, act)
        write(gate, count, target, piece.place, act)


@reordered
def _normed_head(layer, source, all_heads, count, weight, head, scratch):
    """One head's numbers with its norm, to scratch."""
    size = layer.size
    if weight == 0:
        for i in range(size):
            store(scratch, i, load(source, i, _F32), _F32)
        return
    if layer.norm_all == 1:
        factor = norm_factor(all_heads, count * size, layer.eps)
        weight += 4 * head * size
    else:
        factor = norm_factor(source, size, layer.eps)
    for i in range(size):
        store(scratch, i, load(source, i, _F32) * factor * load(weight, i, _F32), _F32)


@reordered
def _rotate(layer, position, head):
    rotated = layer.rotated
    half = rotated // 2
    cosines = layer.cosines + 4 * position * rotated
    sines = layer.sines + 4 * position * rotated
    for i in range(half):
        a, b = load(head, i, _F32), load(head, half + i, _F32)
        store(head, i, a * load(cosines, i, _F32) + b * load(sines, i, _F32), _F32)
        turned = b * load(cosines, half + i, _F32) + a * load(sines, half + i, _F32)
        store(head, half + i, turned, _F32)


@inlined
def _keep(pool, layer, group, slots, slot, head, like):
    """What is not finite becomes zero: it would come through the masks of others."""
    size = layer.size
    first = (group * slots + slot) * size
    for i in range(size):
        value = load(head, i, _F32)
        store(pool, first + i, value if abs(value) < _LARGEST else np.float32(0), like)


@reordered
def _weigh(layer, scores, length):
    """Scores to weights that add up to one, in place."""
    scale, softcap = layer.scale, layer.softcap
    if softcap != 0:
        for i in range(length):
            score = softcap * tanh(load(scores, i, _F32) * scale / softcap)
            store(scores, i, score, _F32)
        scale = np.float32(1)
    peak = np.float32(-math.inf)
    for i in range(length):
        peak = max(peak, load(scores, i, _F32))
    total = np.float32(0)
    for i in range(length):
        weight = exp((load(scores, i, _F32) - peak) * scale)
        store(scores, i, weight, _F32)
        total += weight
    for i in range(length):
        store(scores, i, load(scores, i, _F32) / total, _F32)


@inlined
def _keep_both(phase, model, layer, row, group, of_token, scratch, kv_like):
    """The key and the value of a group of heads."""
    head, line = scratch + SCRATCH_BYTES, 4 * layer.size
    keys = phase.source + of_token * phase.source_stride + layer.heads * line
    value = keys + (layer.groups + group) * line
    _normed_head(layer, keys + group * line, keys, layer.groups, layer.k_norm, group, head)
    _rotate(layer, row.position, head)
    _keep(layer.keys, layer, group, model.slots, row.slot, head, kv_like)
    _keep(layer.values, layer, group, model.slots, row.slot, value, kv_like)


@inlined
def _fetch_rows(begin, count):
    for line in range(0, count, 8 * LINE):
        fetch(begin + line)


@inlined
def _attend(phase, model, layer, row, stretches, group, of_token, scratch, kv_like, kv_size, act,
            query_like, query_size):  # fmt: skip
    shared, size = layer.heads // layer.groups, layer.size
    line, score_stride = 4 * size, 4 * model.scores
    # Scratch: a head, the queries, what they saw, their scores.
    head = scratch + SCRATCH_BYTES
    queries = head + line
    seen = queries + shared * line
    scores = seen + shared * line
    source = phase.source + of_token * phase.source_stride
    for i in range(shared):
        of_all = group * shared + i
        _normed_head(layer, source + of_all * line, source, layer.heads, layer.q_norm, of_all, head)
        _rotate(layer, row.position, head)
        for k in range(size):
            store(queries + i * size * query_size, k, load(head, k, _F32), query_like)
            store(seen + i * line, k, np.float32(0), _F32)

    stride = size * kv_size
    skipped = 0 if layer.window == 0 else max(0, row.position + 1 - layer.window)
    length, before = 0, 0
    for i in range(row.first_stretch, row.first_stretch + row.stretches):
        hidden = min(max(0, skipped - before), stretches[i, 1])
        count = stretches[i, 1] - hidden
        before += stretches[i, 1]
        first = group * model.slots + stretches[i, 0] + hidden
        for begin in range(0, count, _FETCHED_KEYS):
            some = min(_FETCHED_KEYS, count - begin)
            keys = layer.keys + (first + begin) * stride
            _fetch_rows(keys + some * stride, min(_FETCHED_KEYS, count - begin - some) * stride)
            _fetch_rows(layer.values + (first + begin) * stride, some * stride)
            dots(keys, stride, some, queries, size * query_size, shared, scores + 4 * length,
                 score_stride, size, kv_like, query_like)  # fmt: skip
            length += some
    for i in range(shared):
        _weigh(layer, scores + i * score_stride, length)
    length, before = 0, 0
    for i in range(row.first_stretch, row.first_stretch + row.stretches):
        hidden = min(max(0, skipped - before), stretches[i, 1])
        count = stretches[i, 1] - hidden
        before += stretches[i, 1]
        if count > 0:
            first = group * model.slots + stretches[i, 0] + hidden
            mixed(layer.values + first * stride, stride, count, scores + 4 * length,
                   score_stride, shared, seen, line, size, kv_like, kv_size)  # fmt: skip
            length += count
    target = token(phase.target, phase.target_stride, of_token, act)
    write(seen, shared * size, target, group * shared * size, act)


# -- all of it -----------------------------------------------------------------------------------


_ARRAYS = (
    numba.from_dtype(MODEL)[::1],
    numba.from_dtype(PHASE)[::1],
    numba.from_dtype(PIECE)[::1],
    numba.from_dtype(LAYER)[::1],
    numba.from_dtype(ROW)[::1],
    numba.int64[:, ::1],
)
_LEAD = numba.void(*(numba.int64,) * 5, *_ARRAYS)
_FOLLOW = numba.int64(*(numba.int64,) * 5, *_ARRAYS)
_BEGIN = numba.int64(*(numba.int64,) * 7)


@inlined
def _piece_count(phase, tokens, together):
    """``together``: tokens of a piece that takes whole ones, as many as share a line of memory:
    two threads that write to one take it from each other all the time."""
    if phase.pieces > 0:
        return phase.pieces
    if phase.kind in (KEEP, ATTEND):
        return phase.each * tokens
    return (tokens + together - 1) // together


@inlined
def _do(phase, number, tokens, together, model, pieces, layer, rows, stretches, scratch,
        weight_like, weight_size, act, query_like, query_size):  # fmt: skip
    """A piece of a phase."""
    own = scratch + SCRATCH_BYTES
    if phase.kind == PROJECT:
        piece = pieces[phase.first + number]
        _project(phase, piece, number, tokens, scratch, weight_like, weight_size, act)
    elif phase.kind == GATE:
        piece = pieces[phase.first + number]
        _gate(phase, piece, tokens, layer.activation, scratch, weight_like, weight_size, act)
    elif phase.kind == ATTEND:
        group, of_token = divmod(number, tokens)
        _attend(phase, model, layer, rows[of_token], stretches, group, of_token, scratch,
                weight_like, weight_size, act, query_like, query_size)  # fmt: skip
    elif phase.kind == KEEP:
        group, of_token = divmod(number, tokens)
        _keep_both(phase, model, layer, rows[of_token], group, of_token, scratch, weight_like)
    else:
        first = number * together
        for i in range(first, min(first + together, tokens)):
            if phase.kind == EMBED:
                _embed(phase, model, rows, i, own, weight_like, act)
            else:
                _add(phase, model, rows, i, own, act)


@inlined
def _run(worker, number, words, control, model, phases, pieces, layers, rows, stretches,
         weight_like, weight_size, act, together, query_like, query_size):  # fmt: skip
    """Take part in a step. What it finds there is only what that step's leader has written, as
    long as it holds a piece of it: `begin` writes the words before it writes how many tokens there
    are, and here that is read before a word is. Neither order may be changed."""
    first_mark = number << COUNT_BITS
    scratch = model.scratch + worker * model.scratch_bytes
    workers = model.workers
    for p in range(phases.shape[0]):
        phase = phases[p]
        layer = layers[phase.layer]
        done = words + 8 * LINE * (workers + 1) * p
        tokens = load_word(control + 8 * ROWS)
        if phase.kind == PROJECT and phase.sampled == 1:
            tokens = load_word(control + 8 * SAMPLED)
        if tokens == 0:
            continue  # no logits are wanted; the words say so to all threads alike
        count = _piece_count(phase, tokens, together)
        for turn in range(workers):
            share = (worker + turn) % workers
            taken = done + 8 * LINE * (share + 1)
            begin, end = count * share // workers, count * (share + 1) // workers
            while True:
                mark = load_word(taken)
                if mark >> COUNT_BITS != number:
                    return
                piece_number = mark - first_mark + begin
                if piece_number >= end:
                    break
                if not swap_word(taken, mark, mark + 1):
                    continue
                _do(phase, piece_number, tokens, together, model, pieces, layer, rows, stretches,
                    scratch, weight_like, weight_size, act, query_like, query_size)  # fmt: skip
                add_word(done, 1)
        spins = 0
        while True:
            mark = load_word(done)
            if mark >> COUNT_BITS != number:
                return
            if mark - first_mark >= count:
                break
            spins += 1
            pause()
            if spins % _SPINS == 0:
                give_way()


_HALF = np.uint16(0)
_BLOCKS = np.int16(0)
_VECTORS, _VECTORS_SIZE = (_HALF, 2) if DOTS_BFLOAT16 else (_F32, 4)
"""What vectors of bfloat16 weights are multiplied with."""


@inlined
def _run_float32(worker, number, words, control, model, phases, pieces, layers, rows, stretches):
    _run(worker, number, words, control, model[0], phases, pieces, layers, rows, stretches,
         _F32, 4, _F32, 1, _F32, 4)  # fmt: skip


@inlined
def _run_vectors(worker, number, words, control, model, phases, pieces, layers, rows, stretches):
    _run(worker, number, words, control, model[0], phases, pieces, layers, rows, stretches,
         _HALF, 2, _VECTORS, 1, _VECTORS, _VECTORS_SIZE)  # fmt: skip


@inlined
def _run_tiles(worker, number, words, control, model, phases, pieces, layers, rows, stretches):
    former = model[0].shapes + 64 * (1 + 2 * worker)
    use_tiles(model[0].shapes, former)
    _run(worker, number, words, control, model[0], phases, pieces, layers, rows, stretches,
         _HALF, 2, _BLOCKS, TILE, _VECTORS, _VECTORS_SIZE)  # fmt: skip
    # Others of this thread, oneDNN among them, rely on what they had set.
    use_tiles(former, former + 64)


@inlined
def _run_either(worker, number, words, control, model, phases, pieces, layers, rows, stretches):
    if load_word(control + 8 * MATRICES) == 1:
        _run_tiles(worker, number, words, control, model, phases, pieces, layers, rows, stretches)
    else:
        _run_vectors(worker, number, words, control, model, phases, pieces, layers, rows, stretches)


_run_bfloat16 = _run_either if HAS_TILES else _run_vectors


@inlined
def _likeliest(phase, tokens, out):
    """Token ids, int64, from what the pieces of the head found."""
    for row in range(tokens):
        best, token = np.float32(-math.inf), 0
        for i in range(phase.pieces):
            peaks = phase.peaks + 16 * (row * phase.pieces + i)
            value = load(peaks, 0, _F32)
            if _is_above(value, best):
                best, token = value, load_word(peaks + 8)
        store_word(out + 8 * row, token)


@compiled(_BEGIN)
def begin(
    words: int, control: int, tokens: int, sampled: int, matrices: int, workers: int, phases: int
) -> int:
    """Have all pieces of a new step waiting, of so many tokens, some of them with logits; its
    number."""
    number = load_word(control + 8 * STEP) + 1
    if number == _MOST_STEPS:
        number = 1  # 0 is none
    for i in range((workers + 1) * phases):
        store_word(words + 8 * LINE * i, number << COUNT_BITS)
    store_word(control + 8 * ROWS, tokens)
    store_word(control + 8 * SAMPLED, sampled)
    store_word(control + 8 * MATRICES, matrices)
    store_word(control + 8 * STEP, number)
    return number


@inlined
def _wait(worker, seen, patience, control):
    """For the next step; 0: none came, or none will."""
    asleep = control + 8 * (WORKERS + LINE * worker)
    waited = 0
    while load_word(control + 8 * STOP) == 0:
        number = load_word(control + 8 * STEP)
        if number != seen:
            return number
        waited += 1
        pause()
        if waited % _SPINS == 0:
            give_way()
        if waited > patience:
            store_word(asleep, 1)
            # Whoever begins a step now sees it asleep; whoever has just begun one did not.
            if load_word(control + 8 * STEP) == seen or not swap_word(asleep, 1, 0):
                return 0
            waited = 0
    return 0


@compiled(_LEAD)
def lead_float32(number, words, control, sampled, out, model, phases, pieces, layers, rows,
                 stretches):  # fmt: skip
    """Take part in a step until it is done; the likeliest tokens go to ``out``."""
    _run_float32(0, number, words, control, model, phases, pieces, layers, rows, stretches)
    _likeliest(phases[phases.shape[0] - 1], sampled, out)


@compiled(_FOLLOW)
def follow_float32(worker, seen, patience, words, control, model, phases, pieces, layers, rows,
                   stretches):  # fmt: skip
    """Take part in steps as they come, until none has come for so many looks; the last one."""
    while True:
        number = _wait(worker, seen, patience, control)
        if number == 0:
            return seen
        _run_float32(worker, number, words, control, model, phases, pieces, layers, rows, stretches)
        seen = number


@compiled(_LEAD)
def lead_bfloat16(number, words, control, sampled, out, model, phases, pieces, layers, rows,
                  stretches):  # fmt: skip
    """As `lead_float32`."""
    _run_bfloat16(0, number, words, control, model, phases, pieces, layers, rows, stretches)
    _likeliest(phases[phases.shape[0] - 1], sampled, out)


@compiled(_FOLLOW)
def follow_bfloat16(worker, seen, patience, words, control, model, phases, pieces, layers, rows,
                    stretches):  # fmt: skip
    """As `follow_float32`."""
    while True:
        number = _wait(worker, seen, patience, control)
        if number == 0:
            return seen
        _run_bfloat16(
            worker, number, words, control, model, phases, pieces, layers, rows, stretches
        )
        seen = number


@compiled(numba.int64(*(numba.int64,) * 2))
def wake(control: int, worker: int) -> int:
    """Whether a worker sleeps; if so it counts as awake from now on."""
    return 1 if swap_word(control + 8 * (WORKERS + LINE * worker), 1, 0) else 0


@compiled(numba.void(*(numba.int64,) * 3))
def set_word(control: int, place: int, value: int) -> None:
    store_word(control + 8 * place, value)
