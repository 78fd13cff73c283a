"""Grammars in Lark's notation, taken apart as far as somebody must know what is in them. What is
wrong with one is for the compiler to say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

_PIECE = re.compile(
    r"(?P<remark>(?://|#)[^\n]*)"
    r'|(?P<text>"(?:\\.|[^"\\\n])*"i?|<[^<>\s]*>)'
    r"|/(?P<regex>(?:\\.|[^/\\\n])+)/[imslux]*"
    r"|(?P<schema>%json\s*)(?=\{)"
    r"|(?P<times>\{[ \t\d+,]*\}|~[ \t]*[\d+]+(?:[ \t]*\.\.[ \t]*[\d+]+)?)"
    r"|(?P<name>[A-Za-z_][\w-]*)"
    r"|(?P<other>::|[^ \t])",
    re.S,
)
_decode = json.JSONDecoder().raw_decode

Kind = Literal["remark", "text", "regex", "schema", "times", "name", "other"]


@dataclass(frozen=True, slots=True)
class Piece:
    kind: Kind
    """"times": how often what is before it is repeated."""
    text: str
    """Of a regular expression: what is between its slashes. A special token is a text too."""
    start: int
    """In the source, as ``end``."""
    end: int
    schema: dict[str, Any] | None = None
    """What stands behind ``%json``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule or a terminal."""

    name: str
    body: tuple[Piece, ...]


def pieces_of(source: str) -> Iterator[Piece]:
    """Raises: RecursionError: a schema in it is nested too deeply."""
    at = 0
    while found := _PIECE.search(source, at):
        kind: Any = found.lastgroup
        at, schema = found.end(), None
        if kind == "schema":
            try:
                schema, at = _decode(source, found.end())
            except ValueError:
                kind = "other"
        yield Piece(kind, found[found.lastgroup or 0], found.start(), at, schema)


def rules_of(pieces: Iterable[Piece]) -> Iterator[Rule]:
    """A rule begins a line: with its name, perhaps something about it, and a colon. What comes
    before the first one is none's."""
    name, body, line = "", list[Piece](), list[Piece]()
    for piece in pieces:
        if piece.kind == "remark":
            continue
        if piece.text == "\n":
            body += line
            line = []
        elif piece.text == ":" and (defined := _defined(line)):
            if name:
                yield Rule(name, tuple(body))
            name, body, line = defined, [], [piece]
        else:
            line.append(piece)
    if name:
        yield Rule(name, (*body, *line))


def _defined(line: list[Piece]) -> str:
    """What a line begins with, up to its first colon: the name of a rule, or nothing."""
    first = next((piece for piece in line if piece.text not in ("!", "?")), None)
    return first.text if first is not None and first.kind == "name" else ""
