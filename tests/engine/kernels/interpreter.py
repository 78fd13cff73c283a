"""Two things that Triton's interpreter computes otherwise than a device, put right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def mend_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Rounds to the nearest bfloat16, where Triton 3.9 drops the bits that are too many, and
    multiplies matrices of them, where it multiplies their bits as integers."""
    plain_cast = InterpreterBuilder.cast_impl
    plain_dot = InterpreterBuilder.create_dot

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, source, wanted)
        rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    def dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        if left.dtype.scalar == tl.bfloat16:
            left, right = (plain_cast(self, side, tl.float32) for side in (left, right))
        return plain_dot(self, left, right, *others)

    patch.setattr(InterpreterBuilder, "cast_impl", cast)
    patch.setattr(InterpreterBuilder, "create_dot", dot)
