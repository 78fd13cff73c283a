"""What Triton's interpreter does again and again, left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import triton.language as tl
from triton.runtime import interpreter


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Patches the language once for a kernel, not in every function that it calls, and looks for no
    overflows, which takes two thirds of the time otherwise."""
    patch_language = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        languages = [tl.core if "core" in function.__globals__ else tl]
        patched = not any(tl.core.is_builtin(language.load) for language in languages)
        return interpreter._LangPatchScope() if patched else patch_language(function)

    patch.setattr(interpreter, "_patch_lang", patch_once)
    quick = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", quick)
