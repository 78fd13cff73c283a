"""What the compiled loops need and Numba does not offer: memory by address, atomic words, and dot
products of several rows at once. All of it is LLVM's and there on every processor, but for
`multiply_tiles` (see `HAS_TILES`); where there is no product of bfloat16 they are widened first.

Numbers lie in memory as float32, or as the upper half of one (bfloat16, handled as uint16). An
argument called ``like``, any value of that type, says which. With int16 they are bfloat16 too, of
16 tokens side by side: two numbers of the first token, two of the second, and so on, then the next
two of each. That is how `multiply_tiles` takes them.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotswap.engine.jit import COMPILES_FOR_THIS

BFLOAT16, FLOAT32, BLOCKED = types.uint16, types.float32, types.int16
_PC = {"x86_64", "amd64"}
_FEATURES = llvmlite.binding.get_host_cpu_features() if COMPILES_FOR_THIS else {}
LEFTS = 4
"""Rows of weights that a tile of products is made of at most."""


def _lanes_and_rights() -> tuple[int, int]:
    """A tile's sums have to fit into the registers, beside what they are made of: there are 32 of
    them, or 16 on a PC without AVX-512. (With AVX2, 16 lanes and 4 took half as long again.)"""
    if _FEATURES.get("avx512f", False):
        return 16, 4
    if platform.machine().lower() in _PC:
        return (8 if _FEATURES.get("avx2", False) else 4), 3
    return 4, 4


LANES, RIGHTS = _lanes_and_rights()
"""Numbers in a vector, and rows of the other kind in a tile at most."""
MIXED = 2 * LANES
"""Columns of a tile of weighted sums."""
DOTS_BFLOAT16 = _FEATURES.get("avx512bf16", False)
"""The processor multiplies pairs of bfloat16 without widening them first."""
HAS_TILES = _FEATURES.get("amx-tile", False) and _FEATURES.get("amx-bf16", False)
"""The processor multiplies matrices of bfloat16 (Intel's AMX)."""
TILE = 16
"""Rows of a matrix; it has 32 columns of bfloat16, or 16 of float32."""

_COLUMNS_AHEAD = 128
"""Of a matrix, when they are fetched into the second cache."""
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_HALVES = ir.VectorType(_I16, LANES)
_PAIRS = ir.VectorType(_I16, 2 * LANES)
_WORDS = ir.VectorType(_I32, LANES)

if DOTS_BFLOAT16:
    llvmlite.binding.initialize_native_asmparser()  # for `_multiply_pairs`

Builder = Any
"""`llvmlite.ir.IRBuilder`; llvmlite is untyped."""


def may_use_matrices() -> bool:
    """Whether the processor has them and this process may use them, for which Linux is asked."""
    if not HAS_TILES or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


@intrinsic
def load(context, address, index, like):
    """Number ``index`` of those at ``address``, as float32."""

    def generate(_context, builder, signature, arguments):
        address, index, _ = arguments
        if signature.args[2] == FLOAT32:
            return builder.load(_pointer(builder, address, index, _F32), align=4)
        half = builder.load(_pointer(builder, address, index, _I16), align=2)
        return _widened(builder, half, _I32, _F32)

    return types.float32(types.int64, types.int64, like), generate


@intrinsic
def store(context, address, index, value, like):
    """Write a float32, rounded to the nearest (to even, of two), as number ``index``."""

    def generate(_context, builder, signature, arguments):
        address, index, value, _ = arguments
        if signature.args[3] == FLOAT32:
            builder.store(value, _pointer(builder, address, index, _F32), align=4)
        else:
            half = _rounded(builder, value)
            builder.store(half, _pointer(builder, address, index, _I16), align=2)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, like), generate


@intrinsic
def store_pair(context, address, pair, first, second):
    """Write two float32, rounded, as numbers ``2 pair`` and ``2 pair + 1`` of a token in blocks."""

    def generate(_context, builder, signature, arguments):
        address, pair, first, second = arguments
        low, high = (builder.zext(_rounded(builder, x), _I32) for x in (first, second))
        place = builder.mul(pair, _I64(TILE))
        both = builder.or_(low, builder.shl(high, _I32(16)))
        builder.store(both, _pointer(builder, address, place, _I32), align=4)
        return _context.get_dummy_value()

    numbers = types.int64, types.int64, types.float32, types.float32
    return types.void(*numbers), generate


