"""The tools of a request, as far as listening to calls of them needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHARED = ("$defs", "definitions")
_DEEPEST = 8
"""References to references, and choices of choices."""
_NAMES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


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
        return frozenset(name for name in _list(found) if isinstance(name, str))

    def schema_of(self, parameter: str) -> Mapping[str, Any]:
        """Its own schema, with the definitions that it may refer to."""
        own = self.properties[parameter]
        shared = {key: self.parameters[key] for key in _SHARED if key in self.parameters}
        return {**shared, **own} if isinstance(own, Mapping) else shared

    def types_of(self, parameter: str) -> frozenset[str]:
        """What its schema says that a parameter may be; nothing, where it does not say."""
        return _types(self._found(parameter), self.parameters)

    def words_of(self, parameter: str) -> tuple[str, ...]:
        """The texts that a parameter may be, where they are listed."""
        listed = self._found(parameter).get("enum")
        words = listed if isinstance(listed, list | tuple) else ()
        return tuple(words) if all(isinstance(word, str) for word in words) else ()

    def loose(self) -> Tool:
        """With a schema that can always be enforced: of its parameters only which there are, which
        there must be, and of what type each is."""
        properties = {name: _typed(self.types_of(name)) for name in self.properties}
        required = [name for name in properties if name in self.required]
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        if self.parameters.get("additionalProperties") is False:
            schema["additionalProperties"] = False
        return Tool(self.name, schema)

    def _found(self, parameter: str) -> Mapping[str, Any]:
        return _resolved(self.properties.get(parameter), self.parameters)


def _typed(types: frozenset[str]) -> Mapping[str, Any]:
    """A schema of those types; of any, where one is none that JSON knows."""
    return {"type": sorted(types)} if types and types <= set(_NAMES.values()) else {}


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema``, or the definition that it refers to."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for name in reference.removeprefix("#/").split("/"):
            schema = schema.get(name) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def _types(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    found = schema.get("type")
    if isinstance(found, str):
        return frozenset({found})
    if isinstance(found, list | tuple):
        return frozenset(name for name in found if isinstance(name, str))
    listed = _list(schema.get("enum", [schema["const"]] if "const" in schema else []))
    types = {_NAMES[type(value)] for value in listed if type(value) in _NAMES}
    if depth < _DEEPEST:
        for key in ("anyOf", "oneOf"):
            for choice in _list(schema.get(key)):
                types |= _types(_resolved(choice, root), root, depth + 1)
    return frozenset(types)


def _list(value: Any) -> Sequence[Any]:
    """What a schema has where there should be a list: it is the client's, and nobody checked it."""
    return value if isinstance(value, list | tuple) else ()


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

    def loose(self) -> Tools:
        return Tools(tool.loose() for tool in self)

    def only(self, name: str) -> Tools:
        return Tools([self._tools[name]])


_NAMING_NONE = frozenset(("type", "properties", "required", "title", "description", "$schema"))
"""Words of a schema that allow no parameter beside those of its properties."""


def _schema(parameters: Any) -> Mapping[str, Any]:
    """Of a tool that names no parameters, that there are none: a model that was free to think some
    up would."""
    given = parameters if isinstance(parameters, Mapping) else {}
    others = {name for name in given if name not in _NAMING_NONE}
    if others or given.get("properties") or given.get("type", "object") != "object":
        return given
    return {**given, "type": "object", "properties": {}, "additionalProperties": False}


def tools_of(given: Iterable[Mapping[str, Any]]) -> Tools:
    """Tools as OpenAI has them. What is not a function is left out."""
    functions = (tool.get("function") for tool in given)
    return Tools(
        Tool(str(function["name"]), _schema(function.get("parameters")))
        for function in functions
        if isinstance(function, Mapping) and "name" in function
    )
