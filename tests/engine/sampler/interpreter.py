"""What Triton's interpreter computes otherwise than a device, put right, and what it repeats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def mend(patch: pytest.MonkeyPatch) -> None:
    """Widens bfloat16 exactly, where Triton 3.9 makes something else of denormal numbers. Patches
    the language once for a kernel, not in every function that it calls, and looks for no overflows,
    which takes two thirds of the time otherwise."""
    plain_cast = InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (tl.bfloat16, tl.float32):
            return plain_cast(self, source, wanted)
        words = np.asarray(source.data).view(np.uint16).astype(np.uint32) << np.uint32(16)
        return TensorHandle(words.view(np.float32), tl.float32)

    patch_language = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        languages = [tl.core if "core" in function.__globals__ else tl]
        patched = not any(tl.core.is_builtin(language.load) for language in languages)
        return interpreter._LangPatchScope() if patched else patch_language(function)

    patch.setattr(InterpreterBuilder, "cast_impl", cast)
    patch.setattr(interpreter, "_patch_lang", patch_once)
    quick = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", quick)
