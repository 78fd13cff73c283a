"""Steps of a skeleton on the CPU, by compiled loops that read the weights where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.description import MOST_TOKENS, Description
from hotswap.engine.native.machine import may_use_matrices
from hotswap.engine.native.team import Team


class NativeDecode:
    """Computes steps of a few tokens. Owned by the device thread."""

    def __init__(self, skeleton: Skeleton, pool: KVPool, threads: int) -> None:
        """Raises: UnsupportedForward; the loops do not know something that the skeleton has."""
        self._description = Description(skeleton, pool, threads)
        self._team = Team(self._description, threads)

    def step(
        self, segments: Sequence[Segment], ids: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the segments, of `MOST_TOKENS` tokens at most.

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

    def close(self) -> None:
        """Send the threads home."""
        self._team.close()


def prompt_tokens(skeleton: Skeleton) -> int:
    """Up to how many tokens of prompts in a step the loops are faster than torch."""
    with_matrices = skeleton.embedding.dtype == torch.bfloat16 and may_use_matrices()
    return MOST_TOKENS if with_matrices else 16
