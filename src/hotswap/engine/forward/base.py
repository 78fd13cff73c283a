"""What the runner asks of a tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hotswap.engine.blocks import BlockTable
from hotswap.engine.drawing import SamplingRow

if TYPE_CHECKING:  # layout.py, which takes segments, does without torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Some consecutive tokens of one sequence, to be computed in this step."""

    sequence: int
    ids: Sequence[int]
    start: int
    """Position in the sequence of the first one; what comes before it has been computed."""
    samples: bool
    """The logits after the last one are wanted."""
    table: BlockTable
    """Where the sequence's keys and values lie, these tokens' included."""


class Forward(Protocol):
    """Computes steps of one model and holds the state of its sequences."""

    tier: str
    chunked: bool
    """A prompt may be computed in several calls, and what lies in a block may be another
    sequence's."""

    def reserve(self, blocks: int) -> None:
        """Make room for so many blocks. What was stored is lost."""

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        """The next-token logits of each segment that samples, in order: [segments, vocab].

        Args:
            ids: int64 [segments] on the device, if those of the segments, one of each, are not yet
                known to the host; what the segments hold are then no more than placeholders.
        """

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Copy what lies in blocks: from the first of each pair to the second, all of them read
        before any is written."""

    def drop(self, sequence: int) -> None:
        """Forget what is kept of a sequence outside its blocks; unknown ones are none."""

    def close(self) -> None:
        """Free what was reserved, and leave the model as it was found."""


@runtime_checkable
class GreedyForward(Forward, Protocol):
    """One that finds the likeliest tokens itself, sooner than they are found among its logits."""

    def highest(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor | None:
        """The token of the largest logit of each segment, the first one among equals: int64
        [segments], overwritten by the next step. None: not in such a step, and nothing has been
        computed. See `logits`."""


@runtime_checkable
class DrawingForward(Forward, Protocol):
    """One that draws tokens itself, in one go with what they are drawn from."""

    def drawn(
        self, segments: Sequence[Segment], rows: Sequence[SamplingRow], ids: Tensor | None = None
    ) -> Tensor | None:
        """A token for each segment, drawn as its row asks; log-probabilities are not told. int64
        [segments], overwritten by the next step. None: not in such a step, and nothing has been
        computed. See `logits`."""


class UnsupportedForward(Exception):
    """The model cannot run in this tier."""
