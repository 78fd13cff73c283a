"""Drawn tokens on their way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hotswap.engine.drawing import Draw
from hotswap.engine.transfers import Fetched


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of some of a step's rows."""

    rows: tuple[int, ...]
    counts: tuple[int, ...]
    """How many of the likeliest tokens each of the rows asks for."""
    own: Tensor
    """[rows], of the drawn tokens."""
    top: Tensor
    """[rows, most], the largest first."""
    top_ids: Tensor
    """[rows, most], the tokens they belong to."""


class Drawn:
    """A step's draws. They go to the host by themselves; only `results` waits for them."""

    def __init__(self, tokens: Tensor, logprobs: Logprobs | None = None) -> None:
        self.tokens = tokens
        """int64 [rows], on the device."""
        self._logprobs = logprobs
        parts = [tokens]
        if logprobs is not None:
            parts += [logprobs.own, logprobs.top, logprobs.top_ids]
        self._fetched = Fetched(parts)

    def results(self) -> list[Draw]:
        """One `Draw` for each row."""
        ids, *others = self._fetched.wait()
        draws = [Draw(token) for token in ids.tolist()]
        if self._logprobs is None:
            return draws
        own, top, top_ids = (tensor.tolist() for tensor in others)
        asked = zip(self._logprobs.rows, self._logprobs.counts, strict=True)
        for place, (row, count) in enumerate(asked):
            pairs = zip(top_ids[place][:count], top[place][:count], strict=True)
            draws[row] = Draw(draws[row].token, own[place], tuple(pairs))
        return draws
