"""Tools as OpenAI's chats have them, and which of them a model is to call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hotswap.contracts import ToolChoice
from hotswap.errors import InvalidRequest

MAX_TOOLS = 1024
MAX_TOOLS_CHARS = 2 << 20
"""Of all tools together, as JSON. Open WebUI sends some tens of thousands."""
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]+$", min_length=1, max_length=64)]


class Function(Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    type: Literal["function"]
    function: NamedFunction


Choice = Literal["none", "auto", "required"] | NamedTool


def tool_mappings(tools: Sequence[Tool]) -> tuple[Mapping[str, Any], ...]:
    """As chat templates take them.

    Raises:
        InvalidRequest: a name is not one, or is used twice, or parameters are no object's.
    """
    names: set[str] = set()
    for position, tool in enumerate(tools):
        _check(tool.function, f"tools[{position}].function", names)
        names.add(tool.function.name)
    mappings = tuple(map(_mapping, tools))
    size = len(json.dumps(mappings, ensure_ascii=False))
    if size > MAX_TOOLS_CHARS:
        raise InvalidRequest(f"tools: longer than {MAX_TOOLS_CHARS} characters", param="tools")
    return mappings


def _check(function: Function, param: str, names: set[str]) -> None:
    # The pattern alone lets a line's end pass: its "$" matches before one.
    if not _NAME.fullmatch(function.name):
        raise InvalidRequest(f"{param}.name: not a name", param=f"{param}.name")
    if function.name in names:
        raise InvalidRequest(
            f"{param}.name: {function.name!r} is the name of two tools", param=f"{param}.name"
        )
    if (function.parameters or {}).get("type", "object") != "object":
        raise InvalidRequest(
            f"{param}.parameters: must be the schema of an object", param=f"{param}.parameters"
        )


def _mapping(tool: Tool) -> Mapping[str, Any]:
    function = tool.function
    written: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        written["description"] = function.description
    # Never left out: many templates write it without asking whether it is there.
    written["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict:
        written["strict"] = True
    return {"type": "function", "function": written}


def tool_choice(choice: Choice | None, *, parallel: bool, names: Sequence[str]) -> ToolChoice:
    """What ``choice`` asks for; "none" is the caller's affair.

    Raises:
        InvalidRequest: it asks for a tool that is not there.
    """
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            raise InvalidRequest(
                f"tool_choice: there is no tool {name[:100]!r}", param="tool_choice"
            )
        return ToolChoice(required=True, name=name, parallel=parallel)
    if choice == "required" and not names:
        raise InvalidRequest("tool_choice: there are no tools to call", param="tool_choice")
    return ToolChoice(required=choice == "required", parallel=parallel)
