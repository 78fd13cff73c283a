"""Calls in ``<tool_call>`` tags, as Hermes, Qwen 2.5 and 3 and many after them write them."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import call_object
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OPEN = Markers(OPEN)


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    while (yield from reader.until(_OPEN, pieces.text)):
        yield from reader.spaces()
        if not (yield from call_object(reader, pieces)):
            pieces.text(reader.noted())
            continue
        pieces.end_calls(CLOSE)
        yield from reader.spaces()
        yield from reader.skip(CLOSE)


def write(grammar: CallGrammar, tools: Tools) -> str:
    body = grammar.call_object(tools, "arguments")
    call = f"{grammar.text(OPEN)} {grammar.text(chr(10))} {body} {grammar.text(chr(10) + CLOSE)}"
    return grammar.several(call, grammar.text("\n"))
