"""What others do to park a model: copy its weights back to the host, and in again. CUDA only.

``cycle()``
    ``sleep_s`` to copy weights back to pinned memory, free them and give the memory back, and
    ``wake_s`` to copy them in again. A swap is one model's sleep and another one's wake.
``copy()``
    ``seconds`` of one copy of as many bytes from pinned memory to the device: the floor.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.worker import Answer, Tasks


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    sleeper = Sleeper(torch.device(device), _weights(model, device))
    yield {"cycle": sleeper.cycle, "copy": sleeper.copy}


class Sleeper:
    """Weights on the device, with pinned buffers of the same shapes."""

    def __init__(self, device: torch.device, weights: list[Tensor]) -> None:
        self._device = device
        self._weights = weights
        self._host = [torch.empty(w.shape, dtype=w.dtype, pin_memory=True) for w in weights]
        total = sum(w.nbytes for w in weights)
        self._flat = torch.empty(total, dtype=torch.uint8, pin_memory=True)

    async def cycle(self) -> Answer:
        began = time.perf_counter()
        for host, weight in zip(self._host, self._weights, strict=True):
            host.copy_(weight, non_blocking=True)
        torch.cuda.synchronize(self._device)
        self._weights = []
        torch.cuda.empty_cache()
        asleep = time.perf_counter()
        self._weights = [host.to(self._device, non_blocking=True) for host in self._host]
        torch.cuda.synchronize(self._device)
        return {"sleep_s": asleep - began, "wake_s": time.perf_counter() - asleep}

    async def copy(self) -> Answer:
        there = torch.empty_like(self._flat, device=self._device)
        torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        there.copy_(self._flat, non_blocking=True)
        torch.cuda.synchronize(self._device)
        return {"seconds": time.perf_counter() - began}


def _weights(model: Path, device: str) -> list[Tensor]:
    files = sorted(model.glob("*.safetensors"))
    return [tensor for file in files for tensor in load_file(file, device=device).values()]
