"""What a row's parameters come down to: the numbers that every back end computes with.

Settled once, on the host, so that no back end rounds them in its own way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hotswap.engine.drawing import DrawParams

LARGEST_SCALE = 2.0**100
"""Of one over the temperature: a difference of logits times this may be infinite, never no number
at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """All floats are float32 numbers."""

    scale: float
    """One over the temperature; 0: the largest logit wins."""
    top_k: int
    """0: any number of tokens."""
    top_p: float
    """1 or more: all of the mass."""
    floor: float
    """How far below the largest logit min-p ends, a number <= 0."""
    repetition: float
    frequency: float
    presence: float

    @property
    def greedy(self) -> bool:
        return self.scale == 0


def settle(params: DrawParams, vocab: int) -> Settled:
    """``params`` for rows of ``vocab`` logits."""
    drawn = params.temperature * LARGEST_SCALE >= 1
    floor = -math.inf
    if drawn and params.min_p > 0:
        floor = min(0.0, params.temperature * math.log(params.min_p))
    return Settled(
        scale=_float32(1 / params.temperature) if drawn else 0.0,
        top_k=params.top_k if 0 < params.top_k < vocab else 0,
        top_p=_float32(params.top_p),
        floor=_float32(floor),
        repetition=_float32(params.repetition_penalty),
        frequency=_float32(params.frequency_penalty),
        presence=_float32(params.presence_penalty),
    )


def _float32(value: float) -> float:
    return float(np.float32(value))
