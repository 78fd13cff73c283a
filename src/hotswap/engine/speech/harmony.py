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
_ALL = Markers(*MARKERS)
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


def read(reader: Reader, pieces: Pieces, begun: Begun | None = None) -> Reading[None]:
    """An answer that begins to act another role is over: whatever follows is made up."""
    begun = begun or Begun()
    if begun.header is None:
        marker: str | None = END
    elif begun.in_body:
        marker = yield from _body(reader, pieces, begun.header)
    else:
        marker = yield from _message(reader, pieces, begun.header)
    while marker is not None:
        if marker == START:
            yield from reader.spaces()
            if not (yield from reader.skip(_ASSISTANT)) and (yield from reader.peek()) != "<":
                pieces.end()
                yield from reader.rest(drop)
                return
        begins = marker in (CHANNEL, MESSAGE, CONSTRAIN)
        marker = yield from _message(reader, pieces, _ASSISTANT, marker if begins else None)


def _message(
    reader: Reader, pieces: Pieces, header: str, marker: str | None = None
) -> Reading[str | None]:
    """Read the rest of a header, and what it is the header of.

    Args:
        header: what has been read of it, but for the ``marker`` that came last.

    Returns:
        The marker that ended the message; None at the end of the text.
    """
    pieces.leave()
    reader.note()
    if marker is None and CHANNEL not in header:
        yield from reader.spaces()
        marker = yield from reader.skip("to=", *MARKERS)
        if marker is None:  # not even the beginning of a header
            return (yield from _body(reader, pieces, header, reader.noted()))
    more = marker or ""
    while marker != MESSAGE:
        if marker in (START, END, *ENDS):
            return marker
        text, marker = yield from reader.head(_ALL, max(0, _LONGEST_HEADER - len(more)))
        more += text
        if marker is None:
            if (yield from _broken_off(reader, more)):
                return None
            return (yield from _body(reader, pieces, header + more, _KNOWN.sub("", more).lstrip()))
        if marker != MESSAGE:
            more += marker
    return (yield from _body(reader, pieces, header + more))


def _broken_off(reader: Reader, header: str) -> Reading[bool]:
    """The answer ends within what is a header, and not what is said after the name of a channel."""
    at_end = not (yield from reader.peek())
    return at_end and (reader.cut or CONSTRAIN in header or "to=" in header)


def _body(reader: Reader, pieces: Pieces, header: str, beginning: str = "") -> Reading[str | None]:
    """Read what a message says, up to the marker that ends it, which is returned.

    Args:
        beginning: has been read already.
    """
    channels = _CHANNEL.findall(header)
    name = _tool(pieces, header)
    if name is not None and not beginning:
        pieces.enter()
        called, marker = yield from _call(reader, pieces, name)
        if marker is not None:
            return marker
        if not called:
            pieces.begin_text()
            pieces.text(reader.noted())
        return (yield from reader.until(_ALL, pieces.text))
    if "analysis" in channels[-1:]:
        pieces.begin_reasoning()
        pieces.reasoning(beginning)
        marker = yield from reader.until(_ALL, pieces.reasoning)
        if marker is not None:
            pieces.end_reasoning()
        return marker
    pieces.begin_text()
    pieces.text(beginning)
    return (yield from reader.until(_ALL, pieces.text))


def _tool(pieces: Pieces, header: str) -> str | None:
    """The tool that a message is for."""
    found = _RECIPIENT.search(header)
    recipient = found[1] if found else ""
    names = (recipient, recipient.removeprefix(_NAMESPACE))
    return next((name for name in names if pieces.may_call(name)), None)


def _call(reader: Reader, pieces: Pieces, name: str) -> Reading[tuple[bool, str | None]]:
    """Read the arguments of a call.

    Returns:
        Whether it is one, as `arguments_object` has it; and the marker that ended it, where there
        was nothing else.
    """
    reader.note()
    yield from reader.spaces()
    marker = yield from reader.skip(*MARKERS)
    if marker is not None or (not (yield from reader.peek()) and not reader.cut):
        pieces.begin_call(name)
        pieces.arguments("{}")
        pieces.end_call()
        return True, marker
    whole = yield from arguments_object(reader, pieces, name)
    if whole:
        pieces.end_calls(*MARKERS)
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


def write_before(grammar: CallGrammar, begun: Begun, guide: str, *, is_call: bool) -> str | None:
    """What comes before ``guide``, and that: one message of reasoning, or none, and then the header
    of the final one, which a call does without: it has its own. None: the prompt has begun
    something that cannot be gone on with."""
    again = START + _ASSISTANT
    last = guide if is_call else f"{grammar.text(f'{CHANNEL}final{MESSAGE}')} {guide}"
    if begun.in_body:
        if "analysis" in _CHANNEL.findall(begun.header or "")[-1:]:
            return f"{grammar.text_up_to(END)} {grammar.text(again)} {last}"
        return f"{grammar.text(END + again)} {last}" if is_call else guide
    begins = {None: again, "": _ASSISTANT, _ASSISTANT: ""}.get(begun.header)
    if begins is None:
        return None
    head = grammar.text(f"{CHANNEL}analysis{MESSAGE}")
    thought = f"({head} {grammar.text_up_to(END)} {grammar.text(again)})?"
    return f"{grammar.text(begins)} {thought} {last}"
