"""JSON that arrives in pieces: where a value ends, and whether it is one, without reading any of
it twice."""

from __future__ import annotations

import re
from collections.abc import Callable

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
_NUMBERS: dict[str, dict[str, str]] = {
    "-": {"0": "0", "9": "9"},
    "0": {".": ".", "e": "e"},
    "9": {"0": "9", "9": "9", ".": ".", "e": "e"},
    ".": {"0": "f", "9": "f"},
    "f": {"0": "f", "9": "f", "e": "e"},
    "e": {"+": "s", "-": "s", "0": "x", "9": "x"},
    "s": {"0": "x", "9": "x"},
    "x": {"0": "x", "9": "x"},
}
"""From what has been read of a number to what may follow; 9 stands for 1 to 9, e for E."""
_WHOLE_NUMBERS = frozenset("09fx")
_Step = Callable[[str, int], int]


class JsonScanner:
    """Follows one JSON value. Its brackets are kept in a list, not on the interpreter's stack: a
    value may be nested as deeply as there is text.

    One thing more than JSON is let through: line breaks and other control characters in strings,
    which models write often. They come out as the escapes that they should have been.
    """

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._step: _Step = self._value
        self._closers: list[str] = []
        self._word = ""
        """What is still to come of a literal; what has come of a number or of an escape."""
        self._in_key = False
        self._out: list[str] = []
        self._from = 0

    def scan(self, text: str, at: int) -> int:
        """Where in ``text`` the value ends that goes on at ``at``, or where it stops being one."""
        self._from = at
        while at < len(text) and not self.done and not self.failed:
            at = self._step(text, at)
        self._out.append(text[self._from : at])
        return at

    def taken(self) -> str:
        """What was scanned since the last call, as JSON."""
        out = "".join(self._out)
        self._out.clear()
        return out

    def _value(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        char = text[at : at + 1]
        if char == "":
            return at
        if char in "{[":
            self._closers.append("}" if char == "{" else "]")
            self._step = self._first_key if char == "{" else self._first_item
        elif char == '"':
            self._in_key, self._step = False, self._string
        elif char in _LITERALS:
            self._word, self._step = _LITERALS[char], self._literal
        elif char == "-" or char in "0123456789":
            self._word, self._step = "9" if char in "123456789" else char, self._number
        else:
            return self._fail(at)
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if text[at] == "]":
            return self._close(at)
        return self._value(text, at)

    def _first_key(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at < len(text) and text[at] == "}":
            return self._close(at)
        return self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != '"':
            return self._fail(at)
        self._in_key, self._step = True, self._string
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != ":":
            return self._fail(at)
        self._step = self._value
        return at + 1

    def _after(self, text: str, at: int) -> int:
        at = _skip_space(text, at)
        if at == len(text):
            return at
        if text[at] == self._closers[-1]:
            return self._close(at)
        if text[at] != ",":
            return self._fail(at)
        self._step = self._key if self._closers[-1] == "}" else self._value
        return at + 1

    def _string(self, text: str, at: int) -> int:
        at = _end_of(_PLAIN, text, at)
        if at == len(text):
            return at
        if text[at] == '"':
            if self._in_key:
                self._step = self._colon
            else:
                self._end_value()
        elif text[at] == "\\":
            self._step = self._escape
        else:
            self._out += (text[self._from : at], f"\\u{ord(text[at]):04x}")
            self._from = at + 1
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._word, self._step = "", self._hex
        elif text[at] in _ESCAPES:
            self._step = self._string
        else:
            return self._fail(at)
        return at + 1

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            return self._fail(at)
        self._word += text[at]
        if len(self._word) == 4:
            self._step = self._string
        return at + 1

    def _literal(self, text: str, at: int) -> int:
        if text[at] != self._word[0]:
            return self._fail(at)
        self._word = self._word[1:]
        if not self._word:
            self._end_value()
        return at + 1

    def _number(self, text: str, at: int) -> int:
        char = text[at]
        char = "9" if char in "123456789" else "e" if char == "E" else char
        follows = _NUMBERS[self._word].get(char)
        if follows is not None:
            self._word = follows
            return at + 1
        if self._word not in _WHOLE_NUMBERS:
            return self._fail(at)
        self._end_value()
        return at

    def _close(self, at: int) -> int:
        self._closers.pop()
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        self.done = not self._closers
        self._step = self._after

    def _fail(self, at: int) -> int:
        self.failed = True
        return at


def _skip_space(text: str, at: int) -> int:
    return _end_of(_SPACE, text, at)


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
