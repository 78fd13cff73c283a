"""Text that arrives in pieces, read from its front by whoever can wait for more."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from hotswap.engine.speech.json_text import JsonScanner

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Reads until it must wait, yields, and is resumed when there is more text or no more to come."""

_SPACES = re.compile(r"\s*")
_LONGEST_WORD = 256


class Markers:
    """Texts that are looked for together. None of them may begin another one."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self._longest = max(map(len, texts))
        self._all = re.compile("|".join(map(re.escape, texts)))
        self._first = re.compile("|".join({re.escape(text[0]) for text in texts}))

    def find(self, text: str, at: int) -> re.Match[str] | None:
        """The first one from ``at`` on."""
        return self._all.search(text, at)

    def begun(self, text: str, at: int) -> int:
        """Where, at the end of ``text``, one of them may have begun; else where it ends."""
        start = max(at, len(text) - self._longest + 1)
        for found in self._first.finditer(text, start):
            end = text[found.start() :]
            if any(marker.startswith(end) for marker in self._texts):
                return found.start()
        return len(text)


class Reader:
    """Holds what has not been read, and while it notes also what has: a stretch that turns out to
    be something else than it began like can be had again."""

    def __init__(self) -> None:
        self.ended = False
        """No more text will come."""
        self.cut = False
        """It was not the model that ended it."""
        self.offset = 0
        """Characters that have been read."""
        self.doubted = False
        """What is noted looks like text, although it may turn out to be something else."""
        self._text = ""
        self._at = 0
        self._noted: list[str] | None = None

    @property
    def unread(self) -> str:
        return self._text[self._at :]

    def add(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def note(self) -> None:
        """From here on, keep what is read."""
        self._noted = []
        self.doubted = False

    def noted(self) -> str:
        """What was read since `note`, or since the marker that `until` found; it is kept no
        longer. Nothing, where it was given up by `forget`."""
        noted, self._noted = self._noted, None
        return "".join(noted or ())

    def forget(self) -> None:
        self._noted = None

    @property
    def notes(self) -> bool:
        """It keeps what is read, and that is more than spaces."""
        return any(not part.isspace() for part in self._noted or ())

    def drop(self) -> None:
        """Read what there is, and give up what was noted unless it is spaces, or `doubted`."""
        self._read(len(self._text))
        if self.notes and not self.doubted:
            self._noted = None

    def peek(self) -> Reading[str]:
        """The next character, which is not read; none at the end."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def spaces(self) -> Reading[str]:
        spaces: list[str] = []
        while True:
            found = _SPACES.match(self._text, self._at)
            assert found is not None
            spaces.append(self._read(found.end()))
            if self.ended or self._at < len(self._text):
                return "".join(spaces)
            yield

    def skip(self, *words: str) -> Reading[str | None]:
        """Read one of ``words``, if it is what comes next: the longest of several."""
        for word in sorted(words, key=len, reverse=True):
            while not self.ended and self._may_become(word):
                yield
            if self._text.startswith(word, self._at):
                self._read(self._at + len(word))
                return word
        return None

    def word(self, end: str) -> Reading[str | None]:
        """Read a word, without spaces and not long, and the ``end`` that follows it; None: there
        is none, and some of it is read."""
        word = ""
        while len(word) <= _LONGEST_WORD:
            if (yield from self.skip(end)):
                return word
            char = yield from self.peek()
            if not char or char.isspace():
                return None
            word += self._read(self._at + 1)
        return None

    def head(self, markers: Markers, most: int) -> Reading[tuple[str, str | None]]:
        """Read up to the first marker and past it; or, where none comes within ``most`` characters
        or before the end, that far.

        Returns:
            What is before the marker, and the marker.
        """
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                end = found.start()
            else:
                end = len(self._text) if self.ended else markers.begun(self._text, self._at)
            if end - self._at > most or (found is None and self.ended):
                return self._read(min(end, self._at + most)), None
            if found is not None:
                text = self._read(end)
                self._read(found.end())
                return text, found[0]
            yield

    def until(self, markers: Markers, take: Callable[[str], None]) -> Reading[str | None]:
        """Read up to the first marker and past it; what is before it goes to ``take`` as it comes.
        Notes from the marker on.

        Returns:
            The marker; None at the end of the text.
        """
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                take(self._read(found.start()))
                self.note()
                self._read(found.end())
                return found[0]
            end = len(self._text) if self.ended else markers.begun(self._text, self._at)
            take(self._read(end))
            if self.ended:
                return None
            yield

    def rest(self, take: Callable[[str], None]) -> Reading[None]:
        """Read all that ever comes."""
        while True:
            take(self._read(len(self._text)))
            if self.ended:
                return
            yield

    def json(self, take: Callable[[str], None]) -> Reading[bool]:
        """Read a JSON value, which goes to ``take`` as it comes. False: it stopped being one, and
        what is wrong with it is not read, or the text ended."""
        scanner = JsonScanner()
        while not scanner.done:
            if not (yield from self.peek()):
                return False
            self._read(scanner.scan(self._text, self._at))
            taken = scanner.taken()
            if taken:
                take(taken)
            if scanner.failed:
                return False
        return True

    def _may_become(self, word: str) -> bool:
        have = len(self._text) - self._at
        return have < len(word) and word.startswith(self._text[self._at :])

    def _read(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        self.offset += len(text)
        if self._noted is not None and text:
            self._noted.append(text)
        return text
