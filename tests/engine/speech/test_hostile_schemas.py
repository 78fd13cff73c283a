"""Schemas of tools are the client's: whatever stands in them, an answer is taken apart."""

from __future__ import annotations

from typing import Any

import pytest

from hotswap.engine.speech.tools import tools_of

HOSTILE: tuple[Any, ...] = (
    {"type": [{}]},
    {"enum": 5},
    {"anyOf": 5},
    {"anyOf": [5, {"type": "string"}]},
    {"$ref": 7},
    "a text",
    None,
)


@pytest.mark.parametrize("schema", HOSTILE)
def test_a_parameters_schema_may_be_anything(schema: Any) -> None:
    parameters = {"type": "object", "properties": {"x": schema}, "required": [{}, "x"]}
    [tool] = tools_of([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert tool.types_of("x") <= {"string"}
    assert tool.required == {"x"}


def test_parameters_that_are_no_schema_are_any_object() -> None:
    [tool] = tools_of([{"type": "function", "function": {"name": "f", "parameters": "oops"}}])
    assert dict(tool.properties) == {}
