from __future__ import annotations

from typing import Any

import pytest

from hotswap.api.tools import DeclaredTool, tool_mappings
from hotswap.errors import InvalidRequest


def tool(name: str = "weather", **fields: Any) -> DeclaredTool:
    given: dict[str, Any] = {"description": None, "parameters": None, "strict": None, **fields}
    return DeclaredTool(name=name, param="tools[0]", parameters_param="tools[0].schema", **given)


def test_a_template_finds_parameters_in_every_tool() -> None:
    [bare, full] = tool_mappings(
        [
            tool(strict=False),
            tool("time", description="d", parameters={"type": "object"}, strict=True),
        ]
    )
    nothing = {"type": "object", "properties": {}}
    assert bare == {"type": "function", "function": {"name": "weather", "parameters": nothing}}
    assert full["function"] == {
        "name": "time",
        "description": "d",
        "parameters": {"type": "object"},
        "strict": True,
    }


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "a" * 129])
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tool_mappings([tool(name)])
    assert caught.value.param == "tools[0].name"
