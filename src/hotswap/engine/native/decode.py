"""Steps of a skeleton on the CPU, by compiled loops that read the weights where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.description import Description
from hotswap.engine.native.team import Team


class NativeDecode:
    """Computes steps of a few tokens. Owned by the device thread."""

    def __init__(
        self, skeleton: Skeleton, pool: KVPool, threads: int, *, matrices_from: int
    ) -> None:
        """
        Args:
            matrices_from: tokens in a step from which on the processor's matrices are used, where
                it has some and they fit.

        Raises:
            UnsupportedForward: the loops do not know something that the skeleton has.
        """
        self.threads = threads
        self._description = Description(skeleton, pool, threads, matrices_from)
        self._team = Team(self._description, threads)

    @property
    def has_matrices(self) -> bool:
        """The processor's can be used with these weights."""
        return self._description.has_matrices

    def use_matrices_from(self, tokens: int) -> None:
        """The same as `matrices_from`, from the next step on."""
        self._description.use_matrices_from(tokens)

    def step(
        self, segments: Sequence[Segment], ids: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the segments, of no more tokens than a `Description` has room for.

        Args:
            ids: their tokens, one of each, if the segments do not know them.

        Returns:
            For each segment that samples, logits, float32 [segments, vocab], which the next step
            overwrites, and the first of the largest of each row, int64 [segments].
        """
        described = self._description
        tokens, sampled = described.fill(segments, ids)
        self._team.run(tokens, sampled)
        return described.logits[:sampled], described.tokens[:sampled].clone()

    def rest(self) -> None:
        """Between a model's stays: no threads, and little memory."""
        self._team.close()
        self._description.rest()

    def wake(self) -> None:
        """Take steps again. The weights and the pool lie where they did."""
        self._team = Team(self._description, self.threads)

    def close(self) -> None:
        """Send the threads home."""
        self._team.close()
