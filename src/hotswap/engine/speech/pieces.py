"""What an answer is taken apart into, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hotswap.engine.speech.reader import Reader
from hotswap.engine.speech.tools import Tools


@dataclass(slots=True)
class Piece:
    kind: Literal["text", "reasoning", "call", "arguments"]
    """"call": a call begins, and ``text`` is the name of its tool."""
    start: int
    """Where in the answer it begins."""
    end: int
    call: int = 0
    """Number of the call that it belongs to."""
    parts: list[str] = field(default_factory=list)
    lead: str = ""
    """What sets it apart from what was said before; it is not in the answer."""

    @property
    def text(self) -> str:
        return "".join(self.parts)


_APART = "\n\n"


class Pieces:
    """Gathers pieces. Spaces and line breaks that only stand between the parts of an answer belong
    to none of them."""

    def __init__(
        self, reader: Reader, tools: Tools, *, parallel: bool = True, silent: bool = False
    ) -> None:
        """
        Args:
            tools: those that may be called. A call of another one is no call but text: who sent
                the request could do nothing with it.
            silent: there is no text.
        """
        self.tools = tools
        self.calls = 0
        """That have begun."""
        self.over = False
        """The one call there may be is complete, or the model goes on with what is no answer. What
        else is said is not taken any more."""
        self.thinking = False
        self.calling = False
        """From where a call has begun to where text may follow."""
        self.outside = False
        """What is read belongs to no message, but says which one follows."""
        self._closings: tuple[str, ...] | None = None
        self._reader = reader
        self._silent = silent
        self._parallel = parallel
        self._pieces: list[Piece] = []
        self._gap: list[str] | None = []
        """Spaces that may turn out to stand before a text; None: within one."""
        self._tail: list[str] = []
        """Spaces that may turn out to end the reasoning."""
        self._thought = False
        """Some reasoning has been given out, or is over."""
        self._begins = True
        """Of the reasoning that is read, nothing has been given out."""
        self._kinds: set[str] = set()
        """Of the pieces that have been given out."""
        self._apart = False
        """The next text is one of its own."""

    def take(self) -> list[Piece]:
        """Those since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def may_call(self, name: object) -> bool:
        return name in self.tools.names and (self._parallel or self.calls == 0)

    def text(self, text: str) -> None:
        """The text ``text``, which was read last, is said."""
        self.calling = False
        if self._silent:
            return
        if self._gap is not None and text:
            if text.isspace():
                self._gap.append(text)
                return
            begins = not self.calls and not self._thought and not self._apart
            text = "".join(self._gap) + text if begins else text.lstrip()
            self._gap = None
        lead = _APART if self._apart and text else ""
        self._apart = self._apart and not text
        self._add("text", text, self._reader.offset, lead=lead)

    def leave(self) -> None:
        """What is read belongs to no message until one is entered."""
        self._reader.forget()
        self.calling = False
        self.outside = True

    def enter(self) -> None:
        self.outside = False

    def begin_text(self) -> None:
        """What is said from here on is a text of its own."""
        self.enter()
        self._gap = []
        self._apart = "text" in self._kinds

    def begin_reasoning(self) -> None:
        self._reader.forget()
        self.enter()
        self.thinking = True
        self._begins = True
        self._tail = []

    def reasoning(self, text: str) -> None:
        """The text ``text``, which was read last, is thought."""
        text = text.lstrip() if self._begins else text
        thought = text.rstrip()
        tail = text[len(thought) :]
        if not thought:
            self._tail += [tail] if tail else []
            return
        lead = _APART if self._begins and "reasoning" in self._kinds else ""
        end = self._reader.offset - len(tail)
        self._add("reasoning", "".join(self._tail) + thought, end, lead=lead)
        self._thought, self._begins = True, False
        self._tail = [tail]

    def end_reasoning(self) -> None:
        self._reader.forget()
        self.thinking = False
        self._thought = True
        self._gap = []

    def begin_call(self, name: str) -> None:
        """From here on what is read is no text any more, whatever follows."""
        self._reader.forget()
        self.calling = True
        self._closings = None
        self._gap = []
        offset = self._reader.offset
        if not self.over:
            self._pieces.append(Piece("call", offset, offset, self.calls, [name]))
        self.calls += 1

    def arguments(self, json: str) -> None:
        """The arguments of the call go on."""
        self._add("arguments", json, self._reader.offset, self.calls - 1)

    def end_call(self) -> None:
        self.over = not self._parallel

    def end(self) -> None:
        """What else is said is not taken."""
        self.over = True

    def end_calls(self, *closings: str) -> None:
        """The calls are whole. All that may follow before there is text is one of ``closings``."""
        self._closings = closings

    def goes_on(self, text: str) -> bool | None:
        """``text``, which has not been read, belongs to a call that has begun. None: that will be
        seen by what follows it."""
        if not self.calling or self._closings is None:
            return self.calling
        text = text.lstrip()
        if text.startswith(self._closings):
            return True
        return None if any(closing.startswith(text) for closing in self._closings) else False

    def finish(self) -> None:
        """The answer has ended."""
        if self.thinking:
            self._add("reasoning", "".join(self._tail), self._reader.offset)
        elif self._gap and not self.calls and not self._thought and not self._apart:
            self._add("text", "".join(self._gap), self._reader.offset)

    def _add(
        self,
        kind: Literal["text", "reasoning", "arguments"],
        text: str,
        end: int,
        call: int = 0,
        *,
        lead: str = "",
    ) -> None:
        if self.over or not text:
            return
        self._kinds.add(kind)
        start = end - len(text)
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.kind == kind and (kind == "arguments" or last.end == start):
            last.parts.append(text)
            last.end = end
        else:
            self._pieces.append(Piece(kind, start, end, call, [text], lead))
