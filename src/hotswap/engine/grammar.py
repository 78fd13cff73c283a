"""What a guide asks for, as a grammar that llguidance compiles: sizes checked, nothing fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from llguidance import regex_to_lark

from hotswap.contracts.requests import Guide
from hotswap.engine.lark import Piece, pieces_of, rules_of
from hotswap.engine.repetition import most_repeated, unrolled
from hotswap.errors import InvalidRequest

_MOST_BYTES = {"json_schema": 131072, "grammar": 65536, "regex": 16384, "choice": 131072}
"""Of a guide's source. Compiling takes time in the square of it: a schema of 2,000 properties takes
a second, and then every token does too long."""
_MOST_UNROLLED = 10_000
"""Characters of a regular expression whose repetitions are written out, and how often a grammar may
repeat something. With a million characters a single step took four seconds and 170 MB, whatever
limit llguidance was given."""
_MOST_COUNTED = 250_000
"""Characters, items or members that a schema counts to. Answers of that length are longer than most
contexts, and such a count beside a pattern or within another one ends an answer in its middle."""
_COUNTING = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
)
_MOST_RULES = 500
"""Of a grammar. Where each leads to the next and the last one is missing, finding that out takes
time in the square of them: 500 took 8 s on a busy machine, 1,000 took 29."""
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}
"""One space after a comma or a colon, as models like to write it, or none, and no other white
space: a model that is free to write some may do nothing else until it is cut off. What cannot be
enforced is refused."""
_NAMES = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "grammar": "grammar",
}


@dataclass(frozen=True, slots=True)
class Preamble:
    """What may come before that which a guide is for: any text that ends with a marker."""

    close: str
    """The marker, such as ``</think>``. It need not be one token."""
    open: str | None = None
    """Where given, an answer may begin with this marker and then must reach ``close``, or begin
    with what the guide is for. None: it begins inside."""


@dataclass(frozen=True, slots=True)
class WrittenPreamble:
    """One that is a grammar of its own, in Lark's notation; what the guide is for is ``@guide``,
    and calls that may stand in its place are ``@calls``."""

    source: str


def grammar_of(
    guide: Guide,
    preamble: Preamble | WrittenPreamble | None,
    markers: Mapping[str, int],
    calls: str | None = None,
) -> str:
    """In llguidance's own notation; whether it compiles is not known yet.

    Args:
        markers: texts that are tokens of their own, which no other text spells, and their ids.
        calls: a grammar of what may stand where that would which the guide is for, as
            `hotswap.engine.speech.call_grammar` writes it.

    Raises:
        InvalidRequest
    """
    try:
        guide.source.encode()
    except UnicodeEncodeError:
        refuse(guide, "it has half a character.")
    if is_too_large(guide):
        refuse(guide, f"it is larger than {_MOST_BYTES[guide.kind]} bytes.")
    parts = [
        {"lark_grammar": _beginning(preamble, markers, "(@guide | @calls)" if calls else "@guide")},
        {"name": "guide", **_PARTS[guide.kind](guide)},
    ]
    if calls:
        parts.append({"name": "calls", "lark_grammar": calls})
    try:
        text = json.dumps({"grammars": parts}, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError:
        refuse(guide, "it has a number that JSON cannot have, or half a character.")
    return text


def is_too_large(guide: Guide) -> bool:
    return len(guide.source.encode(errors="replace")) > _MOST_BYTES[guide.kind]


def refuse(guide: Guide, reason: str, error: type[InvalidRequest] = InvalidRequest) -> NoReturn:
    """Raises: ``error``."""
    subject = guide.subject or _NAMES[guide.kind]
    raise error(f"The {subject} cannot be used: {reason}", param=guide.param) from None


def _beginning(
    preamble: Preamble | WrittenPreamble | None, markers: Mapping[str, int], answer: str
) -> str:
    """The first rule of all. Without forcing, a text that is sure to come may be written in any
    tokens: llguidance would tokenize it by a call of Python's, at every such place."""
    lines = ['%llguidance {"no_forcing": true}']
    if preamble is None:
        return "\n".join([*lines, f"start: {answer}"])
    if isinstance(preamble, WrittenPreamble):
        return "\n".join([*lines, preamble.source])
    thought = "thought BREAK"
    if preamble.close in markers:
        lines += [f"thought: TEXT <[{markers[preamble.close]}]>", r"TEXT: /(.|\n)*/"]
    else:
        lines += [rf"thought[lazy]: /(.|\n)*{_literal(preamble.close)}/"]
    if preamble.open is not None:
        token = markers.get(preamble.open)
        mark = f"/{_literal(preamble.open)}/" if token is None else f"<[{token}]>"
        thought = f"({mark} {thought})?"
    return "\n".join([*lines, r"BREAK: /\n{0,2}/", f"start: {thought} {answer}"])


