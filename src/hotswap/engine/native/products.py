"""Products of many rows, put together from the tiles that `hotswap.engine.native.machine` makes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import overload

from hotswap.engine.jit import inlined, reordered
from hotswap.engine.native.machine import (
    BLOCKED,
    LEFTS,
    MIXED,
    RIGHTS,
    TILE,
    dot_tile,
    load,
    mix_tile,
    multiply_tiles,
    store,
    store_pair,
    transpose_tile,
)

SCRATCH_BYTES = 4 * 4 * TILE * TILE
"""What `products` needs: room for four blocks of tokens."""
_COLUMNS = 32
"""What `dot_tile` takes at least."""
_F32 = np.float32(0)


def _up_to(most: int, make: Callable[[int], Callable[..., None]]) -> Callable[..., None]:
    """A function of a count, and of what the ones that ``make`` makes take; above ``most`` it is so
    many that are computed."""
    function = make(most)

    if most == 1:

        @inlined
        def one(count, *arguments):
            function(*arguments)

        return one

    fewer = _up_to(most - 1, make)

    @inlined
    def run(count, *arguments):
        if count >= most:
            function(*arguments)
        else:
            fewer(count, *arguments)

    return run


_dots_first = _up_to(RIGHTS, lambda rights: dot_tile(LEFTS, rights, ahead=True))
_dots_more = _up_to(RIGHTS, lambda rights: dot_tile(LEFTS, rights))
_dots_rest = _up_to(RIGHTS, lambda rights: dot_tile(1, rights))
_mixes = _up_to(4, mix_tile)
_matrices = _up_to(4, multiply_tiles)


@inlined
def dots(lefts, left_stride, left_rows, rights, right_stride, right_rows, out, out_stride, width,
         left_like, right_like):  # fmt: skip
    """All products of some rows with some others, see `dot_tile`; the width may be any."""
    if width % _COLUMNS != 0:
        _dots_of_any_width(lefts, left_stride, left_rows, rights, right_stride, right_rows, out,
                           out_stride, width, left_like, right_like)  # fmt: skip
        return
    whole = left_rows - left_rows % LEFTS
    for i in range(0, whole, LEFTS):
        left, place = lefts + i * left_stride, out + 4 * i
        # The first pass reads the rows from memory, and has those fetched that come next.
        _dots_first(right_rows, left, left_stride, rights, right_stride, place, out_stride, width,
                    left_like, right_like)  # fmt: skip
        for j in range(RIGHTS, right_rows, RIGHTS):
            right, target = rights + j * right_stride, place + j * out_stride
            _dots_more(right_rows - j, left, left_stride, right, right_stride, target, out_stride,
                       width, left_like, right_like)  # fmt: skip
    for i in range(whole, left_rows):
        left, place = lefts + i * left_stride, out + 4 * i
        for j in range(0, right_rows, RIGHTS):
            right, target = rights + j * right_stride, place + j * out_stride
            _dots_rest(right_rows - j, left, left_stride, right, right_stride, target, out_stride,
                       width, left_like, right_like)  # fmt: skip


@reordered
def _dots_of_any_width(lefts, left_stride, left_rows, rights, right_stride, right_rows, out,
                       out_stride, width, left_like, right_like):  # fmt: skip
    for i in range(left_rows):
        for j in range(right_rows):
            left, right = lefts + i * left_stride, rights + j * right_stride
            total = np.float32(0)
            for k in range(width):
                total += load(left, k, left_like) * load(right, k, right_like)
            store(out + j * out_stride, i, total, _F32)


@inlined
def _by_matrices(weights, weight_stride, weight_rows, tokens, token_stride, count, out, out_stride,
                 width, scratch):  # fmt: skip
    """All products of 16 or more rows of weights with some tokens, see `multiply_tiles`."""
    for i in range(0, weight_rows, TILE):
        first = min(i, weight_rows - TILE)  # the last rows may be computed twice
        weight = weights + first * weight_stride
        for j in range(0, count, 4 * TILE):
            block, left = tokens + j * token_stride, min(4 * TILE, count - j)
            _matrices((left + TILE - 1) // TILE, weight, weight_stride, block, TILE * token_stride,
                      scratch, width)  # fmt: skip
            for k in range(0, left, TILE):
                target = out + (j + k) * out_stride + 4 * first
                transpose_tile(scratch + 4 * TILE * k, target, out_stride, min(TILE, left - k))


def products(weights, weight_stride, weight_rows, tokens, token_stride, count, out, out_stride,
             width, scratch, weight_like, token_like):  # fmt: skip
    """All products of rows of weights with tokens as they lie between two phases. Compiled code
    takes the way for its kind of tokens."""
    raise TypeError("only compiled code can call this")


@overload(products)
def _products(weights, weight_stride, weight_rows, tokens, token_stride, count, out, out_stride,
              width, scratch, weight_like, token_like):  # fmt: skip
    def by_matrices(weights, weight_stride, weight_rows, tokens, token_stride, count, out,
                    out_stride, width, scratch, weight_like, token_like):  # fmt: skip
        _by_matrices(weights, weight_stride, weight_rows, tokens, token_stride, count, out,
                     out_stride, width, scratch)  # fmt: skip

    def by_vectors(weights, weight_stride, weight_rows, tokens, token_stride, count, out,
                   out_stride, width, scratch, weight_like, token_like):  # fmt: skip
        dots(weights, weight_stride, weight_rows, tokens, token_stride, count, out, out_stride,
             width, weight_like, token_like)  # fmt: skip

    return by_matrices if token_like == BLOCKED else by_vectors


@inlined
def mixed(
    rows, row_stride, count, weights, weight_stride, sets, out, out_stride, width, like, size
):
    """Add weighted sums of rows to what is at ``out``, see `mix_tile`; the width may be any.
    ``size``: bytes of a number in the rows."""
    whole = width - width % MIXED
    for column in range(0, whole, MIXED):
        for j in range(0, sets, 4):
            weight, target = weights + j * weight_stride, out + j * out_stride + 4 * column
            _mixes(sets - j, rows + column * size, row_stride, weight, weight_stride, target,
                   out_stride, count, like)  # fmt: skip
    for j in range(sets):
        for row in range(count):
            weight = load(weights + j * weight_stride, row, _F32)
            for k in range(whole, width):
                total = load(out + j * out_stride, k, _F32)
                total += weight * load(rows + row * row_stride, k, like)
                store(out + j * out_stride, k, total, _F32)


def write(floats, count, target, first, like):
    """Write float32 numbers as those from the ``first``-th on of a token at ``target``, both even
    where the token lies in blocks. Only compiled code can call this."""
    raise TypeError("only compiled code can call this")


@overload(write)
def _write(floats, count, target, first, like):
    def into_blocks(floats, count, target, first, like):
        for i in range(count // 2):
            a, b = load(floats, 2 * i, _F32), load(floats, 2 * i + 1, _F32)
            store_pair(target, first // 2 + i, a, b)

    def into_row(floats, count, target, first, like):
        for i in range(count):
            store(target, first + i, load(floats, i, _F32), like)

    return into_blocks if like == BLOCKED else into_row
