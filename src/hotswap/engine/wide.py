"""Products of half-precision numbers on processors that have no arithmetic for them.

torch multiplies bfloat16 there one number at a time: a processor with AVX2 alone, as most desktops
have, gave 17 GFLOP/s where it gives 130 in float32. So the weights of a product of many rows are
converted on their way, a piece at a time that stays in the cache. What comes out is rounded once,
at the end, as where the processor can do it itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HALF = torch.bfloat16, torch.float16
_LEAST_ROWS = 12
"""With 8 rows both ways took equally long, with 16 this one a half. Measured as the next one."""
_PIECE = 512
"""Rows of a weight that are converted at once: of 128 to 2,048 the fastest at 1,024 and 3,072
columns."""
_SLOW = 2.0
_TRIES = 3


def half_precision_products(rows: int) -> AbstractContextManager[object]:
    """Inside it, on the calling thread, products of half precision on the CPU are as fast as the
    processor allows, if some have so many rows."""
    if rows < _LEAST_ROWS or not half_is_slow():
        return nullcontext()  # each of torch's calls would take two microseconds more
    return _WideProducts()


@cache
def half_is_slow() -> bool:
    """Products of half precision take at least twice as long as those of float32, conversion
    included. Takes some milliseconds, once."""
    x, weight = (torch.ones(rows, 1024, dtype=torch.bfloat16) for rows in (64, _PIECE))
    return _best(lambda: F.linear(x, weight)) > _SLOW * _best(lambda: _linear(x, weight))


class _WideProducts(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        wide = _WIDE.get(function)
        made = NotImplemented if wide is None else wide(*args, **given)
        return function(*args, **given) if made is NotImplemented else made


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """``x @ weight.T + bias``: x [..., columns], weight [rows, columns], bias [rows].
    NotImplemented where that is no matter of ours."""
    if not _is_ours(x, weight):
        return NotImplemented
    wide = x.float()
    out = x.new_empty(*x.shape[:-1], len(weight))
    for begin in range(0, len(weight), _PIECE):
        piece = slice(begin, begin + _PIECE)
        shift = None if bias is None else bias[piece].float()
        out[..., piece] = F.linear(wide, weight[piece].float(), shift)
    return out


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, **options: Any) -> Any:
    """The same of ``x @ weight + bias``, as the first GPT's modules have it."""
    return NotImplemented if options else _linear(x, weight.T, bias)


def _matmul(x: Tensor, weight: Tensor) -> Any:
    """The same of ``x @ weight``, as Falcon's have it. Where both are many matrices it is
    attention, whose kernels are fast enough."""
    return _linear(x, weight.T) if weight.dim() == 2 else NotImplemented


_WIDE: Mapping[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype in _HALF
        and weight.dtype == x.dtype
        and x.device.type == "cpu"
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
    )


def _best(run: Callable[[], object]) -> float:
    """Seconds of the best of some tries."""
    times = []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
