"""JSON that is almost a request: what fuzzing a parser with noise alone would never reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

WORDS = [
    "text",
    "user",
    "assistant",
    "system",
    "tool",
    "message",
    "function",
    "function_call",
    "function_call_output",
    "reasoning",
    "tool_use",
    "tool_result",
    "thinking",
    "image",
    "input_text",
    "output_text",
    "item_reference",
    "auto",
    "any",
    "none",
    "required",
    "enabled",
    "disabled",
    "json_schema",
    "json_object",
    "allowed_tools",
    "weather",
]
KEYS = [
    "type",
    "role",
    "content",
    "text",
    "id",
    "name",
    "input",
    "output",
    "arguments",
    "call_id",
    "tool_use_id",
    "thinking",
    "summary",
    "format",
    "schema",
    "effort",
    "tools",
    "mode",
    "budget_tokens",
    "input_schema",
    "parameters",
]


def values() -> SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-2, 5000)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(WORDS)
        | st.text(max_size=5)
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
        ),
        max_leaves=12,
    )


def objects_like(
    sound: Mapping[str, Any], struct: type[msgspec.Struct]
) -> SearchStrategy[dict[str, Any]]:
    """``sound`` with some of the struct's fields replaced by anything."""
    names = st.sampled_from([*struct.__struct_fields__, "background", "container"])
    return st.dictionaries(names, values(), max_size=4).map(lambda odd: {**sound, **odd})