@intrinsic
def fetch(context, address):
    """Have a line of memory fetched into the second cache."""

    def generate(_context, builder, signature, arguments):
        _prefetch(builder, arguments[0], 2)
        return _context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def token(context, address, stride, number, like):
    """Address of a token's numbers among those of several, ``stride`` bytes each."""

    def generate(_context, builder, signature, arguments):
        address, stride, number, _ = arguments
        if signature.args[3] != BLOCKED:
            return builder.add(address, builder.mul(number, stride))
        within = builder.mul(builder.and_(number, _I64(TILE - 1)), _I64(4))
        block = builder.and_(number, _I64(-TILE))
        return builder.add(builder.add(address, builder.mul(block, stride)), within)

    return types.int64(types.int64, types.int64, types.int64, like), generate


@intrinsic
def float_of_bits(context, bits):
    """The float32 whose bits an int32 holds."""

    def generate(_context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.int32), generate


# -- words that several threads look at ----------------------------------------------------------


@intrinsic
def load_word(context, address):
    """An int64; what its writer wrote before it can be seen."""

    def generate(_context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store_word(context, address, value):
    """Write an int64 after all that was written before."""

    def generate(_context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        builder.store_atomic(arguments[1], pointer, "seq_cst", 8)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add_word(context, address, value):
    """Add to an int64; what it was before."""

    def generate(_context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def swap_word(context, address, expected, value):
    """Write an int64 if it is what is expected; whether it was."""

    def generate(_context, builder, signature, arguments):
        address, expected, value = arguments
        pointer = builder.inttoptr(address, _I64.as_pointer())
        result = builder.cmpxchg(pointer, expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(context):
    """Tell the processor that this thread only waits."""

    def generate(_context, builder, signature, arguments):
        if platform.machine().lower() in _PC:
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), ())
        return _context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(context):
    """Let another thread have this processor, if one wants it."""

    def generate(_context, builder, signature, arguments):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        _call(builder, name, _I32, ())
        return _context.get_dummy_value()

    return types.void(), generate


# -- products ------------------------------------------------------------------------------------


def dot_tile(left: int, right: int, *, ahead: bool = False) -> Callable[..., None]:
    """Dot products of ``left`` rows with ``right`` others.

    The result takes ``(lefts, left_stride, rights, right_stride, out, out_stride, width,
    left_like, right_like)``: addresses, and bytes between neighbouring rows. Product (i, j) is
    float32 number i of row j at ``out``. ``width``, a multiple of 32, is how many numbers a row
    has. Each product is summed up in the same order, whatever others are computed beside it.

    Args:
        ahead: fetch the rows that come after the left ones into the cache meanwhile.
    """

    @intrinsic
    def tile(
        context, lefts, left_stride, rights, right_stride, out, out_stride, width, left_like,
        right_like,
    ):  # fmt: skip
        def generate(_context, builder, signature, arguments):
            kinds = signature.args[7], signature.args[8]
            code = _Tile(builder, arguments, kinds)
            totals = code.sum_up(left, right, ahead)
            for i in range(left):
                for j in range(right):
                    code.put(i, j, totals[i][j])
            return _context.get_dummy_value()

        numbers = (types.int64,) * 7
        return types.void(*numbers, left_like, right_like), generate

    function: Callable[..., None] = tile
    return function


class _Tile:
    def __init__(self, builder: Builder, arguments: Sequence[Any], kinds: tuple[Any, Any]) -> None:
        self._builder = builder
        self._lefts, self._left_stride, self._rights, self._right_stride = arguments[:4]
        self._out, self._out_stride, self._width = arguments[4:7]
        self._left_kind, self._right_kind = kinds
        self._pairs = kinds == (BFLOAT16, BFLOAT16)

    def sum_up(self, left: int, right: int, ahead: bool) -> list[list[Any]]:
        """A loop along the rows, and the sums of each product's lanes after it."""
        builder = self._builder
        before = builder.block
        loop, after = (builder.append_basic_block(name) for name in ("products", "sums"))
        builder.branch(loop)
        builder.position_at_end(loop)
        place = builder.phi(_I64)
        place.add_incoming(_I64(0), before)
        sums = [[builder.phi(_VECTOR) for _ in range(right)] for _ in range(left)]
        if ahead:
            for i in range(left):
                self._fetch(i + left, place)
        lefts = [
            self._row(self._lefts, self._left_stride, i, self._left_kind, place)
            for i in range(left)
        ]
        rights = [
            self._row(self._rights, self._right_stride, j, self._right_kind, place)
            for j in range(right)
        ]
        following = builder.add(place, _I64(2 * LANES if self._pairs else LANES))
        for i, row in enumerate(sums):
            for j, total in enumerate(row):
                total.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), before)
                total.add_incoming(self._multiply(total, lefts[i], rights[j]), loop)
        place.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, self._width), loop, after)
        builder.position_at_end(after)
        last = [[total.incomings[1][0] for total in row] for row in sums]
        return [[_sum(builder, total) for total in row] for row in last]

    def put(self, i: int, j: int, value: Any) -> None:
        builder = self._builder
        row = builder.add(self._out, builder.mul(self._out_stride, _I64(j)))
        builder.store(value, _pointer(builder, row, _I64(i), _F32), align=4)

    def _row(self, first: Any, stride: Any, number: int, kind: Any, place: Any) -> Any:
        builder = self._builder
        row = builder.add(first, builder.mul(stride, _I64(number)))
        if kind == FLOAT32:
            address = builder.add(row, builder.mul(place, _I64(4)))
            return builder.load(builder.inttoptr(address, _VECTOR.as_pointer()), align=4)
        address = builder.add(row, builder.mul(place, _I64(2)))
        kind_of_vector = _PAIRS if self._pairs else _HALVES
        halves = builder.load(builder.inttoptr(address, kind_of_vector.as_pointer()), align=2)
        return halves if self._pairs else _widened(builder, halves, _WORDS, _VECTOR)

    def _multiply(self, total: Any, left: Any, right: Any) -> Any:
        if self._pairs:
            return _multiply_pairs(self._builder, total, left, right)
        name = f"llvm.fma.v{LANES}f32"
        return _call(self._builder, name, _VECTOR, (left, right, total))

    def _fetch(self, number: int, place: Any) -> None:
        builder = self._builder
        size = 4 if self._left_kind == FLOAT32 else 2
        row = builder.add(self._lefts, builder.mul(self._left_stride, _I64(number)))
        address = builder.add(row, builder.mul(place, _I64(size)))
        _prefetch(builder, address)


