from __future__ import annotations

from typing import Any

import pytest

from hotswap.api.openai import parse_chat
from hotswap.api.tools import MAX_TOOLS_CHARS, DeclaredTool, tool_mappings
from hotswap.contracts.requests import ChatPrompt, ToolChoice
from hotswap.errors import InvalidRequest
from tests.api.stage import chat_body

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name: Any = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def prompt(**fields: Any) -> ChatPrompt:
    [prompt] = parse_chat(chat_body(**fields)).request.prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_a_template_gets_what_a_model_has_to_know_of_a_tool() -> None:
    given = [tool(description="d", parameters=SCHEMA, strict=False, extra=1), tool("t.i-m_e")]
    assert prompt(tools=given).tools == (
        tool(description="d", parameters=SCHEMA),
        tool("t.i-m_e", parameters={"type": "object", "properties": {}}),
    )


def test_that_a_tool_is_strict_is_kept() -> None:
    [one] = prompt(tools=[tool(strict=True)]).tools
    assert one["function"]["strict"] is True


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("required", ToolChoice(required=True)),
        (
            {"type": "function", "function": {"name": "weather"}},
            ToolChoice(required=True, name="weather"),
        ),
    ],
)
def test_a_tool_choice(choice: Any, expected: ToolChoice) -> None:
    asked = prompt(tools=[tool()], tool_choice=choice)
    assert asked.tool_choice == expected
    assert asked.tools


def test_with_the_choice_none_a_template_is_told_of_no_tools() -> None:
    assert prompt(tools=[tool()], tool_choice="none").tools == ()


def test_calls_may_be_parallel_unless_the_client_says_no() -> None:
    assert prompt(tools=[tool()], parallel_tool_calls=True).tool_choice.parallel
    assert not prompt(tools=[tool()], parallel_tool_calls=False).tool_choice.parallel


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(5)]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("b"), tool("a")]}, "tools[2].function.name"),
        ({"tools": [tool(description=5)]}, "tools[0].function.description"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(f"f{i}") for i in range(1025)]}, "tools"),
        ({"tools": [tool(description="x" * (MAX_TOOLS_CHARS + 1))]}, "tools"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [tool()],
                "tool_choice": {"type": "function", "function": {"name": "time"}},
            },
            "tool_choice",
        ),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    ],
)
def test_a_bad_tool_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompt(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


def declared(name: str = "weather", **fields: Any) -> DeclaredTool:
    given: dict[str, Any] = {"description": None, "parameters": None, "strict": None, **fields}
    return DeclaredTool(name=name, param="tools[0]", parameters_param="tools[0].schema", **given)


def test_a_template_finds_parameters_in_every_tool() -> None:
    [bare, full] = tool_mappings(
        [
            declared(strict=False),
            declared("time", description="d", parameters={"type": "object"}, strict=True),
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
        tool_mappings([declared(name)])
    assert caught.value.param == "tools[0].name"
