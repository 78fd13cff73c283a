"""What could have stood where a value was refused, looked up in the type that decodes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\.?(?P<name>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
"""As msgspec writes it; three dots are any value of a mapping."""


def alternatives(into: type, fields: Any, path: str) -> tuple[str, ...]:
    """The values that are possible at a place where only certain ones are, quoted; none where that
    cannot be told.

    Args:
        fields: what could not be decoded into ``into``.
        path: the place, as `hotswap.errors.InvalidRequest.param` has it.
    """
    found: tuple[inspect.Type, ...] = (_of(into),)
    value = fields
    for step in _STEP.finditer(path):
        if name := step["name"]:
            found = tuple(_named(found, value, name))
            value = value.get(name) if isinstance(value, dict) else None
        else:
            found = tuple(_items(found))
            index = step["index"]
            value = value[int(index)] if index and isinstance(value, list) else None
    values = (one.values for one in _each(found) if isinstance(one, inspect.LiteralType))
    known = dict.fromkeys(value for some in values for value in some if value is not None)
    return tuple(map(repr, known))


@cache
def _of(into: type) -> inspect.Type:
    return inspect.type_info(into)


def _each(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """Unions taken apart."""
    for one in types:
        if isinstance(one, inspect.Metadata):
            yield from _each((one.type,))
        elif isinstance(one, inspect.UnionType):
            yield from _each(one.types)
        else:
            yield one


def _named(types: Iterable[inspect.Type], value: Any, name: str) -> Iterator[inspect.Type]:
    """What a field may be: of the struct that ``value`` says it is, else of each."""
    structs = [one for one in _each(types) if isinstance(one, inspect.StructType)]
    for struct in [one for one in structs if _is_tagged(one, value)] or structs:
        if name == struct.tag_field:
            yield inspect.LiteralType((struct.tag,))
        yield from (field.type for field in struct.fields if field.encode_name == name)


def _is_tagged(struct: inspect.StructType, value: Any) -> bool:
    return isinstance(value, dict) and value.get(struct.tag_field) == struct.tag


def _items(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for one in _each(types):
        if isinstance(one, inspect.CollectionType):
            yield one.item_type
        elif isinstance(one, inspect.DictType):
            yield one.value_type
