"""The text side of one answer: deltas that may be shown, stop strings that may not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hotswap.contracts.answers import GenerationEvent, TextDelta, TokenLogprob
from hotswap.engine.decoding import Vocabulary
from hotswap.engine.drawing import Draw


class AnswerText:
    """Collects tokens, gives out text. Holds back whatever could still become a stop string."""

    def __init__(
        self, index: int, vocabulary: Vocabulary, stop: Sequence[str] = (), echo: str = ""
    ) -> None:
        self.index = index
        self.stop_sequence: str | None = None
        """The stop string that ended the answer."""
        self.reasoning_tokens = 0
        self._vocabulary = vocabulary
        self._decoder = vocabulary.decoder()
        self._stop = StopStrings(stop)
        self._ready = echo
        self._held = ""
        self._passed: list[int] = []
        """Where in the text stop strings may have begun that were not heeded."""
        self._decoded_chars = 0
        self._released_chars = 0
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        """With the place in the text where the token begins."""

    @property
    def called(self) -> bool:
        """Tool calls were made."""
        return False

    def begin(self, token: int) -> None:
        """Take the first token of a prompt whose tokens are told: nothing came before it."""
        self._logprobs.append((0, self._entry(token, None)))
        text = self._decoder.push(token)
        self._decoded_chars += len(text)
        self._release(text, held="")

    def tell_end(self, draw: Draw) -> None:
        """Give out the log-probability of the token that ends the answer and leaves no text."""
        self._logprobs.append((self._decoded_chars, self._logprob(draw)))

    def push(self, draw: Draw, *, may_stop: bool = True) -> bool:
        """Take a token; True: its text completed a stop string, which is cut off."""
        if draw.logprob is not None:
            self._logprobs.append((self._decoded_chars, self._logprob(draw)))
        new = self._decoder.push(draw.token)
        self._decoded_chars += len(new)
        text = self._held + new
        if not may_stop or not self._stop:
            self._release(text, held="")
            return False
        return self._stops_in(text)

    def finish(self, *, cut: bool = False) -> None:  # noqa: ARG002
        """No token follows: nothing needs to be held back. ``cut``: the model had not ended."""
        if self.stop_sequence is None:
            self._release(self._held + self._decoder.finish(), held="")
            self._released_chars += 1  # also tokens after the last character are given out

    def take(self) -> TextDelta | None:
        """What became ready since the last call."""
        if not self._ready and not self._logprobs:
            return None
        entries: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] < self._released_chars:
            entries.append(self._logprobs.pop(0)[1])
        if not self._ready and not entries:
            return None
        text, self._ready = self._ready, ""
        return TextDelta(index=self.index, text=text, logprobs=tuple(entries))

    def events(self) -> Iterable[GenerationEvent]:
        """What became ready since the last call, as it is told."""
        delta = self.take()
        return () if delta is None else (delta,)

    def _heeds_stop(self, text: str) -> bool | None:  # noqa: ARG002
        """A stop string that ``text``, which comes next, begins with ends the answer. None: that
        depends on what follows."""
        return True

    def _stops_in(self, text: str) -> bool:
        """Give ``text`` out, up to a stop string or to where one may have begun."""
        while True:
            found = self._stop.find(text)
            at = len(text) - self._stop.partial(text) if found is None else found[0]
            self._release(text[:at], held=text[at:])
            if self.stop_sequence is not None:
                return True
            if at == len(text):
                return False
            heeds = self._heeds_stop(text[at:])
            if heeds is None:
                return False
            if heeds:
                break
            self._passed.append(self._released_chars)
            self._release(text[at], held="")
            text = text[at + 1 :]
        if found is not None:
            self._held, self.stop_sequence = "", found[1]
            self._logprobs = [(c, entry) for c, entry in self._logprobs if c < self._released_chars]
        return found is not None

    def _release(self, text: str, *, held: str) -> None:
        self._ready += text
        self._released_chars += len(text)
        self._held = held

    def _logprob(self, draw: Draw) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in draw.top)
        return self._entry(draw.token, draw.logprob, top)

    def _entry(
        self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        raw = self._vocabulary.raw(token)
        return TokenLogprob(raw.decode(errors="replace"), raw, logprob, top)


class StopStrings:
    """Finds stop strings in text that arrives in pieces."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(string for string in strings if string)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def find(self, text: str) -> tuple[int, str] | None:
        """The stop string that begins first, the longest of several, and where."""
        found = [(text.find(string), -len(string), string) for string in self._strings]
        first = min((hit for hit in found if hit[0] >= 0), default=None)
        return None if first is None else (first[0], first[2])

    def at(self, text: str, place: int) -> str | None:
        """The stop string that is at that place in ``text``, the longest of several."""
        there = (string for string in self._strings if text.startswith(string, place))
        return max(there, key=len, default=None)

    def begun(self, text: str, place: int) -> bool:
        """A stop string may begin at that place, and go on behind ``text``."""
        left = len(text) - place
        return any(left < len(s) and s.startswith(text[place:]) for s in self._strings)

    def partial(self, text: str) -> int:
        """Characters at the end of ``text`` that a stop string could begin with."""
        return max((_overlap(text, string) for string in self._strings), default=0)


def _overlap(text: str, string: str) -> int:
    for size in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:size]):
            return size
    return 0
