"""transformers' continuous batching, its manager kept between the runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from bench.worker import Answer, Tasks

_PATIENCE_S = 300.0


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    network.generation_config.eos_token_id = None
    manager_context = network.to(device).continuous_batching_context_manager(
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=_config(device),
        warmup=device != "cpu",
    )
    # Its own thread computes, and refuses tensors of inference mode.
    with torch.no_grad(), manager_context as manager:
        yield {"generate": Served(manager).generate}


def _config(device: str) -> ContinuousBatchingConfig:
    """It sizes itself by the GPU's memory; on a CPU it would take most of the host's."""
    if device == "cpu":
        return ContinuousBatchingConfig(num_blocks=96, max_batch_tokens=512)
    return ContinuousBatchingConfig()


@dataclass(frozen=True, slots=True)
class Served:
    """A running manager."""

    manager: Any

    async def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        """Raises: RuntimeError: it did not answer all of them."""
        began = time.perf_counter()
        self.manager.add_requests(inputs=prompts, max_new_tokens=new_tokens)
        unfinished = len(prompts)
        while unfinished:
            result = self.manager.get_result(timeout=_PATIENCE_S)
            if result is None or result.error is not None:
                raise RuntimeError(f"continuous batching answered {result}")
            if result.is_finished():
                assert len(result.generated_tokens) == new_tokens
                unfinished -= 1
        return {"seconds": time.perf_counter() - began}
