"""What Triton's interpreter computes otherwise than a device, put right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.engine.quick_interpreter import quicken


def mend(patch: pytest.MonkeyPatch) -> None:
    """Widens bfloat16 exactly, where Triton 3.9 makes something else of denormal numbers."""
    plain_cast = InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (tl.bfloat16, tl.float32):
            return plain_cast(self, source, wanted)
        words = np.asarray(source.data).view(np.uint16).astype(np.uint32) << np.uint32(16)
        return TensorHandle(words.view(np.float32), tl.float32)

    patch.setattr(InterpreterBuilder, "cast_impl", cast)
    quicken(patch)
