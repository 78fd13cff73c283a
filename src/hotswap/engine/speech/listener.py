"""Listens to one answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hotswap.engine.speech import thinking
from hotswap.engine.speech.pieces import Piece, Pieces
from hotswap.engine.speech.reader import Reader, Reading
from hotswap.engine.speech.thinking import Marks
from hotswap.engine.speech.tools import Tools

ReadCalls = Callable[[Reader, Pieces], Reading[None]]
"""Reads an answer to its end: text, and the calls in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """How the answers to one prompt are listened to."""

    marks: Marks | None = None
    """Of reasoning; None: there is none, or it is over already."""
    opened: bool = False
    """The answer begins within the reasoning."""
    read_calls: ReadCalls | None = None
    tools: Tools = field(default_factory=Tools)
    demanded: bool = False
    """Beside reasoning and calls nothing is said."""
    parallel: bool = True
    """Several calls in one answer are taken; else it ends with the first one."""
    marked_off: tuple[str, ...] = ()
    """Marks that are never text, wherever they stand."""
    shown: frozenset[int] = frozenset()
    """Special tokens that stand for something in the text."""
    guard: str = ""
    """Stands before each of them there."""
    ids: Literal["long", "short"] = "long"
    """What ids of calls look like: "short" is nine letters and digits, which Mistral's templates
    insist on."""


class Listener:
    """Takes the text of an answer, gives out its pieces."""

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing
        self._reader = Reader()
        self._pieces = Pieces(
            self._reader, hearing.tools, parallel=hearing.parallel, silent=hearing.demanded
        )
        self._reading = self._read()
        next(self._reading, None)

    @property
    def thinking(self) -> bool:
        return self._pieces.thinking

    @property
    def calls(self) -> int:
        """That have begun."""
        return self._pieces.calls

    def calling(self, text: str) -> bool | None:
        """``text``, which comes next, belongs to a call, or to what may become one; or it begins
        with, or within, what is told to nobody. None: its beginning may be that of the mark which
        closes a call, or not."""
        unread = self._reader.unread
        if self._pieces.outside or (unread + text).startswith(self._hearing.marked_off):
            return True
        if self.thinking or self._hearing.read_calls is None:
            return False
        if self._hearing.demanded or self._reader.notes:
            return True
        return self._pieces.goes_on(unread + text) if self._pieces.calling else bool(unread)

    @property
    def over(self) -> bool:
        """Nothing that follows will be taken."""
        return self._pieces.over

    @property
    def offset(self) -> int:
        """Characters of the answer that it has decided about."""
        return self._reader.offset

    def push(self, text: str) -> None:
        self._reader.add(text)
        next(self._reading, None)

    def finish(self, *, cut: bool = False) -> None:
        """The answer has ended; ``cut``: not by itself. Then what is still undecided is the
        beginning of a mark or of a call, and no text; see also `Reader.doubted`."""
        self._reader.ended, self._reader.cut = True, cut
        if cut:
            self._reader.drop()
        next(self._reading, None)
        self._pieces.finish()

    def take(self) -> list[Piece]:
        return self._pieces.take()

    def _read(self) -> Reading[None]:
        hearing, reader, pieces = self._hearing, self._reader, self._pieces
        if hearing.marks is not None:
            yield from thinking.read(reader, pieces, hearing.marks, opened=hearing.opened)
        if hearing.read_calls is not None:
            yield from hearing.read_calls(reader, pieces)
        else:
            yield from reader.rest(pieces.text)
