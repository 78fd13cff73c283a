"""A chat's answer where the model may reason or call tools: `AnswerText`, taken apart."""

from __future__ import annotations

import secrets
import string
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hotswap.contracts.answers import (
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.engine.answer import AnswerText
from hotswap.engine.decoding import Vocabulary
from hotswap.engine.drawing import Draw
from hotswap.engine.speech.listener import Hearing, Listener
from hotswap.engine.speech.pieces import Piece

_LETTERS = string.ascii_letters + string.digits


class SpokenText(AnswerText):
    """Stop strings are looked for in all that the model writes, reasoning and marks included, as
    vLLM does; but none begins within a call, which would be cut in the middle of its arguments.
    What might have become a call is searched when it turns out to be text.
    Log-probabilities go with text and reasoning; those of calls and of marks are not given out."""

    def __init__(
        self,
        index: int,
        vocabulary: Vocabulary,
        hearing: Hearing,
        stop: Sequence[str] = (),
        echo: str = "",
    ) -> None:
        super().__init__(index, vocabulary, stop)
        if hearing.shown:
            self._decoder = vocabulary.decoder(hearing.shown, hearing.guard)
        self._short_ids = hearing.ids == "short"
        self._listener = Listener(hearing)
        self._last: Piece | None = None
        self._withheld: Piece | None = None
        """Text that was taken for a call and may be the beginning of a stop string."""
        self._over = False
        """Text that was taken for a call ended the answer."""
        self._events: list[GenerationEvent] = []
        if echo:
            self._events.append(TextDelta(index=index, text=echo))

    @property
    def called(self) -> bool:
        return self._listener.calls > 0

    def push(self, draw: Draw, *, may_stop: bool = True) -> bool:
        """True also where the only call that there may be is complete."""
        thought = self._listener.thinking
        stopped = super().push(draw, may_stop=may_stop)
        self.reasoning_tokens += thought and self._listener.thinking
        return stopped or (may_stop and self._listener.over)

    def finish(self, *, cut: bool = False) -> None:
        super().finish(cut=cut)
        self._listener.finish(cut=cut)
        self._gather(ended=True)
        last = self._last
        # Tokens after the last character belong to what they follow.
        rest = [entry for at, entry in self._logprobs if at >= self._listener.offset]
        self._logprobs.clear()
        if rest and last is not None and last.kind in ("text", "reasoning"):
            self._say(last, "", tuple(rest))

    def events(self) -> Iterable[GenerationEvent]:
        events, self._events = self._events, []
        return events

    def _heeds_stop(self, text: str) -> bool | None:
        calling = self._listener.calling(text)
        return None if calling is None else not calling

    def _release(self, text: str, *, held: str) -> None:
        if self._over:
            return
        self._released_chars += len(text)
        self._held = held
        if text:
            self._listener.push(text)
            self._gather()

    def _gather(self, *, ended: bool = False) -> None:
        """Make events of what the listener has heard."""
        pieces = self._joined(ended=ended)
        for piece in pieces:
            if self._over:
                return
            self._search(piece, is_last=piece is pieces[-1] and not ended)
            if piece.kind == "text" and piece.start == piece.end:
                continue  # all of it is cut off, or withheld
            entries = self._entries(piece)
            if piece.kind in ("text", "reasoning"):
                self._say(piece, piece.lead + piece.text, entries)
            elif piece.kind == "call":
                self._events.append(
                    ToolCallDelta(
                        index=self.index, call=piece.call, id=self._new_id(), name=piece.text
                    )
                )
            else:
                self._go_on(piece)
            self._last = piece

    def _joined(self, *, ended: bool) -> list[Piece]:
        """What the listener has heard, together with what was withheld."""
        pieces, withheld = self._listener.take(), self._withheld
        if withheld is None or not (pieces or ended):
            return pieces
        self._withheld = None
        if pieces and pieces[0].kind == "text" and pieces[0].start == withheld.end:
            pieces[0].start = withheld.start
            pieces[0].parts[:0] = withheld.parts
            pieces[0].lead = withheld.lead
        else:
            del self._passed[: bisect_left(self._passed, withheld.end)]
            pieces.insert(0, withheld)
        return pieces

    def _search(self, piece: Piece, *, is_last: bool) -> None:
        """Cut off a stop string in ``piece`` that was not heeded, and what follows it. Where one
        may have begun, that is withheld until more comes."""
        text, passed = piece.text, self._passed[: bisect_left(self._passed, piece.end)]
        del self._passed[: len(passed)]
        if piece.kind != "text":
            return
        places = [place - piece.start for place in passed if place >= piece.start]
        found = next(((at, stop) for at in places if (stop := self._stop.at(text, at))), None)
        begun = next((at for at in places if is_last and self._stop.begun(text, at)), None)
        if found is not None:
            end, self.stop_sequence = found
            self._held, self._over = "", True
            cut = piece.start + end
            self._logprobs = [(c, entry) for c, entry in self._logprobs if c < cut]
        elif begun is not None:
            end = begun
            lead = "" if end else piece.lead
            self._withheld = Piece("text", piece.start + end, piece.end, 0, [text[end:]], lead)
            self._passed[:0] = [piece.start + at for at in places if at >= end]
        else:
            return
        piece.parts, piece.end = [text[:end]], piece.start + end

    def _say(self, piece: Piece, text: str, entries: tuple[TokenLogprob, ...]) -> None:
        kind = ReasoningDelta if piece.kind == "reasoning" else TextDelta
        self._events.append(kind(index=self.index, text=text, logprobs=entries))

    def _go_on(self, piece: Piece) -> None:
        """The arguments of a call: in one event with its beginning, where both came together."""
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta) and last.call == piece.call:
            self._events[-1] = replace(last, arguments=last.arguments + piece.text)
        else:
            self._events.append(
                ToolCallDelta(index=self.index, call=piece.call, arguments=piece.text)
            )

    def _entries(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that ``piece`` is made of. Those before it are forgotten."""
        found: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] < piece.end:
            begin, entry = self._logprobs.pop(0)
            end = self._logprobs[0][0] if self._logprobs else self._decoded_chars
            if end > piece.start or begin >= piece.start:
                found.append(entry)
        return tuple(found)

    def _new_id(self) -> str:
        if self._short_ids:
            return "".join(secrets.choice(_LETTERS) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
