"""Answers as a listener hears them, for tests."""

from __future__ import annotations

from typing import Any

from hotswap.engine.speech import harmony
from hotswap.engine.speech.families import FAMILIES, PLAIN, Family
from hotswap.engine.speech.listener import Hearing, Listener
from hotswap.engine.speech.pieces import Piece
from hotswap.engine.speech.thinking import MARKS
from hotswap.engine.speech.tools import Tools, tools_of

THINK, _ = MARKS
GIVEN = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "now": {"type": "boolean"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "weather_map"}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}},
)
TOOLS: Tools = tools_of(GIVEN)
Heard = list[tuple[str, str]]


def family(name: str) -> Family:
    return next(f for f in (*FAMILIES, PLAIN) if f.name == name)


def listener(name: str | None, **options: Any) -> Listener:
    """Reasoning is listened for, too, unless ``marks`` says otherwise."""
    read = family(name).read if name else None
    tools = TOOLS if name else Tools()
    given: dict[str, Any] = {"marks": THINK, "tools": tools, "read_calls": read}
    if name == "harmony":
        given |= {"marks": None, "marked_off": harmony.MARKERS}
    given |= options
    return Listener(Hearing(**given))


def hear(name: str | None, *texts: str, cut: bool = False, **options: Any) -> Heard:
    """The pieces of an answer that comes as ``texts``, those that go on with one another as one."""
    ear = listener(name, **options)
    pieces: list[Piece] = []
    for text in texts:
        ear.push(text)
        pieces += ear.take()
    ear.finish(cut=cut)
    return joined([*pieces, *ear.take()])


def joined(pieces: list[Piece]) -> Heard:
    heard: Heard = []
    before: Piece | None = None
    for piece in pieces:
        goes_on = before is not None and (before.kind, before.call) == (piece.kind, piece.call)
        if goes_on and piece.kind != "call":
            heard[-1] = (piece.kind, heard[-1][1] + piece.lead + piece.text)
        else:
            heard.append((piece.kind, piece.lead + piece.text))
        before = piece
    return heard


def call(name: str, arguments: str) -> Heard:
    return [("call", name), ("arguments", arguments)]
