"""Matrix products with the weights of a checkpoint, which stay where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor


class Linear:
    """``x @ W.T + b`` with the rows of one or more weights, one after the other."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """``parts``: weights [rows, width] and biases [rows]."""
        self.parts = tuple(parts)
        self.rows = sum(weight.shape[0] for weight, _ in parts)
        self.width = parts[0][0].shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, width] to [tokens, rows]."""
        products = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)
