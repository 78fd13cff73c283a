"""Tier S on the CPU: small steps are computed by compiled loops, long prompts by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.decode import NativeDecode
from hotswap.engine.native.description import MOST_SAMPLED, MOST_TOKENS
from hotswap.engine.native.tuning import Tuning, tuning_of

_KEYS_OF_A_TOKEN = 500
"""That a prompt's tokens may see on average: the loops read each of them anew."""


class NativeForward(LeanForward):
    """`hotswap.engine.forward.base.GreedyForward`.

    A token's numbers are the same bits whatever else is in its step; in bfloat16 on processors with
    matrices, as long as it stays on the same side of `Tuning.matrices_from`.
    """

    def __init__(self, skeleton: Skeleton, pool: KVPool, tuning: Tuning | None = None) -> None:
        """
        Args:
            tuning: None: what is fastest here.

        Raises:
            UnsupportedForward: the loops do not know something that the skeleton has.
        """
        super().__init__(skeleton, pool)
        self._tuning = tuning or tuning_of(skeleton, torch.get_num_threads())
        self._decode: NativeDecode | None = self._made()

    def reserve(self, blocks: int) -> None:
        self._end_decode()
        super().reserve(blocks)
        self._decode = self._made()

    def grow(self, blocks: int) -> None:
        self._end_decode()
        try:
            super().grow(blocks)
        finally:
            self._decode = self._made()

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        if self._fits(segments):
            return self._computed(segments, ids)[0]
        lanes = _lanes(segments)
        rows = []
        for first in range(0, lanes, MOST_SAMPLED):
            part = slice(first, min(first + MOST_SAMPLED, lanes))
            own = None if ids is None else ids[part]
            rows.append(self._computed(segments[part], own)[0].clone())
        if lanes < len(segments):
            rows.append(super().logits(segments[lanes:]).float())
        return torch.cat(rows)

    def highest(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor | None:
        return self._computed(segments, ids)[1] if self._fits(segments) else None

    def rest(self) -> None:
        if self._decode is not None:
            self._decode.rest()

    def wake(self) -> None:
        if self._decode is not None and self._decode.threads == torch.get_num_threads():
            self._decode.wake()
        else:
            self._end_decode()
            self._decode = self._made()

    def close(self) -> None:
        self._end_decode()
        super().close()

    def _end_decode(self) -> None:
        if self._decode is not None:
            self._decode.close()
            self._decode = None

    def _made(self) -> NativeDecode:
        return NativeDecode(
            self.skeleton,
            self.pool,
            torch.get_num_threads(),
            matrices_from=self._tuning.matrices_from,
        )

    def _fits(self, segments: Sequence[Segment]) -> bool:
        """The loops are the faster way for all of it together."""
        prompts = segments[_lanes(segments) :]
        tokens = sum(len(segment.ids) for segment in prompts)
        keys = sum(len(segment.ids) * (segment.start + len(segment.ids)) for segment in prompts)
        return (
            len(segments) - len(prompts) + tokens <= MOST_TOKENS
            and sum(segment.samples for segment in segments) <= MOST_SAMPLED
            and tokens <= self._tuning.prompt_tokens
            and keys <= _KEYS_OF_A_TOKEN * max(1, tokens)
        )

    def _computed(self, segments: Sequence[Segment], ids: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self._decode is not None, "closed"
        return self._decode.step(segments, None if ids is None else ids.tolist())


def _lanes(segments: Sequence[Segment]) -> int:
    """How many of the segments are a single token; they come first."""
    return next((i for i, s in enumerate(segments) if len(s.ids) > 1), len(segments))
