"""transformers' `from_pretrained`, for one of two models after the other.

``swap(model, prompt)``
    ``seconds`` from letting go of the network that is there to the first token of another one.
``forward(prompt)``
    ``seconds`` to the likeliest next token, by the network that is there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from bench.worker import Answer, Tasks


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = Loaded(device, _network(model, device))
    yield {"swap": loaded.swap, "forward": loaded.forward}


@dataclass(slots=True)
class Loaded:
    """The network that is on the device."""

    device: str
    network: Any

    async def swap(self, model: str, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        self.network = None
        if self.device != "cpu":
            torch.cuda.empty_cache()
        self.network = _network(Path(model), self.device)
        self._next_token(prompt)
        seconds = time.perf_counter() - began
        gc.collect()  # what is left in cycles maps the file before; not counted
        return {"seconds": seconds}

    async def forward(self, prompt: list[int]) -> Answer:
        began = time.perf_counter()
        self._next_token(prompt)
        return {"seconds": time.perf_counter() - began}

    def _next_token(self, prompt: list[int]) -> int:
        ids = torch.tensor([prompt], device=self.network.device)
        with torch.inference_mode():
            output = self.network(input_ids=ids, use_cache=True, logits_to_keep=1)
            return int(output.logits[0, -1].argmax())  # waits for the device


def _network(model: Path, device: str) -> Any:
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    return network.to(device)
