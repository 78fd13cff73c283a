"""Our engine, entered as the server enters it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.worker import Answer, Tasks
from hotswap.contracts.answers import Finished
from hotswap.contracts.models import EngineConfig, ModelSpec
from hotswap.contracts.requests import GenerationRequest, SamplingParams, TokenPrompt
from hotswap.engine.engine import TorchEngine
from hotswap.engine.registry import TorchEngineRegistry

_GREEDY: Mapping[str, Any] = {"temperature": 0.0}
_QUIET_GAPS = 8
"""Gaps of the running answer that are awaited before it is interrupted."""


@asynccontextmanager
async def contend(model: Path, device: str) -> AsyncIterator[Tasks]:
    spec = ModelSpec(id=model.name, path=model, engine=EngineConfig(device=device))
    async with TorchEngineRegistry() as registry:
        gc.collect()
        gc.freeze()  # as the server does
        prepared = await registry.prepare(spec, _ignore)
        async with registry.start(prepared, _ignore, _ignore) as engine:
            served = Served(registry, engine, spec)
            yield {"generate": served.generate, "interrupt": served.interrupt}


def _ignore(*_: object) -> None:
    """Nobody listens to a load's progress or to changes of the queue."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running engine."""

    registry: TorchEngineRegistry
    engine: TorchEngine
    spec: ModelSpec

    async def generate(
        self,
        prompts: list[list[int]],
        new_tokens: int,
        sampling: Mapping[str, Any] = _GREEDY,
    ) -> Answer:
        began = time.perf_counter()
        ends = await asyncio.gather(
            *(self._end(prompt, new_tokens, sampling) for prompt in prompts)
        )
        return {"seconds": max(ends) - began}

    async def interrupt(self, prompt: list[int], new_tokens: int, intruder: list[int]) -> Answer:
        quiet_s: list[float] = []
        gaps_s: list[float] = []
        async with aclosing(self._moments(prompt, new_tokens)) as moments:
            before = await anext(moments)
            for _ in range(_QUIET_GAPS):
                moment = await anext(moments)
                quiet_s.append(moment - before)
                before = moment
            async with asyncio.TaskGroup() as group:
                intrusion = group.create_task(self._end(intruder, 1))
                while not intrusion.done():
                    moment = await anext(moments)
                    gaps_s.append(moment - before)
                    before = moment
        return {
            "quiet_s": quiet_s,
            "gaps_s": gaps_s,
            "step_tokens_beside": self.engine.stats().details["step_tokens_beside"],
        }

    async def _end(
        self, prompt: list[int], new_tokens: int, sampling: Mapping[str, Any] = _GREEDY
    ) -> float:
        """When the last token of an answer came."""
        end = 0.0
        async for moment in self._moments(prompt, new_tokens, sampling):
            end = moment
        return end

    async def _moments(
        self, prompt: list[int], new_tokens: int, sampling: Mapping[str, Any] = _GREEDY
    ) -> AsyncGenerator[float, None]:
        """When there was news of an answer. Tokens without text of their own are no news."""
        request = GenerationRequest(
            prompts=(TokenPrompt(tuple(prompt)),),
            sampling=SamplingParams(**sampling),
            max_tokens=new_tokens,
            ignore_eos=True,
        )
        rendered = await self.registry.render(self.spec, request)
        async with self.engine.generate(rendered) as generation:
            async for events in generation:
                yield time.perf_counter()
                for event in events:
                    assert not isinstance(event, Finished) or event.completion_tokens == new_tokens
