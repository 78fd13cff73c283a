"""Products of half precision, where the processor has no arithmetic for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.serving import serving

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
Widened = list[tuple[int, ...]]


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> Widened:
    """Shapes of what is multiplied in float32, on a processor that needs it."""
    from hotswap.engine import wide

    shapes: Widened = []

    def noted(function: Any) -> Any:
        def widen(*args: Any, **kwargs: Any) -> Any:
            made = function(*args, **kwargs)
            if made is not NotImplemented:
                shapes.append(tuple(made.shape))
            return made

        return widen

    monkeypatch.setattr(wide, "half_is_slow", lambda: True)
    monkeypatch.setattr(wide, "_WIDE", {name: noted(f) for name, f in wide._WIDE.items()})
    return shapes


def numbers(*shape: int, dtype: str = "bfloat16") -> Tensor:
    import torch

    torch.manual_seed(sum(shape))
    return torch.randn(shape).to(getattr(torch, dtype))


def assert_rounded_once(got: Tensor, exact: Tensor) -> None:
    """From the exact result to the nearest number there is, or the one beside it."""
    import torch

    step = torch.finfo(got.dtype).eps
    assert bool(((got.double() - exact).abs() <= step * exact.abs() + 1e-4).all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_rounded_once(widened: Widened, dtype: str, bias: bool) -> None:
    import torch.nn.functional as F  # noqa: N812

    from hotswap.engine.wide import half_precision_products

    x, weight = numbers(2, 20, 300, dtype=dtype), numbers(1100, 300, dtype=dtype)
    shift = numbers(1100, dtype=dtype) if bias else None
    with half_precision_products(40):
        got = F.linear(x, weight, shift)
    exact = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    assert widened == [(2, 20, 1100)]
    assert got.dtype == x.dtype
    assert_rounded_once(got, exact)


def test_a_product_as_other_modules_have_it(widened: Widened) -> None:
    import torch

    from hotswap.engine.wide import half_precision_products

    x, weight, bias = numbers(30, 64), numbers(64, 700), numbers(700)
    with half_precision_products(30):
        products = [x @ weight, x.matmul(weight), torch.matmul(x, weight)]
        shifted = torch.addmm(bias, x, weight)
        x[None] @ weight[None]
    assert widened == [(30, 700)] * 4
    exact = x.double() @ weight.double()
    for got in products:
        assert_rounded_once(got, exact)
    assert_rounded_once(shifted, exact + bias.double())


def test_what_needs_no_help_is_left_alone(widened: Widened) -> None:
    import torch
    import torch.nn.functional as F  # noqa: N812

    from hotswap.engine.wide import half_precision_products

    weight = numbers(50, 64)
    with half_precision_products(30):
        few = F.linear(numbers(2, 64), weight)
        F.linear(numbers(30, 64).float(), weight.float())
    with half_precision_products(2):
        F.linear(numbers(30, 64), weight)
    assert widened == []
    assert torch.equal(few, F.linear(numbers(2, 64), weight))


@pytest.mark.parametrize(("narrow_s", "is_slow"), [(0.9, False), (1.9, False), (2.1, True)])
def test_the_processor_is_measured(
    monkeypatch: pytest.MonkeyPatch, narrow_s: float, is_slow: bool
) -> None:
    from hotswap.engine import wide

    seconds = iter([narrow_s, 1.0])
    monkeypatch.setattr(wide, "_best", lambda _: next(seconds))
    assert wide.half_is_slow.__wrapped__() is is_slow


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "falcon"])
async def test_prompts_of_all_tiers_are_computed_so(
    widened: Widened, checkpoint: Checkpoint, architecture: str
) -> None:
    prompt = [3 + i % 90 for i in range(200)]
    async with serving(checkpoint(architecture), dtype="bfloat16") as served:
        widened.clear()
        answer = await served.ask(prompt, max_tokens=3, ignore_eos=True)
        assert answer.finished is not None
        computed = list(widened)
        widened.clear()
        await served.ask(prompt[:3], max_tokens=3, ignore_eos=True)
    assert computed
    assert widened == [], "nor are tokens that are decoded"
