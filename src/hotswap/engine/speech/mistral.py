"""Calls of Mistral's models: a list of objects after ``[TOOL_CALLS]``, or, in newer ones, each
call after a marker of its own, as a name and its arguments."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import arguments_object, call_list, call_object
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_CALLS = Markers(CALLS)
_ID_END = Markers(ARGUMENTS)


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    while (yield from reader.until(_CALLS, pieces.text)):
        yield from reader.spaces()
        match (yield from reader.peek()):
            case "[":
                whole = yield from call_list(reader, pieces)
            case "{":
                whole = yield from call_object(reader, pieces)
            case _:
                whole = yield from _named(reader, pieces)
        if not whole:
            pieces.text(reader.noted())


def _named(reader: Reader, pieces: Pieces) -> Reading[bool]:
    name = yield from reader.skip(*pieces.tools.names)
    if name is None:
        return False
    yield from reader.spaces()
    marker = yield from reader.skip(ARGUMENTS, CALL_ID)
    if marker == CALL_ID and not (yield from reader.word(ARGUMENTS)):
        return False
    yield from reader.spaces()
    return (yield from arguments_object(reader, pieces, name))


def write_list(grammar: CallGrammar, tools: Tools) -> str:
    objects = grammar.several(grammar.call_object(tools, "arguments"), grammar.text(", "))
    return f"{grammar.text(CALLS + '[')} ({objects}) {grammar.text(']')}"


def write_named(grammar: CallGrammar, tools: Tools) -> str:
    return grammar.several(
        grammar.any_of(
            f"{grammar.text(CALLS + tool.name + ARGUMENTS)} {grammar.schema(tool.parameters)}"
            for tool in tools
        ),
        "",
    )
