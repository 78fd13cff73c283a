"""Calls of Qwen3-Coder: not JSON but tags, ``<function=f><parameter=p>``, with the values as plain
text. What type a value has stands in the tool's schema only."""

from __future__ import annotations

import json
from typing import Any

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import drop
from hotswap.engine.speech.hermes import CLOSE, OPEN
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tool, Tools

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_OPEN = Markers(OPEN, FUNCTION)
_VALUE_END = Markers("\n" + PARAMETER_END, PARAMETER_END)


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    while marker := (yield from reader.until(_OPEN, pieces.text)):
        if marker == OPEN:
            yield from reader.spaces()
            if not (yield from reader.skip(FUNCTION)):
                pieces.text(reader.noted())
                continue
        name = yield from reader.word(">")
        if name is None or not pieces.may_call(name):
            pieces.text(reader.noted())
            continue
        yield from _function(reader, pieces, pieces.tools[name])


def _function(reader: Reader, pieces: Pieces, tool: Tool) -> Reading[None]:
    pieces.begin_call(tool.name)
    pieces.arguments("{")
    before = ""
    while True:
        yield from reader.spaces()
        reader.note()
        if not (yield from reader.skip(PARAMETER)):
            break
        name = yield from reader.word(">")
        if name is None:
            break
        reader.forget()
        pieces.arguments(f"{before}{_quoted(name)}: ")
        before = ", "
        if not (yield from _value(reader, pieces, tool.types_of(name))):
            return  # the answer ended within it
    closed = yield from reader.skip(FUNCTION_END)
    if reader.ended and not closed:  # cut off: it must not look whole
        yield from reader.rest(drop)
        return
    # Also where something strange follows: what there is, is whole.
    pieces.arguments("}")
    pieces.end_call()
    if not closed:
        pieces.text(reader.noted())
        return
    reader.forget()
    pieces.end_calls(CLOSE)
    yield from reader.spaces()
    yield from reader.skip(CLOSE)


def _value(reader: Reader, pieces: Pieces, types: frozenset[str]) -> Reading[bool]:
    yield from reader.skip("\n")
    if "string" in types or not types:
        pieces.arguments('"')

        def take(text: str) -> None:
            if not reader.ended:  # what is left then is the beginning of an end
                pieces.arguments(_escaped(text))

        found = yield from reader.until(_VALUE_END, take)
        if found:
            pieces.arguments('"')
    else:
        parts: list[str] = []
        found = yield from reader.until(_VALUE_END, parts.append)
        if found:
            pieces.arguments(_typed("".join(parts), types))
    reader.forget()
    return found is not None


def _typed(text: str, types: frozenset[str]) -> str:
    """A value that is not said to be a string, as JSON; as a string where it is nothing else."""
    word = text.strip()
    if word.lower() in ("true", "false") and "boolean" in types:
        return word.lower()
    if word in ("null", "None"):
        return "null"
    try:
        value: Any = json.loads(word, parse_constant=_no_constant)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)  # 1e999 is read as infinite
    except (ValueError, RecursionError):
        return _quoted(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]


def write(grammar: CallGrammar, tools: Tools) -> str:
    call = grammar.any_of(_write_function(grammar, tool) for tool in tools)
    return grammar.several(
        f"{grammar.text(OPEN)} {grammar.text(chr(10))} ({call}) {grammar.text(chr(10) + CLOSE)}",
        grammar.text("\n"),
    )


def _write_function(grammar: CallGrammar, tool: Tool) -> str:
    parts = [grammar.text(f"{FUNCTION}{tool.name}>\n")]
    for name in tool.properties:
        types = tool.types_of(name)
        words = tool.words_of(name)
        if words:
            value = grammar.any_of(grammar.text(f"{word}\n{PARAMETER_END}") for word in words)
        elif "string" in types or not types:
            value = grammar.text_up_to(PARAMETER_END)
        else:
            value = (
                f"{grammar.schema(tool.schema_of(name))} {grammar.text(chr(10) + PARAMETER_END)}"
            )
        part = f"{grammar.text(f'{PARAMETER}{name}>' + chr(10))} {value} {grammar.text(chr(10))}"
        parts.append(f"({part})" if name in tool.required else f"({part})?")
    return " ".join([*parts, grammar.text(FUNCTION_END)])
