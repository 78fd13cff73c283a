"""Answers of gpt-oss, in the format that is called harmony: messages, each with a header that names
its channel and, where it calls a tool, its recipient.

    <|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.

What is analysed is reasoning, what is for a tool of the request is a call, and all else is text.
Calls of other recipients (``python`` and ``browser``, which the model was taught and nobody here
runs, or tools that it thought up) are none: what they say is reasoning or text, as their channel
has it. Of marks and headers nothing is told, whole or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.call_object import arguments_object, drop
from hotswap.engine.speech.pieces import Pieces
from hotswap.engine.speech.reader import Markers, Reader, Reading
from hotswap.engine.speech.tools import Tools

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END = "<|constrain|>", "<|end|>"
RETURN, CALL = "<|return|>", "<|call|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL)
ENDS = (RETURN, CALL)
"""They end an answer; ``END`` ends a message, and another one may follow."""
GUARD = "\ufdd0"
"""A code point that no text has. It stands before marks that are tokens of their own, so that an
answer may spell them without being taken apart there."""
_ASSISTANT = "assistant"
_LONGEST_HEADER = 256
_CHANNEL = re.compile(r"<\|channel\|>\s*(analysis|commentary|final)?")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_KNOWN = re.compile(rf"{_CHANNEL.pattern}|\s*{_RECIPIENT.pattern}|\s*<\|constrain\|>\s*(json)?")
_NAMESPACE = "functions."


@dataclass(frozen=True, slots=True)
class Begun:
    """What the prompt has begun of the answer's first message."""

    header: str | None = _ASSISTANT
    """As far as it is written; None: nothing is begun."""
    in_body: bool = False


def begun_by(prompt: str) -> Begun:
    _, started, message = prompt.rpartition(START)
    header, in_body, body = message.partition(MESSAGE)
    if not started or any(marker in body for marker in (END, *ENDS)):
        return Begun(None)
    return Begun(header, bool(in_body))


# -- reading ---------------------------------------------------------------------------------


def read(
    reader: Reader, pieces: Pieces, begun: Begun | None = None, guard: str = ""
) -> Reading[None]:
    """An answer that begins to act another role is over: whatever follows is made up.

    Args:
        guard: as `hotswap.engine.speech.listener.Hearing` has it.
    """
    yield from _Answer(reader, pieces, guard).read(begun or Begun())


