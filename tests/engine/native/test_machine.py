"""The operations that the compiled loops are made of, one by one."""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

F32, HALF, BLOCKS = np.float32(0), np.uint16(0), np.int16(0)
"""What says that numbers are float32, bfloat16, and bfloat16 of 16 tokens side by side."""
KINDS = {"float32": (F32, 4), "bfloat16": (HALF, 2)}
"""With the bytes of a number."""
Array = np.ndarray[Any, Any]


Place = tuple[int, int]
"""Address of the first row, bytes from row to row."""


def operations() -> Any:
    """The module, not before it is used; what Numba compiles has types of its own."""
    return import_module("hotswap.engine.native.machine")


def address(array: Array) -> int:
    return int(array.ctypes.data)


def bfloat16(values: Array) -> Array:
    """Rounded by torch, as uint16."""
    import torch

    bits = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16)
    return bits.numpy().view(np.uint16)


def widened(halves: Array) -> Array:
    """The float32 whose upper half a bfloat16 is."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def stored(values: Array, like: Any) -> Array:
    """What `store` makes of float32 numbers."""
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def write(source: int, target: int, count: int) -> None:
        for i in range(count):
            machine.store(target, i, machine.load(source, i, F32), like)

    target = np.zeros(len(values), np.uint16 if like is HALF else np.float32)
    write(address(values), address(target), len(values))
    return target


def special_numbers() -> Array:
    """Random bits, ties both ways, infinities, NaN of all kinds, zeros, denormals."""
    dice = np.random.default_rng(3)
    random = dice.integers(0, 2**32, 20_000, np.uint32)
    upper = dice.integers(0, 2**16, 4_000, np.uint32) << 16
    edges = [0, 0x8000_0000, 1, 0x8000_0001, 0x7FFF, 0x8000, 0x8001, 0x7F_FFFF, 0x80_0000]
    edges += [0x7F7F_7FFF, 0x7F7F_8000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000]
    edges += [0x7F80_0001, 0x7FC0_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFF80_0001]
    parts = random, upper | 0x8000, upper | 0x7FFF, upper | 0x8001, np.array(edges, np.uint32)
    return np.concatenate(parts).view(np.float32)


def test_bfloat16_is_rounded_as_torch_does() -> None:
    numbers = special_numbers()
    got, wanted = stored(numbers, HALF), bfloat16(numbers)
    known = ~np.isnan(numbers)
    assert 20_000 < known.sum() < len(numbers)
    np.testing.assert_array_equal(got[known], wanted[known])
    assert np.isnan(widened(got[~known])).all()


def test_float32_is_stored_as_it_is() -> None:
    numbers = special_numbers()
    assert stored(numbers, F32).tobytes() == numbers.tobytes()


def test_every_bfloat16_is_loaded_as_the_number_that_it_is() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def widen(source: int, target: int, count: int) -> None:
        for i in range(count):
            machine.store(target, i, machine.load(source, i, HALF), F32)

    halves = np.arange(2**16, dtype=np.uint16)
    target = np.empty(len(halves), np.float32)
    widen(address(halves), address(target), len(halves))
    assert target.tobytes() == widened(halves).tobytes()


def test_a_float_is_made_of_its_bits() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def made(bits: Any) -> Any:
        return machine.float_of_bits(bits)

    for number in (1.0, -0.3, 3e38, 1e-44):
        value = np.float32(number)
        assert made(value.view(np.int32)) == value


def test_tokens_side_by_side_lie_in_pairs_of_numbers() -> None:
    from hotswap.engine.jit import inlined
    from hotswap.engine.native import products

    machine, write = operations(), cast("Any", products.write)

    @inlined
    def run(source: int, target: int, stride: int, tokens: int, width: int) -> None:
        for t in range(tokens):
            place = machine.token(target, stride, t, BLOCKS)
            # In two parts, the second one after some numbers.
            write(source + 4 * t * width, 10, place, 0, BLOCKS)
            write(source + 4 * (t * width + 10), width - 10, place, 10, BLOCKS)

    tokens, width = 40, 32
    numbers = np.random.default_rng(0).standard_normal((tokens, width), np.float32)
    # A row has room for more than its numbers, and the blocks' stride is that of rows.
    stride = 2 * width + 64
    target = np.zeros((48, stride // 2), np.uint16)
    run(address(numbers), address(target), stride, tokens, width)
    blocks = target.reshape(3, -1)[:, : 16 * width].reshape(3, width // 2, 16, 2)
    got = blocks.transpose(0, 2, 1, 3).reshape(48, width)
    np.testing.assert_array_equal(got[:tokens], bfloat16(numbers))
    assert not got[tokens:].any()
    assert not target.reshape(3, -1)[:, 16 * width :].any()


def test_tokens_of_other_kinds_lie_one_after_the_other() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def places(number: int) -> Any:
        return machine.token(1000, 72, number, HALF), machine.token(1000, 72, number, F32)

    for number in (0, 1, 17, 63):
        assert places(number) == (1000 + 72 * number, 1000 + 72 * number)


# -- words ---------------------------------------------------------------------------------------


def test_a_word_is_swapped_only_if_it_is_what_was_expected() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def swap(place: int, before: int, expected: int, value: int) -> Any:
        machine.store_word(place, before)
        swapped = machine.swap_word(place, expected, value)
        return swapped, machine.load_word(place)

    word = np.zeros(1, np.int64)
    assert swap(address(word), 7 << 40, 7 << 40, -3) == (True, -3)
    assert swap(address(word), 7 << 40, 7, 5) == (False, 7 << 40)


def test_adding_tells_what_was_there() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def add(place: int, value: int) -> Any:
        return machine.add_word(place, value)

    word = np.array([1 << 40], np.int64)
    assert add(address(word), -2) == 1 << 40
    assert word[0] == (1 << 40) - 2


def test_nothing_that_threads_add_or_swap_is_lost() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def count(added: int, swapped: int, times: int) -> None:
        for _ in range(times):
            machine.add_word(added, 1)
            while True:
                seen = machine.load_word(swapped)
                if machine.swap_word(swapped, seen, seen + 1):
                    break

    words = np.zeros(16, np.int64)
    places = address(words), address(words) + 64
    count(*places, 0)
    threads = [threading.Thread(target=count, args=(*places, 200_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (words[0], words[8]) == (800_000, 800_000)


# -- products ------------------------------------------------------------------------------------

TILES = [(1, 1), (1, 2), (1, 3), (1, 4), (4, 1), (4, 2), (4, 3), (4, 4)]
"""Rows on the left and on the right."""


class Rows:
    """Random rows of a kind, in memory with something between them."""

    def __init__(self, kind: str, rows: int, width: int, seed: int) -> None:
        self.like, size = KINDS[kind]
        numbers = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
        encoded = numbers if kind == "float32" else bfloat16(numbers)
        self._memory = np.full((rows, width + 12), np.nan, np.float32)
        if kind == "bfloat16":
            self._memory = bfloat16(self._memory)
        self._memory[:, :width] = encoded
        self.values = (numbers if kind == "float32" else widened(encoded)).astype(np.float64)
        self.place: Place = address(self._memory), (width + 12) * size


def tiles_of(left_like: Any, right_like: Any) -> Any:
    """All of `TILES` compiled: one after the other at the address given, each 4 rows of 8."""
    from hotswap.engine.jit import inlined

    machine = operations()

    ones = [machine.dot_tile(1, right) for right in (1, 2, 3, 4)]
    a1, a2, a3, a4 = ones
    b1, b2, b3, b4 = (machine.dot_tile(4, right, ahead=right % 2 == 0) for right in (1, 2, 3, 4))

    @inlined
    def run(lefts: Place, rights: Place, out: int, width: int) -> None:
        a, a_stride = lefts
        b, b_stride = rights
        a1(a, a_stride, b, b_stride, out, 32, width, left_like, right_like)
        a2(a, a_stride, b, b_stride, out + 128, 32, width, left_like, right_like)
        a3(a, a_stride, b, b_stride, out + 256, 32, width, left_like, right_like)
        a4(a, a_stride, b, b_stride, out + 384, 32, width, left_like, right_like)
        b1(a, a_stride, b, b_stride, out + 512, 32, width, left_like, right_like)
        b2(a, a_stride, b, b_stride, out + 640, 32, width, left_like, right_like)
        b3(a, a_stride, b, b_stride, out + 768, 32, width, left_like, right_like)
        b4(a, a_stride, b, b_stride, out + 896, 32, width, left_like, right_like)

    return run


@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_products_are_right_and_the_same_whatever_is_computed_beside_them(
    left: str, right: str
) -> None:
    if left == right == "bfloat16" and not operations().DOTS_BFLOAT16:
        pytest.skip("this processor does not multiply pairs of bfloat16")
    run = tiles_of(KINDS[left][0], KINDS[right][0])
    for width in (32, 64, 96, 1024):
        lefts, rights = Rows(left, 8, width, 1), Rows(right, 4, width, 2)
        got = np.full((len(TILES), 4, 8), np.nan, np.float32)
        run(lefts.place, rights.place, address(got), width)
        wanted = rights.values @ lefts.values[:4].T
        bound = 1e-6 * (abs(rights.values) @ abs(lefts.values[:4].T))
        for tile, (rows, columns) in zip(got, TILES, strict=True):
            products = tile[:columns, :rows]
            assert (abs(products - wanted[:columns, :rows]) <= bound[:columns, :rows]).all()
            assert products.tobytes() == got[-1, :columns, :rows].tobytes()
            assert np.isnan(tile).sum() == 32 - rows * columns, "it wrote elsewhere"


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_sums_of_rows_are_added_to_what_is_there(kind: str) -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    m1, m2, m3, m4 = (machine.mix_tile(sets) for sets in (1, 2, 3, 4))
    like = KINDS[kind][0]

    @inlined
    def run(place: Place, weight_place: Place, out: int, count: int) -> None:
        rows, row_stride = place
        weights, weight_stride = weight_place
        m1(rows, row_stride, weights, weight_stride, out, 160, count, like)
        m2(rows, row_stride, weights, weight_stride, out + 640, 160, count, like)
        m3(rows, row_stride, weights, weight_stride, out + 1280, 160, count, like)
        m4(rows, row_stride, weights, weight_stride, out + 1920, 160, count, like)

    columns = machine.MIXED
    for count in (1, 2, 7, 100):
        rows, weights = Rows(kind, count, columns, 3), Rows("float32", 4, count, 4)
        begun = np.random.default_rng(5).standard_normal((4, 40), np.float32)
        got = np.stack([begun] * 4)
        run(rows.place, weights.place, address(got), count)
        wanted = begun.astype(np.float64)
        wanted[:, :columns] += weights.values @ rows.values
        for sets, sums in enumerate(got, 1):
            np.testing.assert_allclose(sums[:sets], wanted[:sets], rtol=0, atol=2e-6 * count)
            assert sums[:sets].tobytes() == got[-1, :sets].tobytes(), "others are beside them"
            assert sums[sets:].tobytes() == begun[sets:].tobytes(), "it wrote elsewhere"
            assert sums[:, columns:].tobytes() == begun[:, columns:].tobytes(), "it wrote elsewhere"


# -- the processor's matrices --------------------------------------------------------------------


def shapes_of(rows: int) -> Array:
    """Eight matrices of so many rows of 64 bytes, as LDTILECFG takes it."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16:32].view(np.uint16)[:] = 64
    shapes[48:56] = rows
    return shapes


