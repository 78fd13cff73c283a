"""An answer as a row of blocks, for the dialects that do not have it as one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)


@dataclass(slots=True)
class Block:
    """Reasoning, text or one tool call, growing."""

    kind: Literal["reasoning", "text", "call"]
    index: int
    """Its place in the answer."""
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of a call: its arguments, as JSON text."""
        return "".join(self.pieces)

    @property
    def arguments(self) -> str | None:
        """JSON text of an object; None: the answer ended within them."""
        text = self.text or "{}"
        try:
            whole = isinstance(msgspec.json.decode(text), dict)
        except (msgspec.DecodeError, RecursionError):
            return None
        return text if whole else None


class Blocks:
    """The blocks of an answer with one choice. A block ends where the next one begins."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finished: Finished | None = None
        self._call: int | None = None
        """Number of the call that the last block is."""

    def add(self, event: GenerationEvent) -> Block | None:
        """The block that ``event`` is part of; None where it is of none."""
        if isinstance(event, Finished):
            self.finished = event
            return None
        if isinstance(event, ToolCallDelta):
            block = self._of_call(event)
            block.pieces.append(event.arguments)
            return block
        if not event.text:
            return None
        block = self._of_text(event)
        block.pieces.append(event.text)
        block.logprobs.extend(event.logprobs)
        return block

    def _of_text(self, delta: TextDelta | ReasoningDelta) -> Block:
        kind: Literal["reasoning", "text"] = "text" if isinstance(delta, TextDelta) else "reasoning"
        if self.all and self.all[-1].kind == kind:
            return self.all[-1]
        self._call = None
        return self._begin(Block(kind, len(self.all)))

    def _of_call(self, delta: ToolCallDelta) -> Block:
        if delta.call == self._call:
            return self.all[-1]
        if delta.name is None:
            raise AssertionError(f"call {delta.call} went on after something else had begun")
        self._call = delta.call
        return self._begin(Block("call", len(self.all), delta.id or "", delta.name))

    def _begin(self, block: Block) -> Block:
        self.all.append(block)
        return block


def text_of(event: GenerationEvent) -> str:
    """What the block of ``event`` grew by."""
    if isinstance(event, Finished):
        return ""
    return event.arguments if isinstance(event, ToolCallDelta) else event.text
