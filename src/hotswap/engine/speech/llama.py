"""Calls of Llama 3: a bare JSON object, or one after ``<|python_tag|>``; several in a row."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import call_object
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

TAG = "<|python_tag|>"
_TAG = Markers(TAG)


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    """Without the tag only the beginning of an answer can be a call: further on, JSON is as likely
    to be an example that the model gives."""
    reader.note()
    yield from reader.spaces()
    if (yield from reader.peek()) == "{":
        yield from _calls(reader, pieces, marked=False)
    else:
        pieces.text(reader.noted())
    while (yield from reader.until(_TAG, pieces.text)):
        yield from reader.spaces()
        yield from _calls(reader, pieces, marked=True)


def _calls(reader: Reader, pieces: Pieces, *, marked: bool) -> Reading[None]:
    """One call after the other, and what turns out to be none."""
    while True:
        if not (yield from call_object(reader, pieces, strange_keys=False, marked=marked)):
            pieces.text(reader.noted())
            return
        marked = True
        pieces.end_calls()
        reader.note()
        yield from reader.spaces()
        yield from reader.skip(";", ",")
        yield from reader.spaces()
        yield from reader.skip(TAG)
        yield from reader.spaces()


def write(grammar: CallGrammar, tools: Tools) -> str:
    return grammar.several(grammar.call_object(tools, "parameters"), grammar.text("; "))
