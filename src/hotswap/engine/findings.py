"""What was found out about models that have run, for the next time that they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotswap.contracts.models import ModelSpec
from hotswap.engine.front import Front
from hotswap.engine.prepared import LoadKey, TorchPrepared
from hotswap.engine.weights import Known

_KNOWN_MODELS = 32


class Findings:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._known: dict[LoadKey, Known] = {}
        self._cuts: dict[tuple[Any, ...], int] = {}

    @property
    def known(self) -> Mapping[LoadKey, Known]:
        """Of the weights of recent models."""
        return self._known

    def remember(self, prepared: TorchPrepared) -> None:
        """It has been on the device."""
        known = prepared.weights.known
        assert known is not None, "the model has been on the device"
        self._known.pop(prepared.key, None)
        self._known[prepared.key] = known
        while len(self._known) > _KNOWN_MODELS:
            del self._known[next(iter(self._known))]

    def remember_cut(self, prepared: TorchPrepared, max_model_len: int) -> None:
        """The room for keys and values of the last start stands for that of the next one."""
        key = _cut_key(prepared.front, prepared.spec)
        self._cuts.pop(key, None)
        if max_model_len < prepared.front.max_model_len:
            self._cuts[key] = max_model_len

    def longest(self, front: Front, spec: ModelSpec) -> int | None:
        """The longest context that there was memory for, where that is less than it was to be."""
        return self._cuts.get(_cut_key(front, spec))


def _cut_key(front: Front, spec: ModelSpec) -> tuple[Any, ...]:
    """What the room for keys and values depends on."""
    engine = spec.engine
    return front.key, engine.device, engine.device_map, engine.dtype, engine.kv_cache_memory
