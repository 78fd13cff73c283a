"""A model that is ready to be put on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotswap.contracts import ModelSpec
from hotswap.engine.ahead import Ahead
from hotswap.engine.front import Front
from hotswap.engine.weights import HostWeights

LoadKey = tuple[Any, ...]
"""Names the weights' files (where they lie, how large, since when) and what is made of them."""


@dataclass(frozen=True, slots=True)
class TorchPrepared:
    """`hotswap.contracts.PreparedModel`."""

    spec: ModelSpec
    front: Front
    weights: HostWeights
    key: LoadKey
    files: tuple[Path, ...]
    ahead: Ahead | None = None
    """Its weights are on their way to the device, or there."""
