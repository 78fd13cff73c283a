"""transformers' `generate`, and the bare forward of its model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from bench.worker import Answer, Tasks


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    network.generation_config.eos_token_id = None
    served = Served(network.to(device))
    yield {"generate": served.generate, "prefill": served.prefill}


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model."""

    network: Any

    async def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        began = time.perf_counter()
        ids = torch.tensor(prompts, device=self.network.device)
        with torch.inference_mode():
            output = self.network.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        answers = output.tolist()  # waits for the device
        seconds = time.perf_counter() - began
        assert all(len(answer) == len(prompts[0]) + new_tokens for answer in answers)
        return {"seconds": seconds}

    async def prefill(self, prompt: list[int]) -> Answer:
        cache = DynamicCache(config=self.network.config)
        began = time.perf_counter()
        ids = torch.tensor([prompt], device=self.network.device)
        with torch.inference_mode():
            output = self.network(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            output.logits[0, -1].argmax().item()  # waits for the device
        return {"seconds": time.perf_counter() - began}
