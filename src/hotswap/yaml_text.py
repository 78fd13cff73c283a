"""YAML from people we do not know: plain data only, bounded, no surprises."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import yaml

from hotswap.errors import InvalidRequest

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
_MAX_NUMBER_CHARS = 100


def parse_yaml(text: str | bytes, what: str) -> dict[str, Any]:
    """The mapping that ``text`` holds; empty text is an empty mapping.

    Args:
        what: names the text in messages ("config.yaml", "the uploaded config").

    Raises:
        InvalidRequest: it is too long or too deep, not YAML, not a mapping with text keys, or
            uses aliases, anchors, merge keys, tags, duplicate keys, or numbers without a value or
            with hundreds of digits.
    """
    if len(text) > MAX_BYTES:
        raise InvalidRequest(f"{what} is longer than {MAX_BYTES // 1024} kB.")
    try:
        value = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a safe loader, made safer
    except yaml.MarkedYAMLError as error:
        raise InvalidRequest(f"{what} cannot be read: {_located(error)}.") from None
    # RecursionError cannot happen below MAX_DEPTH; ValueError is a date such as 2024-13-45.
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequest(f"{what} cannot be read: {reason}.") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} must be a mapping of keys to values.")
    return value


def _located(error: yaml.MarkedYAMLError) -> str:
    place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
    return f"{error.problem or error.context}{place}"


class _PlainLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` without what only an attacker or an accident would use."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        if event.anchor is not None:
            raise yaml.MarkedYAMLError(problem="anchors are not allowed", problem_mark=mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=mark)
        if self._depth >= MAX_DEPTH:
            problem = f"it is nested deeper than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if key.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys are not allowed"
            elif key.tag != "tag:yaml.org,2002:str":
                problem = "keys must be text"
            elif key.value in seen:
                problem = f"the key {key.value!r} is there twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        _refuse_long(node)
        value = float(self.construct_yaml_float(node))
        if not math.isfinite(value):
            problem = f"{node.value!r} is not a number"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_short(self, node: yaml.ScalarNode) -> int:
        _refuse_long(node)
        return int(self.construct_yaml_int(node))


def _refuse_long(node: yaml.ScalarNode) -> None:
    """Numbers such as ``0xff...`` and ``59:59:...`` take long to read, and may be none at all."""
    if len(node.value) > _MAX_NUMBER_CHARS:
        problem = "a number has too many digits"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_finite)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_short)
