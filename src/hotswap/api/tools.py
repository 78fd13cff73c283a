"""Tools that a client declares, in the form that chat templates take, and which of them a model
is to call. Dialects write both in shapes of their own; what may be in them is the same."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hotswap.contracts.requests import Guide, ToolChoice
from hotswap.errors import InvalidRequest

MAX_TOOLS = 1024
MAX_TOOLS_CHARS = 2 << 20
"""Of all tools together, as JSON. Open WebUI sends some tens of thousands."""
_NAME_PATTERN = r"^[a-zA-Z0-9_.-]+$"
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")

ShortToolName = Annotated[str, Meta(pattern=_NAME_PATTERN, min_length=1, max_length=64)]
ToolName = Annotated[str, Meta(pattern=_NAME_PATTERN, min_length=1, max_length=128)]


class Function(Struct):
    """As OpenAI's chats declare it."""

    name: ShortToolName
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
"""What OpenAI's chats have in ``tool_choice``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredTool:
    """A function of the client's, from any dialect."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    """The schema of an object."""
    strict: bool | None
    param: str
    """Where in the request it stands, and where in it its parameters do."""
    parameters_param: str

    def mapping(self) -> Mapping[str, Any]:
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        # Never left out: many templates write it without asking whether it is there.
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        if self.strict:
            function["strict"] = True
        return {"type": "function", "function": function}


def declared(tools: Iterable[Tool]) -> Iterable[DeclaredTool]:
    """The tools of one of OpenAI's chats."""
    for position, tool in enumerate(tools):
        param = f"tools[{position}].function"
        yield DeclaredTool(
            name=tool.function.name,
            description=tool.function.description,
            parameters=tool.function.parameters,
            strict=tool.function.strict,
            param=param,
            parameters_param=f"{param}.parameters",
        )


def tool_mappings(tools: Iterable[DeclaredTool]) -> tuple[Mapping[str, Any], ...]:
    """As chat templates take them.

    Raises:
        InvalidRequest: a name is not one, or is used twice; parameters are no object's; all
            together are too long.
    """
    names: set[str] = set()
    mappings = []
    for tool in tools:
        _check(tool, names)
        names.add(tool.name)
        mappings.append(tool.mapping())
    if len(json.dumps(mappings, ensure_ascii=False)) > MAX_TOOLS_CHARS:
        raise InvalidRequest(f"tools: longer than {MAX_TOOLS_CHARS} characters", param="tools")
    return tuple(mappings)


def _check(tool: DeclaredTool, names: Collection[str]) -> None:
    # The types' pattern lets a line's end pass: its "$" matches before one.
    if not _NAME.fullmatch(tool.name):
        raise InvalidRequest(
            f"{tool.param}.name: must be 1 to 128 letters, digits, '_', '-' or '.'",
            param=f"{tool.param}.name",
        )
    if tool.name in names:
        raise InvalidRequest(
            f"{tool.param}.name: {tool.name!r} is the name of two tools", param=f"{tool.param}.name"
        )
    if (tool.parameters or {}).get("type", "object") != "object":
        raise InvalidRequest(
            f"{tool.parameters_param}: must be the schema of an object",
            param=tool.parameters_param,
        )


def required_choice(
    tools: Collection[Mapping[str, Any]],
    *,
    parallel: bool,
    name: str | None = None,
    param: str = "tool_choice",
) -> ToolChoice:
    """That one of ``tools``, as `tool_mappings` made them, is to be called: any, or the one whose
    name stands at ``param``.

    Raises:
        InvalidRequest: it is not there.
    """
    names = {tool["function"]["name"] for tool in tools}
    if name is not None and name not in names:
        raise InvalidRequest(f"{param}: there is no tool {name[:200]!r}", param=param)
    if not names:
        raise InvalidRequest("tool_choice: there are no tools to call", param="tool_choice")
    return ToolChoice(required=True, name=name, parallel=parallel)


def check_together(guide: Guide | None, choice: ToolChoice) -> None:
    """Raises: InvalidRequest: the answer is to be text of a form, and a call."""
    if guide is not None and choice.required:
        raise InvalidRequest(
            f"{guide.param}: not together with a required tool call", param=guide.param
        )
