"""Reasoning: what a model thinks between two marks before it answers."""

from __future__ import annotations

from dataclasses import dataclass

from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading


@dataclass(frozen=True, slots=True)
class Marks:
    open: str
    close: str

    def left_open(self, text: str) -> bool:
        """``text`` ends within reasoning."""
        return text.rfind(self.open) > text.rfind(self.close)


MARKS = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]"))


def read(reader: Reader, pieces: Pieces, marks: Marks, *, opened: bool) -> Reading[None]:
    """Read the reasoning that an answer begins with, if it does. A mark further on is text.

    Args:
        opened: the prompt ended with the opening mark, or within the reasoning.
    """
    if opened:
        pieces.begin_reasoning()
        yield from reader.skip(marks.open)  # some models say it again
    else:
        spaces = yield from reader.spaces()
        if not (yield from reader.skip(marks.open)):
            pieces.text(spaces)
            return
        pieces.begin_reasoning()
    if (yield from reader.until(Markers(marks.close), pieces.reasoning)):
        pieces.end_reasoning()