def multiply_tiles(blocks: int) -> Callable[..., None]:
    """Products of 16 rows of weights with ``blocks`` times 16 tokens, by the processor's matrices.

    The result takes ``(weights, weight_stride, tokens, block_stride, out, width)``: addresses, and
    bytes between rows and between blocks of tokens. Product (i, j) with block b is float32 number
    ``256 b + 16 i + j`` at ``out``. ``width`` is a multiple of 32. `use_tiles` comes before.
    """

    @intrinsic
    def multiply(context, weights, weight_stride, tokens, block_stride, out, width):
        def generate(_context, builder, signature, arguments):
            _multiply_tiles(builder, blocks, arguments)
            return _context.get_dummy_value()

        return types.void(*(types.int64,) * 6), generate

    function: Callable[..., None] = multiply
    return function


@intrinsic
def use_tiles(context, shapes, former):
    """Set this thread's matrices to the shapes described at one address, and write what they were
    to another: 64 bytes each, see Intel's manual on LDTILECFG."""

    def generate(_context, builder, signature, arguments):
        shapes, former = (builder.inttoptr(a, _I8.as_pointer()) for a in arguments)
        _call(builder, "llvm.x86.sttilecfg", ir.VoidType(), (former,))
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), (shapes,))
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _multiply_tiles(builder: Builder, blocks: int, arguments: Sequence[Any]) -> None:
    weights, weight_stride, tokens, block_stride, out, width = arguments
    weight_tile, first_token_tile, first_sum = _I8(0), 1, 4

    def run(name: str, *operands: Any) -> None:
        _call(builder, f"llvm.x86.{name}", ir.VoidType(), operands)

    def at(address: Any) -> Any:
        return builder.inttoptr(address, _I8.as_pointer())

    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("columns", "multiplied"))
    for block in range(blocks):
        run("tilezero", _I8(first_sum + block))
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(_I64)
    column = builder.add(weights, builder.mul(place, _I64(2)))
    # A few columns ahead; near the end, the first ones of the next 16 rows.
    later = builder.add(place, _I64(_COLUMNS_AHEAD))
    past = builder.icmp_signed(">=", later, width)
    following_rows = builder.add(weights, builder.mul(weight_stride, _I64(TILE)))
    later = builder.select(past, builder.sub(later, width), later)
    begin = builder.select(past, following_rows, weights)
    begin = builder.add(begin, builder.mul(later, _I64(2)))
    for row in range(TILE):
        _prefetch(builder, builder.add(begin, builder.mul(weight_stride, _I64(row))), 2)
    run("tileloadd64", weight_tile, at(column), weight_stride)
    pairs = builder.add(tokens, builder.mul(place, _I64(2 * TILE)))
    for block in range(blocks):
        own = builder.add(pairs, builder.mul(block_stride, _I64(block)))
        token_tile = _I8(first_token_tile + block % 3)
        run("tileloadd64", token_tile, at(own), _I64(4 * TILE))
        run("tdpbf16ps", _I8(first_sum + block), weight_tile, token_tile)
    following = builder.add(place, _I64(2 * LANES))
    place.add_incoming(_I64(0), before)
    place.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, width), loop, after)
    builder.position_at_end(after)
    for block in range(blocks):
        own = builder.add(out, _I64(4 * TILE * TILE * block))
        run("tilestored64", _I8(first_sum + block), at(own), _I64(4 * TILE))


