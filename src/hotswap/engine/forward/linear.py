"""Matrix products with the weights, in the way that is fastest for their shape.

On a CPU with bfloat16 weights oneDNN reads a packed copy of them at up to twice the speed of the
plain ones, and multiplies four rows in less time than one, unless the weight is very large. Several
weights that read the same input are one product once they are packed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from hotswap.engine.device import is_out_of_memory

_log = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]
"""[tokens, width] to [tokens, rows]."""

FULL_ROWS = 4
_LARGE_BYTES = 64 << 20
_TUNED_BYTES = 128 << 20
"""More than a processor's cache holds."""
_TOLERANCE = 2e-2
_unusable: set[tuple[int, ...]] = set()
"""Shapes whose packed products cannot be had or are not right."""
_checked: set[tuple[int, ...]] = set()


class Linear:
    """``x @ W.T + b`` with the rows of one or more weights, one after the other.

    The weights stay where they are, and plain, until `pack` is called.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """``parts``: weights [rows, width] and biases [rows]; all with a bias or none."""
        self._parts = tuple(parts)
        self.rows = sum(weight.shape[0] for weight, _ in parts)
        self.width = parts[0][0].shape[1]
        self.bytes = sum(weight.nbytes for weight, _ in parts)
        self.packed = False
        self.own_bytes = 0
        """Memory that `pack` has taken."""
        self.tunable = False
        """oneDNN multiplies, and `tune` has not been told about it."""
        self.fewest_rows = 1
        """With fewer tokens it is faster to add empty ones up to `FULL_ROWS`."""
        self._run: Product = partial(F.linear, weight=parts[0][0], bias=parts[0][1])
        if len(parts) > 1:
            self._run = self._one_by_one

    @property
    def parts(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Weights and biases, as long as they are plain."""
        return self._parts

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, width] to [tokens, rows]."""
        rows = x.shape[0]
        if rows >= self.fewest_rows:
            return self._run(x)
        return self._run(F.pad(x, (0, 0, 0, FULL_ROWS - rows)))[:rows]

    def pack(self) -> tuple[Tensor, ...]:
        """Make one weight of all, laid out for this processor where it can be. Returns the plain
        ones that are not used any more."""
        weights = tuple(weight for weight, _ in self._parts)
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        biases = [bias for _, bias in self._parts if bias is not None]
        bias = torch.cat(biases) if biases else None
        image = _image(weight)
        self.packed = True
        self.own_bytes = self.bytes if image is not None or len(weights) > 1 else 0
        self._parts = ()
        if image is None:
            self._run = partial(F.linear, weight=weight, bias=bias)
            return weights if len(weights) > 1 else ()
        self._run = _product(image, bias)
        self.tunable = True
        self.fewest_rows = FULL_ROWS if self.bytes < _LARGE_BYTES else 1
        return weights

    def _one_by_one(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, weight, bias) for weight, bias in self._parts], dim=-1)


def tune(linears: Sequence[Linear]) -> None:
    """Find out from how many rows on empty ones need not be added. To be told about a model's
    linears of one shape together: one of them alone would be measured from the cache."""
    measured = [linear for i, linear in enumerate(linears) if i * linears[0].bytes < _TUNED_BYTES]
    x = torch.randn(FULL_ROWS, linears[0].width).to(torch.bfloat16)
    padded = [
        rows
        for rows in range(1, FULL_ROWS)
        if _seconds(measured, x[:rows], FULL_ROWS) < _seconds(measured, x[:rows], 1)
    ]
    for linear in linears:
        linear.fewest_rows = max(padded, default=0) + 1
        linear.tunable = False


def _seconds(linears: Sequence[Linear], x: Tensor, fewest_rows: int) -> float:
    """Of one call of each, the better of two."""
    for linear in linears:
        linear.fewest_rows = fewest_rows
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        for linear in linears:
            linear(x)
        times.append(time.perf_counter() - begin)
    return min(times)


def _image(weight: Tensor) -> Tensor | None:
    """The weight as oneDNN packs it; None: not possible, or its products are not right.

    The operations are private to torch (its compiler uses them), so a product is compared with the
    plain one, once for each shape.
    """
    shape = tuple(weight.shape)
    packable = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    if not packable or shape in _unusable:
        return None
    try:
        image: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FULL_ROWS)
        right = shape in _checked or _is_right(weight, image)
    except (AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        _log.info("Weights stay as they are: %s", error)
        right = False
    (_checked if right else _unusable).add(shape)
    return image if right else None


def _is_right(weight: Tensor, image: Tensor) -> bool:
    x = torch.randn(FULL_ROWS, weight.shape[1]).to(weight.dtype)
    plain, packed = F.linear(x, weight).float(), _product(image, None)(x).float()
    right = bool((plain - packed).abs().max() <= _TOLERANCE * plain.abs().max())
    if not right:
        _log.warning("Packed products of shape %s differ from the plain ones", tuple(weight.shape))
    return right


def _product(image: Tensor, bias: Tensor | None) -> Product:
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default

    def run(x: Tensor) -> Tensor:
        return product(x, image, bias, "none", [], "")

    return run
