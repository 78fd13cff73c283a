"""From logits to tokens: bias, penalties, grammar, temperature, top-k, top-p, min-p, then one draw.

`hotswap.engine.sampler.reference` says exactly what is computed, in plain torch that runs anywhere;
`looped` is the same for the CPU in compiled loops, `fused` for CUDA in Triton. They draw the same
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from hotswap.engine.drawing import SamplingRow
from hotswap.engine.native.code import native_forward
from hotswap.engine.sampler.drawn import Drawn
from hotswap.engine.sampler.reference import ReferenceSampler

__all__ = ["Drawn", "Draws", "sampler_on"]


class Draws(Protocol):
    """A sampler of one device. Owned by the device thread."""

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Drawn:
        """One draw for each row of ``logits`` ([rows, vocab], any float type)."""


def sampler_on(device: torch.device) -> Draws:
    """The fastest one for logits on ``device``. What it takes is imported here; on the CPU that
    waits, the first time on a machine, until the loops are compiled."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from hotswap.engine.sampler.fused import FusedSampler  # noqa: PLC0415 - not on every machine

        return FusedSampler(device)
    if device.type == "cpu" and native_forward() is not None:
        from hotswap.engine.sampler.looped import LoopSampler  # noqa: PLC0415 - the same

        return LoopSampler()
    return ReferenceSampler()
