"""Tools that a client declares, in the form that chat templates take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hotswap.contracts import Guide, ToolChoice
from hotswap.errors import InvalidRequest

MAX_TOOLS = 1024
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredTool:
    """A function of the client's."""

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


def tool_mappings(tools: Iterable[DeclaredTool]) -> tuple[Mapping[str, Any], ...]:
    """Raises: InvalidRequest: a name is not one, or used twice; parameters are no object's."""
    names: set[str] = set()
    mappings = []
    for tool in tools:
        _check(tool, names)
        names.add(tool.name)
        mappings.append(tool.mapping())
    return tuple(mappings)


def _check(tool: DeclaredTool, names: set[str]) -> None:
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


def check_together(guide: Guide | None, choice: ToolChoice) -> None:
    """Raises: InvalidRequest: the answer is to be text of a form, and a call."""
    if guide is not None and choice.required:
        raise InvalidRequest(
            f"{guide.param}: not together with a required tool call", param=guide.param
        )
