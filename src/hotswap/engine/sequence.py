"""One answer in the making: its tokens, how far they are computed, how its next one is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotswap.contracts.answers import FinishReason
from hotswap.engine.answer import AnswerText
from hotswap.engine.blocks import BlockTable
from hotswap.engine.drawing import Draw, SamplingRow

if TYPE_CHECKING:  # llguidance: the scheduler does without
    from hotswap.engine.guide import Matcher


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Owned by the device thread from the moment it is submitted."""

    id: int
    tokens: list[int]
    """The prompt, then the answer."""
    prompt_tokens: int
    max_tokens: int
    """Of the answer; 0: a token that is drawn after the prompt is thrown away."""
    row: SamplingRow
    text: AnswerText
    end_ids: frozenset[int] = frozenset()
    """Drawing one of these ends the answer and leaves no text."""
    min_tokens: int = 0
    given: tuple[int, ...] = ()
    """The whole prompt, where the log-probabilities of its tokens are to be told; `tokens` then
    begins with the first one only. The others are drawn as an answer is, each from what it must be:
    so every forward and every sampler can do it, and there is never more than a row of logits."""
    is_first_choice: bool = True
    """Of its prompt."""
    cached_tokens: int | None = None
    """Of the prompt, whose keys and values were there when it was first admitted; None: it waits.
    """
    computed: int = 0
    """Tokens, from the first one on, whose keys and values are stored."""
    pending: int = 0
    """Tokens that a step on its way draws; they follow ``tokens``."""
    table: BlockTable = field(default_factory=BlockTable)
    """Where keys and values are stored."""
    guide: Matcher | None = None
    """What the answer must be. It ends as soon as it is that and nothing can follow, whatever
    ``min_tokens`` says and also without ``end_ids``."""
    finished: FinishReason | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.row.see_prompt(self.tokens)
        if self.given:
            self.text.begin(self.tokens[0])

    @property
    def answer_tokens(self) -> int:
        """Below 0 while some of the prompt are still to be drawn."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def length(self) -> int:
        """Tokens, those on their way included."""
        return len(self.tokens) + self.pending

    @property
    def remaining(self) -> int:
        """Tokens that are to be computed before the next one can be drawn."""
        return self.length - self.computed

    @property
    def decodes(self) -> bool:
        """Nothing but the last token is to be computed, and another one is wanted. (Where none is,
        it is the end of a prompt.)"""
        wants = self.max_tokens > 0 or self.answer_tokens < 0
        return wants and self.computed > 0 and self.remaining == 1

    @property
    def wants_more(self) -> bool:
        """The tokens on their way do not fill the answer up."""
        return self.answer_tokens + self.pending < self.max_tokens

    @property
    def lost(self) -> bool:
        """It has not ended, and nobody knows how to go on."""
        return self.finished is None and self.guide is not None and self.guide.failed

    def next_row(self) -> SamplingRow:
        """How the token is drawn that follows those on their way."""
        row = self.row
        row.position = max(0, self.answer_tokens + self.pending)
        may_end = row.position >= self.min_tokens
        if self.length < len(self.given):
            row.allowed = _only(self.given[self.length])
        elif self.guide is not None:
            row.allowed = self.guide.allowed(self.end_ids, may_end=may_end)
        else:
            row.allowed = None
            row.forbidden = frozenset() if may_end else self.end_ids
        return row

    def accept(self, draw: Draw) -> None:
        """Take the next token, and notice whether it is the last one."""
        self.pending -= 1
        if self.answer_tokens == self.max_tokens:
            self.finished = "length"
            return
        self.tokens.append(draw.token)
        if self.answer_tokens <= 0:
            self.row.see_prompt((draw.token,))
            self.text.push(draw, may_stop=False)
            if self.answer_tokens == self.max_tokens:
                self.finished = "length"
            return
        self.row.see(draw.token)
        count = self.answer_tokens
        ended = draw.token in self.end_ids
        if ended and self.given:  # who asks for a prompt's tokens takes the last one for the answer
            self.text.tell_end(draw)
        ended = ended or self.text.push(draw, may_stop=count >= self.min_tokens)
        if not ended and self.guide is not None:
            self.guide.advance(draw.token)
            ended = self.guide.complete
        if ended:
            self.finished = "stop"
        elif count >= self.max_tokens:
            self.finished = "length"


def _only(token: int) -> bytes:
    """As `hotswap.engine.drawing.SamplingRow.allowed`."""
    return bytes(token >> 3) + bytes((1 << (token & 7),))
