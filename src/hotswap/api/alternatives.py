"""What could have stood where a value was refused, looked up in the type that decodes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    found = _each(_at(into, fields, path))
    values = (one.values for one in found if isinstance(one, inspect.LiteralType))
    known = dict.fromkeys(value for some in values for value in some if value is not None)
    return tuple(map(repr, known))


def number_range(into: type, fields: Any, path: str, *, key: bool = False) -> str:
    """What a number may be at a place, "from 1 to 16", and what it stands for where that has a
    name; nothing where any, or something else too, may stand there.

    Args:
        fields, path: as `alternatives` has them.
        key: the place is a key of the mapping there.
    """
    found = _at(into, fields, path)
    if key:
        found = tuple(one.key_type for one in _each(found) if isinstance(one, inspect.DictType))
    numbers = [one for one in _each(found) if isinstance(one, inspect.IntType | inspect.FloatType)]
    if len(numbers) != 1:
        return ""
    schemas = (one.extra_json_schema or {} for one in found if isinstance(one, inspect.Metadata))
    names = [f" ({schema['title']})" for schema in schemas if "title" in schema]
    return "".join([_range(numbers[0]), *names])


def list_items(into: type, fields: Any, path: str) -> str:
    """What a list at a place is a list of, "texts or whole numbers"; nothing where of anything.

    Args:
        fields, path: as `alternatives` has them.
    """
    kinds: dict[str, None] = {}
    tags: dict[str, list[str]] = {}
    for one in _each(_items(_at(into, fields, path))):
        if isinstance(one, inspect.StructType) and one.tag_field is not None:
            tags.setdefault(one.tag_field, []).append(repr(one.tag))
        elif type(one) in _PLURALS:
            kinds[_PLURALS[type(one)]] = None
    told = [f"objects whose {field} is {_either(sorted(some))}" for field, some in tags.items()]
    return " or ".join([*told, *kinds])


_PLURALS: Mapping[type[inspect.Type], str] = {
    inspect.StrType: "texts",
    inspect.IntType: "whole numbers",
    inspect.FloatType: "numbers",
    inspect.ListType: "lists",
    inspect.StructType: "objects",
}


def _either(words: Sequence[str]) -> str:
    return " or ".join([*filter(None, [", ".join(words[:-1])]), words[-1]])


def _range(one: inspect.IntType | inspect.FloatType) -> str:
    high = "" if one.le is None else _written(one.le)
    if one.gt is not None:
        return f"above {_written(one.gt)}" + (high and f" and at most {high}")
    if one.ge is not None:
        return f"from {_written(one.ge)} to {high}" if high else f"of {_written(one.ge)} or more"
    return high and f"of {high} or less"


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.15g}"


def _at(into: type, fields: Any, path: str) -> tuple[inspect.Type, ...]:
    """The types of what can stand there."""
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
    return found


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
