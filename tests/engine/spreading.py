"""Models that are spread over devices, for which host memory stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.serving import Served, ignore, spec_of

if TYPE_CHECKING:  # torch: not in the fast run
    import torch

    from hotswap.contracts.models import ModelSpec
    from hotswap.engine.device_memory import Room
    from hotswap.engine.registry import TorchEngineRegistry

PROMPT = list(range(3, 40))


@dataclass(frozen=True)
class HostRoom:
    device: torch.device
    size: int

    def free_bytes(self) -> int:
        return self.size


def new_registry(*sizes: int) -> TorchEngineRegistry:
    """Of a machine whose devices have so many bytes."""
    from hotswap.engine.registry import TorchEngineRegistry

    def rooms_of(device: torch.device) -> Sequence[Room]:
        return [HostRoom(device, size) for size in sizes]

    return TorchEngineRegistry(rooms_of=rooms_of)


def spread_spec(path: Path, **engine: Any) -> ModelSpec:
    return spec_of(path, device_map="auto", **{"max_model_len": 64} | engine)


async def play(
    registry: TorchEngineRegistry, spec: ModelSpec, prompt: list[int] = PROMPT
) -> tuple[str, dict[str, Any]]:
    """Have the model on the device, ask it, and take it off again: the answer, and what the engine
    said of itself."""
    prepared = await registry.prepare(spec, ignore)
    async with registry.start(prepared, ignore, ignore) as engine:
        answer = await Served(registry, prepared, engine).ask(prompt, max_tokens=8)
        details = dict(engine.stats().details)
    assert registry.memory is not None
    assert registry.memory.leaked_bytes == 0
    return answer.text, details