@pytest.fixture
def matrices() -> None:
    if not operations().may_use_matrices():
        pytest.skip("this processor has no matrices, or this process may not use them")


@pytest.mark.usefixtures("matrices")
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_matrices_of_weights_and_tokens_are_multiplied(blocks: int) -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    multiply = machine.multiply_tiles(blocks)

    @inlined
    def run(weights: Place, tokens: Place, out: int, width: int, shapes: int) -> None:
        machine.use_tiles(shapes, shapes + 64)
        multiply(weights[0], weights[1], tokens[0], tokens[1], out, width)
        machine.use_tiles(shapes + 64, shapes + 128)

    for width in (32, 64, 416):
        shapes = np.concatenate([shapes_of(16), np.zeros(128, np.uint8)])
        weights, tokens = Rows("bfloat16", 16, width, 1), Rows("bfloat16", 16 * blocks, width, 2)
        block = 32 * width + 192
        pairs = np.zeros((blocks, block // 2), np.uint16)
        by_block = bfloat16(tokens.values.astype(np.float32)).reshape(blocks, 16, width // 2, 2)
        pairs[:, : 16 * width] = by_block.transpose(0, 2, 1, 3).reshape(blocks, -1)
        got = np.full((blocks + 1, 16, 16), np.nan, np.float32)
        run(weights.place, (address(pairs), block), address(got), width, address(shapes))
        wanted = weights.values @ tokens.values.T
        bound = 1e-6 * (abs(weights.values) @ abs(tokens.values.T))
        for b in range(blocks):
            own = slice(16 * b, 16 * b + 16)
            assert (abs(got[b] - wanted[:, own]) <= bound[:, own]).all()
        assert np.isnan(got[blocks]).all(), "it wrote elsewhere"


@pytest.mark.parametrize("count", [1, 5, 15, 16])
def test_columns_of_a_tile_become_rows(count: int) -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def run(source: int, target: int, stride: int, count: int) -> None:
        machine.transpose_tile(source, target, stride, count)

    numbers = np.random.default_rng(count).standard_normal((16, 16), np.float32)
    got = np.full((17, 20), np.nan, np.float32)
    run(address(numbers), address(got), 80, count)
    np.testing.assert_array_equal(got[:count, :16], numbers.T[:count])
    assert np.isnan(got[count:]).all()
    assert np.isnan(got[:, 16:]).all()


@pytest.mark.usefixtures("matrices")
def test_the_shapes_that_a_thread_had_come_back() -> None:
    from hotswap.engine.jit import inlined

    machine = operations()

    @inlined
    def run(theirs: int, ours: int, seen: int, none: int) -> None:
        machine.use_tiles(theirs, seen)
        machine.use_tiles(ours, seen + 64)
        machine.use_tiles(seen + 64, seen + 128)
        machine.use_tiles(none, seen + 192)

    theirs, ours, seen = shapes_of(5), shapes_of(16), np.zeros((4, 64), np.uint8)
    none = np.zeros(64, np.uint8)
    run(address(theirs), address(ours), address(seen), address(none))
    before, former, own, after = seen.tolist()
    assert former == theirs.tolist()
    assert own == ours.tolist()
    assert after == theirs.tolist()
    assert before != after
