"""Calls of DeepSeek's models: each between markers, with its name before a separator (V3.1), or
its kind there and then name and arguments as a block of code (V3, R1)."""

from __future__ import annotations

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import arguments_object
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
_OPEN = Markers(CALLS, CALL)
_BLOCK, _BLOCK_END = "\n```json\n", "\n```"


def read(reader: Reader, pieces: Pieces) -> Reading[None]:
    while marker := (yield from reader.until(_OPEN, pieces.text)):
        if marker == CALLS:
            yield from reader.spaces()
            if not (yield from reader.skip(CALL)):
                pieces.text(reader.noted())
                continue
        if not (yield from _call(reader, pieces)):
            pieces.text(reader.noted())
            continue
        pieces.end_calls("```", CALL_END, CALLS_END)
        yield from reader.spaces()
        yield from reader.skip("```")
        yield from reader.spaces()
        yield from reader.skip(CALL_END)
        yield from reader.spaces()
        yield from reader.skip(CALLS_END)


def _call(reader: Reader, pieces: Pieces) -> Reading[bool]:
    yield from reader.spaces()
    kind = yield from reader.skip("function" + SEPARATOR)
    name = yield from reader.skip(*pieces.tools.names)
    if name is None or not (kind or (yield from reader.skip(SEPARATOR))):
        return False
    yield from reader.spaces()
    if kind:
        yield from reader.skip("```json")
        yield from reader.spaces()
    return (yield from arguments_object(reader, pieces, name))


def write(grammar: CallGrammar, tools: Tools) -> str:
    """As V3.1 does."""
    return _write(grammar, tools, CALL, SEPARATOR, "")


def write_blocks(grammar: CallGrammar, tools: Tools) -> str:
    """As V3 and R1 do."""
    return _write(grammar, tools, CALL + "function" + SEPARATOR, _BLOCK, _BLOCK_END)


def _write(grammar: CallGrammar, tools: Tools, before: str, between: str, after: str) -> str:
    call = grammar.any_of(
        f"{grammar.text(before + tool.name + between)} {grammar.schema(tool.parameters)} "
        f"{grammar.text(after + CALL_END)}"
        for tool in tools
    )
    calls = grammar.several(call, grammar.text("\n") if after else "")
    return f"{grammar.text(CALLS)} ({calls}) {grammar.text(CALLS_END)}"