def _schema(guide: Guide) -> dict[str, Any]:
    schema = _read(guide)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        refuse(guide, "it is not an object.")
    _check_schema(guide, schema)
    return {"json_schema": _enforceable(schema)}


def _regex(guide: Guide) -> dict[str, Any]:
    _check_regex(guide, guide.source)
    # Digits are 0 to 9: of the others, every library knows different ones.
    return {"lark_grammar": f"start: /{regex_to_lark(guide.source, use_ascii='d')}/"}


def _choice(guide: Guide) -> dict[str, Any]:
    texts = _read(guide)
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        refuse(guide, "it must be a list of texts that is not empty.")
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        refuse(guide, "it has half a character.")
    return {"lark_grammar": f"start: /({'|'.join(map(_literal, texts))})/"}


def _lark(guide: Guide) -> dict[str, Any]:
    try:
        pieces = list(pieces_of(guide.source))
    except RecursionError:
        refuse(guide, "a schema in it is nested too deeply.")
    rules = list(rules_of(pieces))
    if len(rules) > _MOST_RULES:
        refuse(guide, f"it has more than {_MOST_RULES} rules.")
    for piece in pieces:
        if piece.kind == "regex":
            _check_regex(guide, piece.text)
        elif piece.schema is not None:
            _check_schema(guide, piece.schema)
    if most_repeated(rules) > _MOST_UNROLLED:
        refuse(guide, f"it repeats something more than {_MOST_UNROLLED} times.")
    return {"lark_grammar": _with_options(guide.source, pieces)}


def _with_options(source: str, pieces: Iterable[Piece]) -> str:
    """Schemas within a grammar are enforced as those that stand alone are."""
    parts, end = list[str](), 0
    for piece in pieces:
        if piece.schema is not None:
            schema = json.dumps(_enforceable(piece.schema), ensure_ascii=False)
            parts += [source[end : piece.start], "%json ", schema]
            end = piece.end
    return "".join([*parts, source[end:]])


def _enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """With our options, and without a word that asks for nothing, but that llguidance refuses."""
    return {**_without_idle_words(schema), "x-guidance": _JSON}


def _without_idle_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: _without_idle_words(inner) for name, inner in value.items()}
        if kept.get("uniqueItems") is False:
            del kept["uniqueItems"]
        return kept
    return [*map(_without_idle_words, value)] if isinstance(value, list) else value


_PARTS = {"json_schema": _schema, "regex": _regex, "choice": _choice, "grammar": _lark}


def _read(guide: Guide) -> Any:
    try:
        return json.loads(guide.source)
    except RecursionError:
        refuse(guide, "it is nested too deeply.")
    except ValueError as error:
        refuse(guide, f"it is not JSON: {error}.")


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """All names and values of all objects in ``value``."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield from item.items()
            left += item.values()
        elif isinstance(item, list):
            left += item


def _literal(text: str) -> str:
    """A regular expression for just that text."""
    return re.sub(r"[^A-Za-z0-9]", lambda other: rf"\x{{{ord(other[0]):x}}}", text)


def _check_schema(guide: Guide, schema: Any) -> None:
    for name, value in _members(schema):
        if name in _COUNTING and isinstance(value, int | float) and value > _MOST_COUNTED:
            refuse(guide, f"{name} is more than {_MOST_COUNTED}.")
        elif name == "pattern" and isinstance(value, str):
            _check_regex(guide, value)
        elif name == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_regex(guide, pattern)


def _check_regex(guide: Guide, pattern: str) -> None:
    if unrolled(pattern) > _MOST_UNROLLED:
        refuse(guide, f"a pattern in it stands for more than {_MOST_UNROLLED} characters.")
