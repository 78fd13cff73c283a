"""When two results are the same but for the order of their sums."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same(got: Tensor, wanted: Tensor, tolerance: float = 3e-6) -> None:
    """Equal within ``tolerance`` in float32. In bfloat16 equal, but that one entry in 50 may have
    rounded to a neighbour: rounding in another place changes many."""
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)
        return
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=2**-7)
    assert int((got != wanted).sum()) <= got.numel() / 50
