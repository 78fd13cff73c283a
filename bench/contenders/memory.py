"""Nothing but reading: no engine that reads its weights once a step can be faster."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from bench.worker import Answer, Tasks


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    weights = torch.ones(bytes_per_step(model) // 8, dtype=torch.int64, device=device)

    async def read() -> Answer:
        began = time.perf_counter()
        assert int(weights.max()) == 1
        return {"seconds": time.perf_counter() - began}

    yield {"read": read}


def bytes_per_step(model: Path) -> int:
    """Bytes of the weights that each step reads: all, but for input embeddings that are not the
    output embeddings too. Of those it reads a row per sequence."""
    with safe_open(model / "model.safetensors", "pt") as tensors:
        sizes = {name: tensors.get_tensor(name).nbytes for name in list(tensors.keys())}
    if "lm_head.weight" in sizes:
        del sizes["model.embed_tokens.weight"]
    return sum(sizes.values())
