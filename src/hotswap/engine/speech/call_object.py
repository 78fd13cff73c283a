"""A tool call as a JSON object, which is how most families write it: ``{"name": "f", "arguments":
{...}}``, its keys in any order."""

from __future__ import annotations

import json
from typing import Any

from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Reader, Reading

_ARGUMENTS = ("arguments", "parameters")
"""What the arguments are called; Llama says parameters."""
_KNOWN = frozenset({"name", "type", "id", *_ARGUMENTS})


def call_object(
    reader: Reader, pieces: Pieces, *, strange_keys: bool = True, marked: bool = True
) -> Reading[bool]:
    """Read a call. False: what was read is none, or no whole one; if `Reader.noted` still has it,
    nothing of it was given out.

    Args:
        strange_keys: it may have keys beside those that make a call. Where nothing but its form
            tells a call from an answer in JSON, it may not.
        marked: what came before it says that it is a call. Else it is in doubt from a first key
            on that is not the name, which calls begin with, until the name of a tool comes.
    """
    return (yield from _CallObject(reader, pieces, strange_keys, marked).read())


def call_list(
    reader: Reader,
    pieces: Pieces,
    *,
    opened: bool = False,
    strange_keys: bool = True,
    marked: bool = True,
) -> Reading[bool]:
    """Read calls in a JSON array. False: as `call_object`, of the first one that is none.

    Args:
        opened: its bracket has been read.
        marked: as `call_object`, of the first one.
    """
    if not opened and not (yield from reader.skip("[")):
        return False
    while True:
        yield from reader.spaces()
        if not (yield from call_object(reader, pieces, strange_keys=strange_keys, marked=marked)):
            return False
        marked = True
        reader.note()
        yield from reader.spaces()
        if (yield from reader.skip("]")):
            reader.forget()
            return True
        if not (yield from reader.skip(",")):
            return False


def arguments_object(reader: Reader, pieces: Pieces, name: str) -> Reading[bool]:
    """Read the arguments of a call of ``name``, which begins only with their brace. False: as
    `call_object`."""
    if not pieces.may_call(name) or (yield from reader.peek()) != "{":
        return False
    pieces.begin_call(name)
    whole = yield from reader.json(pieces.arguments)
    if whole:
        pieces.end_call()
    return whole


class _CallObject:
    def __init__(self, reader: Reader, pieces: Pieces, strange_keys: bool, marked: bool) -> None:
        self._reader = reader
        self._pieces = pieces
        self._strange_keys = strange_keys
        self._marked = marked
        self._name: str | None = None
        self._early: str | None = None
        """Arguments that came before the name."""
        self._given = False
        """There are arguments."""
        self._begun = False

    def read(self) -> Reading[bool]:
        reader = self._reader
        if not (yield from reader.skip("{")):
            return False
        while True:
            yield from reader.spaces()
            key = yield from self._string()
            yield from reader.spaces()
            if key is None or not (yield from reader.skip(":")):
                return False
            yield from reader.spaces()
            if not (yield from self._entry(key)):
                return False
            yield from reader.spaces()
            if (yield from reader.skip("}")):
                return self._complete()
            if not (yield from reader.skip(",")):
                return False

    def _entry(self, key: str) -> Reading[bool]:
        if key == "name" and self._name is None:
            return (yield from self._take_name())
        self._reader.doubted = not self._marked and self._name is None
        if key in _ARGUMENTS and not self._given:
            return (yield from self._take_arguments())
        if not self._strange_keys and key not in _KNOWN:
            return False
        return (yield from self._reader.json(drop))

    def _take_name(self) -> Reading[bool]:
        self._name = yield from self._string()
        if self._name is None or not self._pieces.may_call(self._name):
            return False
        self._reader.doubted = False
        if self._early is not None:
            self._begin(self._early)
        return True

    def _take_arguments(self) -> Reading[bool]:
        self._given = True
        if (yield from self._reader.peek()) == "{" and self._name is not None:
            self._begin("")
            return (yield from self._reader.json(self._pieces.arguments))
        parts: list[str] = []
        if not (yield from self._reader.json(parts.append)):
            return False
        self._early = _object_text("".join(parts))
        if self._early is None:
            return False
        if self._name is not None:
            self._begin(self._early)
        return True

    def _complete(self) -> bool:
        if self._name is None:
            return False
        if not self._begun:
            self._begin("{}")
        self._pieces.end_call()
        return True

    def _begin(self, arguments: str) -> None:
        assert self._name is not None
        self._begun = True
        self._pieces.begin_call(self._name)
        self._pieces.arguments(arguments)

    def _string(self) -> Reading[str | None]:
        parts: list[str] = []
        if (yield from self._reader.peek()) != '"':
            return None
        if not (yield from self._reader.json(parts.append)):
            return None
        return str(json.loads("".join(parts)))


def _object_text(text: str) -> str | None:
    """Arguments as an object: some models write it as a string, or leave it away; None: they are
    something else."""
    if text.startswith("{"):
        return text
    if text == "null":
        return "{}"
    if text.startswith('"'):
        inner = str(json.loads(text))
        return inner if _is_object(inner) else None
    return None


def _is_object(text: str) -> bool:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def drop(_: str) -> None:
    """For what belongs to a call and says nothing to us."""