@intrinsic
def transpose_tile(context, source, target, target_stride, count):
    """Write the first ``count`` columns, one at least, of 16 x 16 float32 numbers at one address as
    rows at another, so many bytes from each other."""

    def generate(_context, builder, signature, arguments):
        _transpose_tile(builder, *arguments)
        return _context.get_dummy_value()

    return types.void(*(types.int64,) * 4), generate


def _transpose_tile(
    builder: Builder, source: Any, target: Any, target_stride: Any, count: Any
) -> None:
    kind = ir.VectorType(_F32, TILE)
    whole = builder.inttoptr(source, kind.as_pointer())
    rows = [builder.load(builder.gep(whole, [_I64(number)]), align=4) for number in range(TILE)]
    # Every bit of a row's number changes places with the same one of a column's.
    for bit in (1, 2, 4, 8):
        kept = [i - bit + TILE if i & bit else i for i in range(TILE)]
        given = [i + TILE if i & bit else i + bit for i in range(TILE)]
        for first in (row for row in range(TILE) if not row & bit):
            pair = rows[first], rows[first + bit]
            rows[first], rows[first + bit] = (
                builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_I32, TILE), places))
                for places in (kept, given)
            )
    after = builder.append_basic_block("transposed")
    for number, row in enumerate(rows):
        place = builder.add(target, builder.mul(target_stride, _I64(number)))
        builder.store(row, builder.inttoptr(place, kind.as_pointer()), align=4)
        following = builder.append_basic_block("column")
        builder.cbranch(builder.icmp_signed("<", _I64(number + 1), count), following, after)
        builder.position_at_end(following)
    builder.branch(after)
    builder.position_at_end(after)


def mix_tile(right: int) -> Callable[..., None]:
    """Weighted sums of rows, for ``right`` sets of weights and a stretch of `MIXED` columns.

    The result takes ``(rows, row_stride, weights, weight_stride, out, out_stride, count, like)``:
    addresses, and bytes between rows, sets of weights (float32) and sums (float32, which are added
    to). ``count``, at least 1, is how many rows there are.
    """

    @intrinsic
    def tile(context, rows, row_stride, weights, weight_stride, out, out_stride, count, like):
        def generate(_context, builder, signature, arguments):
            _mix(builder, right, arguments[:7], signature.args[7])
            return _context.get_dummy_value()

        return types.void(*(types.int64,) * 7, like), generate

    function: Callable[..., None] = tile
    return function


