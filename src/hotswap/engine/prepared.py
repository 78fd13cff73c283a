"""A model that is ready to be put on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hotswap.contracts.models import ModelSpec
from hotswap.engine.ahead import Ahead
from hotswap.engine.device import torch_device
from hotswap.engine.device_memory import Room
from hotswap.engine.front import Front
from hotswap.engine.preflight import WeightFiles
from hotswap.engine.weights import HostWeights

LoadKey = tuple[Any, ...]
"""Names the weights' files (where they lie, how large, since when) and what is made of them."""


@dataclass(frozen=True, slots=True)
class TorchPrepared:
    """`hotswap.contracts.engines.PreparedModel`."""

    spec: ModelSpec
    front: Front
    weights: HostWeights
    key: LoadKey
    ahead: Ahead | None = None
    """Its weights are on their way to the device, or there."""
    rooms: Sequence[Room] = ()
    """Where its parts are to be spread, the device that computes first; none: it lies whole on
    one."""

    @property
    def devices(self) -> Sequence[torch.device]:
        """Each once."""
        if not self.rooms:
            return (torch_device(self.spec.engine.device),)
        return tuple(dict.fromkeys(room.device for room in self.rooms))


def load_key(spec: ModelSpec, device: torch.device, path: Path, files: WeightFiles) -> LoadKey:
    """Raises: OSError."""
    states = ((file.name, file.stat()) for file in (*files.files, path / "config.json"))
    stamp = tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)
    engine = spec.engine
    made = engine.dtype, engine.trust_remote_code, engine.no_mmap
    return str(path.resolve()), stamp, *made, str(device)


def as_spread(key: LoadKey) -> LoadKey:
    """The same weights in modules of transformers', which a model that lies whole may have lost."""
    return (*key, "spread")
