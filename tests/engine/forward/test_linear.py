from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.linear import Linear

pytestmark = pytest.mark.torch

WIDTH = 48
Parts = list[tuple["Tensor", "Tensor | None"]]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any shape."""
    from hotswap.engine.forward import linear

    monkeypatch.setattr(linear, "_checked", set())
    monkeypatch.setattr(linear, "_unusable", set())


def parts_of(rows: tuple[int, ...], *, bias: bool = False, dtype: str = "bfloat16") -> Parts:
    import torch

    dice, kind = torch.Generator().manual_seed(sum(rows)), getattr(torch, dtype)
    return [
        (
            torch.randn(count, WIDTH, generator=dice).to(kind),
            torch.randn(count, generator=dice).to(kind) if bias else None,
        )
        for count in rows
    ]


def input_of(rows: int, dtype: str = "bfloat16") -> Tensor:
    import torch

    dice = torch.Generator().manual_seed(rows)
    return torch.randn(rows, WIDTH, generator=dice).to(getattr(torch, dtype))


def by_the_book(x: Tensor, parts: Parts) -> Tensor:
    """In float64."""
    import torch

    products = [
        x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
        for weight, bias in parts
    ]
    return torch.cat(products, dim=-1)


def check(linear: Linear, parts: Parts, rows: int, dtype: str = "bfloat16") -> None:
    import torch

    x, tolerance = input_of(rows, dtype), 1e-5 if dtype == "float32" else 1e-2
    got = linear(x)
    assert got.dtype == x.dtype
    torch.testing.assert_close(
        got.double(), by_the_book(x, parts), atol=tolerance * 8, rtol=tolerance
    )


ROWS = (0, 1, 2, 3, 4, 5, 33)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(32,), (64, 16, 16), (20, 40)])
def test_packed_and_plain_products_are_those_of_the_weights(
    shape: tuple[int, ...], bias: bool, dtype: str
) -> None:
    from hotswap.engine.forward.linear import Linear

    parts = parts_of(shape, bias=bias, dtype=dtype)
    linear = Linear(parts)
    sizes = sum(shape), WIDTH, sum(weight.nbytes for weight, _ in parts)
    assert (linear.rows, linear.width, linear.bytes, linear.packed) == (*sizes, False)
    for rows in ROWS:
        check(linear, parts, rows, dtype)
    linear.pack()
    assert (linear.rows, linear.width, linear.bytes, linear.packed) == (*sizes, True)
    for fewest_rows in (1, 2, 3, 4):
        linear.fewest_rows = fewest_rows
        for rows in ROWS:
            check(linear, parts, rows, dtype)


def test_rows_that_do_not_lie_side_by_side() -> None:
    import torch

    from hotswap.engine.forward.linear import Linear

    linear = Linear(parts_of((64,)))
    linear.pack()
    wide = input_of(6).repeat(1, 2)
    for rows in (1, 6):
        strided = wide[:rows, :WIDTH]
        assert not strided.is_contiguous() or rows == 1
        torch.testing.assert_close(linear(strided), linear(strided.contiguous()))


# -- packing ---------------------------------------------------------------------------------


class Operations:
    """A stand-in for the private operations, which writes down what it was given and has a time of
    its own."""

    def __init__(self) -> None:
        self.wrong = 0.0
        """What is added to its products."""
        self.rows: list[int] = []
        self.images: list[Tensor] = []
        self.seconds: dict[int, float] = {}
        """How long products of so many rows take."""
        self.delays: list[float] = []
        """By how much longer the next ones take."""
        self.now = 0.0
        self._linear_pointwise = SimpleNamespace(default=self._product)

    def perf_counter(self) -> float:
        return self.now

    def forget(self) -> None:
        self.rows.clear()
        self.images.clear()

    def _reorder_linear_weight(self, weight: Tensor, _rows: int) -> Tensor:
        return weight.clone()

    def _product(self, x: Tensor, image: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        from torch.nn import functional

        self.rows.append(x.shape[0])
        self.images.append(image)
        self.now += self.seconds.get(x.shape[0], 0.0)
        if self.delays:
            self.now += self.delays.pop(0)
        return functional.linear(x, image, bias) + self.wrong


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    """In the place of torch's own, and of the clock."""
    import torch

    from hotswap.engine.forward import linear

    stand_in = Operations()
    monkeypatch.setattr(torch.ops, "mkldnn", stand_in)
    monkeypatch.setattr(linear, "time", stand_in)
    return stand_in


