"""The tools of a request, as far as listening to calls of them needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SHARED = ("$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Mapping[str, Any]
    """A JSON schema of its arguments."""

    @property
    def properties(self) -> Mapping[str, Any]:
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        found = self.parameters.get("required")
        return frozenset(found) if isinstance(found, list | tuple) else frozenset()

    def schema_of(self, parameter: str) -> Mapping[str, Any]:
        """Its own schema, with the definitions that it may refer to."""
        own = self.properties[parameter]
        shared = {key: self.parameters[key] for key in _SHARED if key in self.parameters}
        return {**shared, **own} if isinstance(own, Mapping) else shared

    def types_of(self, parameter: str) -> frozenset[str]:
        """What its schema says that a parameter may be; nothing, where it does not say."""
        schema = self.properties.get(parameter)
        found = schema.get("type") if isinstance(schema, Mapping) else None
        if isinstance(found, str):
            return frozenset({found})
        return frozenset(found) if isinstance(found, list | tuple) else frozenset()


class Tools:
    """Tools by their names, in the order of the request. None: nothing can be called."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self.names: frozenset[str] = frozenset(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __bool__(self) -> bool:
        return bool(self._tools)

    def only(self, name: str) -> Tools:
        return Tools([self._tools[name]])


def tools_of(given: Iterable[Mapping[str, Any]]) -> Tools:
    """Tools as OpenAI has them. What is not a function is left out."""
    functions = (tool.get("function") for tool in given)
    return Tools(
        Tool(str(function["name"]), function.get("parameters") or {"type": "object"})
        for function in functions
        if isinstance(function, Mapping) and "name" in function
    )
