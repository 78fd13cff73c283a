"""Calls of Phi-4-mini: a list of objects between ``<|tool_call|>`` markers, or after the word
``functools``."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import call_list
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
_OPEN = Markers(OPEN, "functools[")


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    while marker := (yield from reader.until(_OPEN, pieces.text)):
        yield from reader.spaces()
        if not (yield from call_list(reader, pieces, opened=marker != OPEN)):
            pieces.text(reader.noted())
            continue
        pieces.end_calls(CLOSE)
        yield from reader.spaces()
        yield from reader.skip(CLOSE)


def write(grammar: CallGrammar, tools: Tools) -> str:
    objects = grammar.several(grammar.call_object(tools, "arguments"), grammar.text(", "))
    return f"{grammar.text(OPEN + '[')} ({objects}) {grammar.text(']' + CLOSE)}"
