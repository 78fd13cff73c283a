"""Whether a model would fit, from the headers of its files and its configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hotswap.contracts.models import EngineConfig, ModelSpec
from hotswap.contracts.reports import Estimate
from hotswap.engine.device_map import (
    DEVICE_RESERVE_BYTES,
    DeviceMap,
    divide,
    kv_limit,
)
from hotswap.engine.front import Front
from hotswap.engine.weights import torch_dtype

HOST_RESERVE_BYTES = 256 << 20
"""Host memory that a load leaves free."""
_KV_SHARE, _KV_SHARE_APART = 0.3, 0.9
"""Of the memory that is free once the weights are in place: the host's, and a device's own."""
_SPREAD_KV_SHARE = 1 / 8
"""Of the memory of all devices: what a model that is spread leaves free for keys and values, where
the settings say neither how many bytes nor how many tokens."""


def kv_room(free: int, *, is_apart: bool) -> int:
    """Bytes that keys and values may take where no setting says so.

    Args:
        free: What the weights leave.
        is_apart: Of a device with memory of its own.
    """
    return max(0, int(free * (_KV_SHARE_APART if is_apart else _KV_SHARE)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model takes, in bytes."""

    weights: int
    token: int
    """Of keys and values, of a token."""
    max_model_len: int
    """Tokens of a sequence at most."""
    engine: EngineConfig

    @property
    def kv(self) -> int:
        """Keys and values of one sequence as long as the model takes."""
        return self.token * self.max_model_len

    @property
    def least_kv(self) -> int:
        """As many as there must be room for."""
        if self.engine.kv_cache_memory is not None:
            return self.engine.kv_cache_memory
        return self.kv if self.engine.max_model_len is not None else self.token


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """Bytes that are free once the resident model has left."""

    host: int
    device: int
    is_apart: bool
    """The device has memory of its own."""


def need_of(
    spec: ModelSpec, front: Front, weights_bytes: int, token_bytes: int | None = None
) -> Need:
    """
    Args:
        token_bytes: Of keys and values, where it is known because the model has run; None: as its
            configuration says.

    Raises:
        CheckpointRefused: there is no such dtype.
    """
    if front.recipe is not None:
        token_bytes = 0  # an embedding model keeps none
    if token_bytes is None:
        token_bytes = _token_bytes(front.config.get_text_config(decoder=True), spec.engine.dtype)
    return Need(
        weights=weights_bytes,
        token=token_bytes,
        max_model_len=front.max_model_len,
        engine=spec.engine,
    )


def estimate(need: Need, free: Free, *, is_parked: bool) -> Estimate:
    """Of a model that lies whole on one device.

    Args:
        is_parked: The weights are in host memory already.
    """
    # Mapped weights count as free memory of the host, and parked ones are taken from it already.
    comes = free.is_apart or (need.engine.no_mmap and not is_parked)
    left = (free.device if free.is_apart else free.host) - (need.weights if comes else 0)
    room = left if free.is_apart else left - HOST_RESERVE_BYTES
    refusal = too_large(need, free, is_parked=is_parked)
    return _judged(need, free, (room, kv_room(left, is_apart=free.is_apart)), refusal)


def estimate_spread(
    need: Need,
    host: int,
    rooms: Sequence[tuple[str, int]],
    model: PreTrainedModel,
    *,
    is_parked: bool,
) -> Estimate:
    """Of a model that is spread over several devices.

    Args:
        host: Free bytes of the host.
        rooms: The names of the devices and their free bytes, the one that computes first.
        model: Of the same modules; its weights do not matter.

    Raises:
        CheckpointRefused, InsufficientMemory: as `divide`.
    """
    names, sizes = [name for name, _ in rooms], [size for _, size in rooms]
    free = Free(host=host, device=sum(sizes), is_apart=True)
    if not is_parked and missing_bytes(need, host):
        return _judged(need, free, (0, 0), no_host_memory(need, host))
    found = divide(model, sizes, spread_kv(need, sizes))
    room = kv_limit(dict(enumerate(_left(sizes, found))), found.layers)
    spread = Counter[str]()
    for place, count in found.bytes.items():
        spread[names[place] if isinstance(place, int) else place] += count
    rooms_for_keys = room, kv_room(room, is_apart=True)
    return _judged(need, free, rooms_for_keys, None, spread=dict(spread))


def spread_kv(need: Need, sizes: Sequence[int]) -> int:
    """Bytes of keys and values that a model leaves room for when it is spread over devices with so
    many bytes free."""
    if need.engine.kv_cache_memory is not None or need.engine.max_model_len is not None:
        return need.least_kv
    return min(need.kv, int(sum(sizes) * _SPREAD_KV_SHARE))


def is_too_tight(need: Need, free: Free) -> bool:
    """A model that may be spread is not to lie whole on a device that it would fill to the brim."""
    return need.weights + need.least_kv > free.device - DEVICE_RESERVE_BYTES


def too_large(need: Need, free: Free, *, is_parked: bool = False) -> str | None:
    """Why the weights have no place, in a sentence; None: they have.

    Args:
        is_parked: The weights are in host memory already.
    """
    if not is_parked and missing_bytes(need, free.host):
        return no_host_memory(need, free.host)
    if free.is_apart and need.weights > free.device:
        return f"The weights take {_gib(need.weights)} and the device has {_gib(free.device)} free."
    return None


def missing_bytes(need: Need, host: int) -> int:
    """Of host memory, for the weights; ``host``: what is free."""
    return max(0, need.weights + HOST_RESERVE_BYTES - host)


def no_host_memory(need: Need, host: int) -> str:
    """That the weights have no place in it."""
    return (
        f"The weights take {_gib(need.weights)} and the host has {_gib(host)} free: "
        f"{_gib(missing_bytes(need, host))} are missing."
    )


def _left(sizes: Sequence[int], found: DeviceMap) -> list[int]:
    """What each device has for keys and values."""
    left = [size - DEVICE_RESERVE_BYTES - found.bytes.get(n, 0) for n, size in enumerate(sizes)]
    left[0] -= found.fetched_bytes
    return left


def _judged(
    need: Need,
    free: Free,
    rooms: tuple[int, int],
    refusal: str | None,
    *,
    spread: Mapping[str, int] | None = None,
) -> Estimate:
    """
    Args:
        rooms: Bytes that keys and values may take where a setting asks for them, and where none
            does.
        refusal: Why the weights have no place.
    """
    limit = need.engine.kv_cache_memory
    room, unasked = rooms
    for_keys = unasked if limit is None else max(0, min(room, limit))
    if refusal is None and limit is not None and limit > room:
        left = _gib(max(0, room))
        refusal = f"kv_cache_memory asks for {_gib(limit)}, and there are {left} left."
    if refusal is None and need.token > for_keys:
        refusal = "There is no room for the keys and values of a single token."
    reason = refusal
    if reason is None and need.kv > for_keys:
        longest = for_keys // need.token
        reason = f"There is room for the keys and values of {longest} tokens only."
    return Estimate(
        weights_bytes=need.weights,
        kv_bytes=need.kv,
        device_free_bytes=free.device,
        host_free_bytes=free.host,
        fits=refusal is None and (reason is None or need.engine.max_model_len is None),
        reason=reason,
        spread=spread,
    )


def _token_bytes(config: Any, dtype: str) -> int:
    """Of keys and values; 0 for a model whose state does not grow."""
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not heads or not layers:
        return 0
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kind = torch_dtype(dtype)
    if not isinstance(kind, torch.dtype):  # the checkpoint's own
        kind = config.dtype or torch.float32
    return int(2 * layers * groups * size * kind.itemsize)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
