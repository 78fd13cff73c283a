"""Calls of models whose template knows tools but says nothing that we know of how they are called:
an answer that is a JSON object, or a list of them, and has the form of a call."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import call_list, call_object
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Reader, Reading
from hotswap.engine.speech.tools import Tools


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    reader.note()
    yield from reader.spaces()
    match (yield from reader.peek()):
        case "[":
            yield from call_list(reader, pieces, strange_keys=False, marked=False)
        case "{":
            marked = False
            while (yield from call_object(reader, pieces, strange_keys=False, marked=marked)):
                marked = True
                pieces.end_calls()
                reader.note()
                yield from reader.spaces()
    pieces.text(reader.noted())
    yield from reader.rest(pieces.text)


def write(grammar: CallGrammar, tools: Tools) -> str:
    return grammar.several(grammar.call_object(tools, "arguments"), grammar.text("\n"))
