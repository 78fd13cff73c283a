"""Whether a model would fit, from the headers of its files and its configuration alone."""

from __future__ import annotations

from typing import Any

import torch

from hotswap.contracts import Estimate, ModelSpec
from hotswap.engine import device as devices
from hotswap.engine.front import Front
from hotswap.engine.preflight import WeightFiles
from hotswap.engine.weights import torch_dtype

HOST_RESERVE_BYTES = 256 << 20
"""Host memory that a load leaves free."""
_KV_SHARE = {"cpu": 0.3, "cuda": 0.9}
"""Of the memory that is free once the weights are in place."""


def kv_room(device: torch.device, free: int) -> int:
    """Bytes that keys and values may take where no setting says so; ``free``: what the weights
    leave."""
    return max(0, int(free * _KV_SHARE[device.type]))


def estimate(
    spec: ModelSpec,
    front: Front,
    files: WeightFiles,
    *,
    token_bytes: int | None,
    freed_bytes: int,
    is_parked: bool,
) -> Estimate:
    """
    Raises:
        CheckpointRefused: there is no such dtype.

    Args:
        token_bytes: of keys and values, where it is known because the model has run; None: as its
            configuration says.
        freed_bytes: of the device, by the model that leaves.
        is_parked: the weights are in host memory already.
    """
    device = devices.torch_device(spec.engine.device)
    if token_bytes is None:
        token_bytes = _token_bytes(front.config.get_text_config(decoder=True), spec.engine.dtype)
    host = devices.free_host_bytes()
    free = devices.free_bytes(device) + freed_bytes
    kv = token_bytes * front.max_model_len
    left = free - files.bytes if device.type == "cuda" else host  # mapped weights count as free
    room = left if device.type == "cuda" else host - HOST_RESERVE_BYTES
    limit = spec.engine.kv_cache_memory
    for_keys = kv_room(device, left) if limit is None else max(0, min(room, limit))
    refusal = too_large(files, device, host, free, is_parked=is_parked)
    if refusal is None and limit is not None and limit > room:
        refusal = (
            f"kv_cache_memory asks for {_gib(limit)}, and there are {_gib(max(0, room))} left."
        )
    if refusal is None and token_bytes > for_keys:
        refusal = "There is no room for the keys and values of a single token."
    reason = refusal
    if reason is None and kv > for_keys:
        longest = for_keys // token_bytes
        reason = f"There is room for the keys and values of {longest} tokens only."
    return Estimate(
        weights_bytes=files.bytes,
        kv_bytes=kv,
        device_free_bytes=free,
        host_free_bytes=host,
        fits=refusal is None and (reason is None or spec.engine.max_model_len is None),
        reason=reason,
    )


def too_large(
    files: WeightFiles, device: torch.device, host: int, free: int, *, is_parked: bool = False
) -> str | None:
    """Why the weights have no place, in a sentence; None: they have.

    Args:
        host: free bytes of the host.
        free: free bytes of the device, once the resident model has left.
        is_parked: the weights are in host memory already.
    """
    if not is_parked and missing_bytes(files, host):
        return f"The weights take {_gib(files.bytes)} and the host has {_gib(host)} free."
    if device.type == "cuda" and files.bytes > free:
        return f"The weights take {_gib(files.bytes)} and the device has {_gib(free)} free."
    return None


def missing_bytes(files: WeightFiles, host: int) -> int:
    """Of host memory, for the weights; ``host``: what is free."""
    return max(0, files.bytes + HOST_RESERVE_BYTES - host)


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
