from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.linear import Linear

pytestmark = pytest.mark.torch

WIDTH = 48
Parts = list[tuple["Tensor", "Tensor | None"]]


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(32,), (64, 16, 16), (20, 40)])
def test_products_are_those_of_the_weights(shape: tuple[int, ...], bias: bool, dtype: str) -> None:
    from hotswap.engine.forward.linear import Linear

    parts = parts_of(shape, bias=bias, dtype=dtype)
    linear = Linear(parts)
    assert (linear.rows, linear.width) == (sum(shape), WIDTH)
    for rows in (0, 1, 2, 5, 33):
        check(linear, parts, rows, dtype)