class _Answer:
    def __init__(self, reader: Reader, pieces: Pieces, guard: str) -> None:
        self._reader = reader
        self._pieces = pieces
        self._marks = {guard + marker: marker for marker in MARKERS}
        """As they stand in the text."""
        self._all = Markers(*self._marks)
        self._first = (guard + START)[0]

    def read(self, begun: Begun) -> Reading[None]:
        reader = self._reader
        if begun.header is None:
            marker: str | None = END
        elif begun.in_body:
            marker = yield from self._body(begun.header)
        else:
            marker = yield from self._message(begun.header)
        while marker is not None:
            if marker == START:
                yield from reader.spaces()
                named = yield from reader.skip(_ASSISTANT)
                if not named and (yield from reader.peek()) != self._first:
                    self._pieces.end()
                    yield from reader.rest(drop)
                    return
            begins = marker in (CHANNEL, MESSAGE, CONSTRAIN)
            marker = yield from self._message(_ASSISTANT, marker if begins else None)

    def _message(self, header: str, marker: str | None = None) -> Reading[str | None]:
        """Read the rest of a header, and what it is the header of.

        Args:
            header: what has been read of it, but for the ``marker`` that came last.

        Returns:
            The marker that ended the message; None at the end of the text.
        """
        reader = self._reader
        self._pieces.leave()
        more = marker or ""
        if marker is None and CHANNEL not in header:
            reader.note()
            yield from reader.spaces()
            word = yield from reader.skip("to=", *self._marks)
            if word is None:  # not even the beginning of a header
                return (yield from self._body(header, reader.noted()))
            marker = self._marks.get(word)
            more = marker or word
        while marker != MESSAGE:
            if marker in (START, END, *ENDS):
                return marker
            most = max(0, _LONGEST_HEADER - len(more))
            text, found = yield from reader.head(self._all, most)
            more += text
            if found is None:
                if (yield from self._broken_off(more)):
                    return None
                return (yield from self._body(header + more, _KNOWN.sub("", more).lstrip()))
            marker = self._marks[found]
            more += marker
        return (yield from self._body(header + more))

    def _broken_off(self, header: str) -> Reading[bool]:
        """The answer ends within what is a header, and not what is said after a channel's name."""
        at_end = not (yield from self._reader.peek())
        return at_end and (self._reader.cut or CONSTRAIN in header or "to=" in header)

    def _body(self, header: str, beginning: str = "") -> Reading[str | None]:
        """Read what a message says, up to the marker that ends it, which is returned.

        Args:
            beginning: has been read already.
        """
        reader, pieces = self._reader, self._pieces
        name = self._tool(header)
        if name is not None and not beginning:
            pieces.enter()
            called, marker = yield from self._call(name)
            if marker is not None:
                return marker
            if not called:
                pieces.begin_text()
                pieces.text(reader.noted())
            return (yield from self._until_marker(pieces.text))
        if "analysis" in _CHANNEL.findall(header)[-1:]:
            pieces.begin_reasoning()
            pieces.reasoning(beginning)
            marker = yield from self._until_marker(pieces.reasoning)
            if marker is not None:
                pieces.end_reasoning()
            return marker
        pieces.begin_text()
        pieces.text(beginning)
        return (yield from self._until_marker(pieces.text))

    def _until_marker(self, take: Callable[[str], None]) -> Reading[str | None]:
        found = yield from self._reader.until(self._all, take)
        return self._marks[found] if found else None

    def _tool(self, header: str) -> str | None:
        """The tool that a message is for."""
        found = _RECIPIENT.search(header)
        recipient = found[1] if found else ""
        names = (recipient, recipient.removeprefix(_NAMESPACE))
        return next((name for name in names if self._pieces.may_call(name)), None)

    def _call(self, name: str) -> Reading[tuple[bool, str | None]]:
        """Read the arguments of a call.

        Returns:
            Whether it is one, as `arguments_object` has it; and the marker that ended it, where
            there was nothing else.
        """
        reader, pieces = self._reader, self._pieces
        reader.note()
        yield from reader.spaces()
        found = yield from reader.skip(*self._marks)
        if found or (not (yield from reader.peek()) and not reader.cut):
            pieces.begin_call(name)
            pieces.arguments("{}")
            pieces.end_call()
            return True, self._marks[found] if found else None
        whole = yield from arguments_object(reader, pieces, name)
        if whole:
            pieces.end_calls(*self._marks)
        return whole, None


# -- what a guide is for ---------------------------------------------------------------------


def write(grammar: CallGrammar, tools: Tools) -> str:
    """One call, whatever is allowed: the model was taught to end its answer with it."""
    return grammar.any_of(
        f"{grammar.text(_call_header(tool.name))} {grammar.schema(tool.parameters)}"
        for tool in tools
    )


def _call_header(name: str) -> str:
    return f"{CHANNEL}commentary to={_NAMESPACE}{name} {CONSTRAIN}json{MESSAGE}"


def write_before(
    grammar: CallGrammar, begun: Begun, text: str | None, call: str | None
) -> str | None:
    """An answer that is ``text`` or ``call``, of which one at least is given, and what comes before
    it: one message of reasoning, or none, and then the header of the final one, which a call does
    without: it has its own. None: the prompt has begun something that cannot be gone on with."""
    again = START + _ASSISTANT
    final = [f"{grammar.text(f'{CHANNEL}final{MESSAGE}')} {text}"] if text else []
    last = _either(*final, *([call] if call else []))
    if begun.in_body:
        if "analysis" in _CHANNEL.findall(begun.header or "")[-1:]:
            return f"{grammar.text_up_to(END)} {grammar.text(again)} {last}"
        after = [f"{grammar.text(END + again)} {call}"] if call else []
        return _either(*([text] if text else []), *after)
    begins = {None: again, "": _ASSISTANT, _ASSISTANT: ""}.get(begun.header)
    if begins is None:
        return None
    head = grammar.text(f"{CHANNEL}analysis{MESSAGE}")
    thought = f"({head} {grammar.text_up_to(END)} {grammar.text(again)})?"
    return f"{grammar.text(begins)} {thought} {last}"


def _either(*choices: str) -> str:
    return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"
