"""Tier S on the CPU: decoding sequences are computed by compiled loops, prompts by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.decode import MOST_ROWS, NativeDecode


class NativeForward(LeanForward):
    """`hotswap.engine.forward.base.GreedyForward`.

    A newest token is computed in the same way whatever else is in its step, so that an answer does
    not depend on the company it is in.
    """

    def __init__(self, skeleton: Skeleton, pool: KVPool) -> None:
        """Raises: UnsupportedForward; the loops do not know something that the skeleton has."""
        super().__init__(skeleton, pool)
        self._decode: NativeDecode | None = self._made()

    def reserve(self, blocks: int) -> None:
        self._end_decode()
        super().reserve(blocks)
        self._decode = self._made()

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        lanes = _lanes(segments)
        if lanes == len(segments) <= MOST_ROWS:
            return self._decoded(segments, ids, 0)[0]
        rows = [
            self._decoded(segments[first : min(first + MOST_ROWS, lanes)], ids, first)[0].clone()
            for first in range(0, lanes, MOST_ROWS)
        ]
        if lanes < len(segments):
            rows.append(super().logits(segments[lanes:]).float())
        return torch.cat(rows)

    def highest(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor | None:
        if _lanes(segments) < len(segments) or len(segments) > MOST_ROWS:
            return None
        return self._decoded(segments, ids, 0)[1]

    def close(self) -> None:
        self._end_decode()
        super().close()

    def _end_decode(self) -> None:
        if self._decode is not None:
            self._decode.close()
            self._decode = None

    def _made(self) -> NativeDecode:
        return NativeDecode(self.skeleton, self.pool, torch.get_num_threads())

    def _decoded(
        self, segments: Sequence[Segment], ids: Tensor | None, first: int
    ) -> tuple[Tensor, Tensor]:
        assert self._decode is not None, "closed"
        if ids is None:
            tokens = [segment.ids[0] for segment in segments]
        else:
            tokens = ids[first : first + len(segments)].tolist()
        return self._decode.step(segments, tokens)


def _lanes(segments: Sequence[Segment]) -> int:
    """How many of the segments are a newest token; they come first."""
    lanes = 0
    for segment in segments:
        if len(segment.ids) > 1 or not segment.samples:
            break
        lanes += 1
    return lanes