def _mix(builder: Builder, right: int, arguments: Sequence[Any], kind: Any) -> None:
    rows, row_stride, weights, weight_stride, out, out_stride, count = arguments
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("rows", "mixed"))

    def sums(j: int, half: int) -> Any:
        row = builder.add(out, builder.mul(out_stride, _I64(j)))
        address = builder.add(row, _I64(4 * LANES * half))
        return builder.inttoptr(address, _VECTOR.as_pointer())

    begun = [[builder.load(sums(j, half), align=4) for half in (0, 1)] for j in range(right)]
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(_I64)
    totals = [[builder.phi(_VECTOR) for _ in (0, 1)] for _ in range(right)]
    row = builder.add(rows, builder.mul(number, row_stride))
    halves = [_vector(builder, row, half, kind) for half in (0, 1)]
    following = builder.add(number, _I64(1))
    for j in range(right):
        of_set = builder.add(weights, builder.mul(weight_stride, _I64(j)))
        weight = builder.load(_pointer(builder, of_set, number, _F32), align=4)
        spread = _spread(builder, weight)
        for half in (0, 1):
            total = totals[j][half]
            name = f"llvm.fma.v{LANES}f32"
            added = _call(builder, name, _VECTOR, (spread, halves[half], total))
            total.add_incoming(begun[j][half], before)
            total.add_incoming(added, loop)
    number.add_incoming(_I64(0), before)
    number.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    for j in range(right):
        for half in (0, 1):
            builder.store(totals[j][half].incomings[1][0], sums(j, half), align=4)


# -- in LLVM's words -----------------------------------------------------------------------------


def _pointer(builder: Builder, address: Any, index: Any, kind: Any) -> Any:
    # Indexed as an array is: in a sum of integers LLVM sees no loop over one, and makes no vectors.
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def _widened(builder: Builder, halves: Any, words: Any, floats: Any) -> Any:
    """Of bfloat16, or a vector of them: they are the upper halves."""
    sixteen = ir.Constant(words, [16] * LANES if words is _WORDS else 16)
    return builder.bitcast(builder.shl(builder.zext(halves, words), sixteen), floats)


def _rounded(builder: Builder, value: Any) -> Any:
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    nearest = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
    # Rounding a NaN up could make it an infinity, or zero.
    number = builder.fcmp_ordered("ord", value, value)
    return builder.trunc(builder.select(number, nearest, _I32(0x7FC0)), _I16)


def _vector(builder: Builder, row: Any, number: int, kind: Any) -> Any:
    size = 4 if kind == FLOAT32 else 2
    address = builder.add(row, _I64(size * LANES * number))
    if kind == FLOAT32:
        return builder.load(builder.inttoptr(address, _VECTOR.as_pointer()), align=4)
    halves = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
    return _widened(builder, halves, _WORDS, _VECTOR)


def _spread(builder: Builder, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
    nowhere = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(first, nowhere, ir.Constant(_WORDS, [0] * LANES))


def _sum(builder: Builder, vector: Any) -> Any:
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    kind = ir.FunctionType(_F32, (_F32, _VECTOR))
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, (ir.Constant(_F32, 0.0), vector), fastmath=("reassoc",))


def _multiply_pairs(builder: Builder, total: Any, left: Any, right: Any) -> Any:
    """Lane i of the total grows by two products, of the numbers 2 i and 2 i + 1."""
    kind = ir.FunctionType(_VECTOR, (_VECTOR, _PAIRS, _PAIRS))
    # llvmlite has no bfloat16, which LLVM's own name for the instruction asks for.
    instruction = ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", side_effect=False)
    return builder.call(instruction, (total, left, right))


def _prefetch(builder: Builder, address: Any, nearness: int = 3) -> None:
    """Have a line fetched, into the first cache (3) or the second (2)."""
    pointer = builder.inttoptr(address, _I8.as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), (pointer, _I32(0), _I32(nearness), _I32(1)))


def _call(builder: Builder, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments)
