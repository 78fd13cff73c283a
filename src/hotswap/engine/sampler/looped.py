"""The sampler of the CPU, around the compiled loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotswap.engine.drawing import SamplingRow
from hotswap.engine.sampler import loops
from hotswap.engine.sampler.drawn import Drawn, Logprobs
from hotswap.engine.sampler.edits import Edits, forbidden_ids
from hotswap.engine.sampler.reference import highest
from hotswap.engine.sampler.settled import settle

_WORD_MASK = 0xFFFFFFFF


class LoopSampler:
    """Draws as `hotswap.engine.sampler.reference.ReferenceSampler` does."""

    def __init__(self) -> None:
        self._seats: dict[int, _Seat] = {}
        """Of the rows of the last draw, by identity."""
        self._room = _Room(0)

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Drawn:
        """One draw for each row of ``logits`` ([rows, vocab], any float type)."""
        if all(row.plain for row in rows):
            return Drawn(highest(logits))
        count, vocab = logits.shape
        if self._room.vocab != vocab:
            self._seats, self._room = {}, _Room(vocab)
        seats = [self._seats.get(id(row)) or _Seat(row, vocab) for row in rows]
        self._seats = {id(row): seat for row, seat in zip(rows, seats, strict=True)}
        for seat in seats:
            seat.edits.update()
        masks = [row.allowed for row in rows if row.allowed is not None]
        forbidden = [forbidden_ids(row, vocab) for row in rows]
        most = max((min(row.logprobs or 0, vocab) for row in rows), default=0)
        tokens, own = np.empty(count, np.int64), np.empty(count, np.float32)
        top, top_ids = np.empty((count, most), np.float32), np.empty((count, most), np.int64)
        draw: Any = loops.draw  # compiled: its types are not Python's
        draw(
            _numbers(logits),
            np.array([seat.floats for seat in seats], np.float32),
            _integers(rows, seats),
            _bounds([seat.edits.ids for seat in seats]),
            np.concatenate([seat.edits.ids for seat in seats]),
            np.concatenate([seat.edits.biases for seat in seats]),
            np.concatenate([seat.edits.counts for seat in seats]),
            _bounds(forbidden),
            np.concatenate(forbidden),
            _masks(masks, vocab),
            *self._room.arrays,
            tokens, own, top, top_ids,
        )  # fmt: skip
        return Drawn(torch.from_numpy(tokens), _logprobs(rows, own, top, top_ids))


class _Room:
    """What the loops compute in."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        blocks = -(-vocab // loops.BLOCK)
        size = blocks * loops.BLOCK
        self.arrays = (
            np.full(size, -np.inf, np.float32),
            np.empty(blocks, np.float32),
            np.empty(size + 1, np.float32),  # one more: what is not kept is written there
            np.empty(size + 1, np.int64),
        )


class _Seat:
    """What stays the same about a row, and its edits. Holds the row, so that its identity is not
    given away."""

    def __init__(self, row: SamplingRow, vocab: int) -> None:
        settled = settle(row.params, vocab)
        self.row = row
        self.edits = Edits(row, vocab)
        self.top_k = settled.top_k
        self.floats = (
            settled.scale,
            settled.top_p,
            settled.floor,
            settled.repetition,
            settled.frequency,
            settled.presence,
        )


def _numbers(logits: Tensor) -> NDArray[Any]:
    """As the loops take them: float32, or bfloat16 as uint16."""
    if logits.dtype == torch.bfloat16:
        return logits.contiguous().view(torch.uint16).numpy()
    return logits.float().contiguous().numpy()


def _integers(rows: Sequence[SamplingRow], seats: Sequence[_Seat]) -> NDArray[np.int64]:
    masked = accumulate(row.allowed is not None for row in rows)
    return np.array(
        [
            (
                seat.top_k,
                row.signed_seed,
                row.position & _WORD_MASK,
                -1 if row.logprobs is None else row.logprobs,
                -1 if row.allowed is None else number - 1,
            )
            for row, seat, number in zip(rows, seats, masked, strict=True)
        ],
        np.int64,
    )


def _bounds(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Where each begins when they are joined, and after the last one the end."""
    return np.fromiter(accumulate(map(len, lists), initial=0), np.int64)


def _masks(allowed: Sequence[bytes], vocab: int) -> NDArray[np.uint8]:
    octets = -(-vocab // 8)
    masks = np.zeros((len(allowed), octets), np.uint8)
    for mask, given in zip(masks, allowed, strict=True):
        known = np.frombuffer(given, np.uint8, min(len(given), octets))
        mask[: len(known)] = known
    return masks


def _logprobs(
    rows: Sequence[SamplingRow],
    own: NDArray[np.float32],
    top: NDArray[np.float32],
    top_ids: NDArray[np.int64],
) -> Logprobs | None:
    """None: nobody asks for them."""
    asked = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
    if not asked:
        return None
    index = list(asked)
    return Logprobs(
        tuple(asked),
        tuple(asked.values()),
        torch.from_numpy(own[index]),
        torch.from_numpy(top[index]),
        torch.from_numpy(top_ids[index]),
    )