def packed(parts: Parts) -> Linear:
    from hotswap.engine.forward.linear import Linear

    linear = Linear(parts)
    linear.pack()
    return linear


@pytest.mark.parametrize(
    ("large_bytes", "computed"), [(1 << 30, [4, 4, 4, 4, 5]), (1, [1, 2, 3, 4, 5])]
)
def test_few_rows_are_filled_up_at_first_unless_the_weight_is_large(
    monkeypatch: pytest.MonkeyPatch,
    operations: Operations,
    large_bytes: int,
    computed: list[int],
) -> None:
    from hotswap.engine.forward import linear as module

    monkeypatch.setattr(module, "_LARGE_BYTES", large_bytes)
    parts = parts_of((20, 12), bias=True)
    linear = packed(parts)
    assert linear.tunable
    operations.forget()
    for rows in range(1, 6):
        check(linear, parts, rows)
    assert operations.rows == computed


def test_a_shape_is_checked_once(operations: Operations) -> None:
    for shape in ((32,), (16, 16), (33,)):
        packed(parts_of(shape))
    assert operations.rows == [4, 4]


def test_packed_products_that_are_wrong_are_not_used(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    operations.wrong = 5.0
    parts = parts_of((32, 16), bias=True)
    linear = packed(parts)
    assert linear.packed
    assert not linear.tunable
    assert "differ" in caplog.text
    operations.forget()
    for rows in ROWS:
        check(linear, parts, rows)
    packed(parts_of((32, 16)))
    assert operations.rows == [], "one refusal is enough for a shape"


@pytest.mark.parametrize("names", [(), ("_reorder_linear_weight",)])
def test_where_the_operations_are_missing_products_stay_plain(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    import torch

    some = Operations()
    there = SimpleNamespace(**{name: getattr(some, name) for name in names})
    monkeypatch.setattr(torch.ops, "mkldnn", there)
    parts = parts_of((32, 16), bias=True)
    linear = packed(parts)
    assert linear.packed
    assert not linear.tunable
    for rows in ROWS:
        check(linear, parts, rows)


def test_operations_that_refuse_a_weight_are_done_without(
    monkeypatch: pytest.MonkeyPatch, operations: Operations
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(operations, "_reorder_linear_weight", refuse)
    parts = parts_of((32,))
    linear = packed(parts)
    assert not linear.tunable
    check(linear, parts, 2)


@pytest.mark.parametrize("shape", [(32,), (16, 16)])
def test_a_shape_that_memory_was_short_for_can_be_packed_another_time(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, operations: Operations
) -> None:
    from hotswap.engine.forward.linear import Linear

    def short(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    parts = parts_of(shape, bias=True)
    linear = Linear(parts)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(operations, "_reorder_linear_weight", short)
        with pytest.raises(RuntimeError, match="can't allocate"):
            linear.pack()
    assert (linear.packed, linear.tunable, linear.own_bytes) == (False, False, 0)
    check(linear, parts, 3)
    linear.pack()
    assert (linear.packed, linear.tunable, linear.own_bytes) == (True, True, linear.bytes)
    check(linear, parts, 3)


@pytest.mark.usefixtures("operations")
def test_plain_products_are_not_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn import functional

    filled: list[Tensor] = []
    monkeypatch.setattr(functional, "pad", filled.append)
    parts = parts_of((16, 16), dtype="float32")
    check(packed(parts), parts, 1, "float32")
    assert filled == []


# -- tuning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "computed"),
    [
        ({1: 4.0, 2: 4.0, 3: 4.0, 4: 2.0}, [4, 4, 4, 4, 5]),
        ({1: 4.0, 2: 1.0, 3: 1.0, 4: 2.0}, [4, 2, 3, 4, 5]),
        ({1: 1.0, 2: 3.0, 3: 1.0, 4: 2.0}, [4, 4, 3, 4, 5]),
        ({1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}, [1, 2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("shape", [(32,), (16, 16)])
def test_few_rows_are_filled_up_where_that_was_faster(
    operations: Operations, shape: tuple[int, ...], seconds: dict[int, float], computed: list[int]
) -> None:
    from hotswap.engine.forward.linear import tune

    parts = parts_of(shape, bias=True)
    linear = packed(parts)
    operations.seconds = seconds
    tune([linear])
    assert not linear.tunable
    operations.forget()
    for rows in range(1, 6):
        check(linear, parts, rows)
    assert operations.rows == computed


@pytest.mark.parametrize("disturbed", range(4))
def test_one_disturbed_measurement_decides_nothing(operations: Operations, disturbed: int) -> None:
    from hotswap.engine.forward.linear import tune

    linear = packed(parts_of((32,)))
    operations.seconds = {1: 4.0, 2: 4.0, 3: 4.0, 4: 2.0} if disturbed < 2 else {4: 8.0}
    # Twice filled up, then twice as they are; so for one, two and three rows.
    operations.delays = [9.0 * (number == disturbed) for number in range(4)] * 3
    tune([linear])
    assert operations.delays == []
    assert linear.fewest_rows == (4 if disturbed < 2 else 1)


def test_linears_of_a_shape_are_measured_in_turns_and_decided_together(
    operations: Operations,
) -> None:
    from hotswap.engine.forward.linear import tune

    linears = [packed(parts_of(shape)) for shape in ((32,), (16, 16), (20, 12))]
    operations.forget()
    operations.seconds = {1: 4.0, 2: 1.0, 3: 1.0, 4: 2.0}
    tune(linears)
    assert [linear.fewest_rows for linear in linears] == [2, 2, 2]
    in_turns = [operations.images[index].data_ptr() for index in range(3)]
    assert len(set(in_turns)) == 3
    given = [image.data_ptr() for image in operations.images]
    assert given == in_turns * (len(given) // 3)


def test_no_more_is_measured_than_fills_the_cache_but_all_are_decided(
    operations: Operations,
) -> None:
    from hotswap.engine.forward.linear import tune

    linears = [packed(parts_of((32,))) for _ in range(5)]
    for linear in linears:
        linear.bytes = 50 << 20
    operations.forget()
    operations.seconds = {1: 4.0, 2: 1.0, 3: 1.0, 4: 2.0}
    tune(linears)
    assert len({image.data_ptr() for image in operations.images}) == 3
    assert [(linear.fewest_rows, linear.tunable) for linear in linears] == [(2, False)] * 5


# -- memory ----------------------------------------------------------------------------------


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return [id(tensor) for tensor in some] == [id(tensor) for tensor in others]


@pytest.mark.parametrize("shape", [(32,), (16, 16)])
def test_packing_tells_which_plain_weights_are_not_used_any_more(
    shape: tuple[int, ...], operations: Operations
) -> None:
    from hotswap.engine.forward.linear import Linear

    parts = parts_of(shape, bias=True)
    assert same(Linear(parts).pack(), [weight for weight, _ in parts])
    operations.wrong = 5.0
    wider = parts_of((*shape, 8), bias=True)
    assert same(Linear(wider).pack(), [weight for weight, _ in wider])
    alone = parts_of((40,))
    assert Linear(alone).pack() == (), "it goes on to be used"


@pytest.mark.parametrize("shape", [(32,), (16, 16)])
def test_plain_weights_are_let_go_of_after_packing(
    shape: tuple[int, ...], operations: Operations
) -> None:
    from hotswap.engine.forward.linear import Linear

    parts = parts_of(shape)
    linear = Linear(parts)
    weights = [weakref.ref(weight) for weight, _ in parts]
    del parts
    assert all(weight() is not None for weight in weights)
    linear.pack()
    assert all(weight() is None for weight in weights)


def test_one_weight_that_cannot_be_packed_is_not_copied() -> None:
    from hotswap.engine.forward.linear import Linear

    [(weight, _)] = parts = parts_of((32,), dtype="float32")
    linear = Linear(parts)
    linear.pack()
    weight.mul_(2.0)
    check(linear, parts, 3, "float32")


def test_torch_has_the_operations_and_they_are_right() -> None:
    """What the stand-ins of these tests stand in for."""
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bfloat16")
    assert packed(parts_of((64,))).tunable
