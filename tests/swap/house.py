"""A controller over scripted engines, run in virtual time: seconds pass when nobody is busy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import trio
from trio.testing import MockClock

from hotswap.config import SwapRules
from hotswap.contracts.answers import Finished, TextDelta
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import GenerationRequest, TextPrompt
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.errors import HotswapError
from hotswap.scripted import Script, ScriptedCatalog, ScriptedRegistry
from hotswap.service import SwapService
from hotswap.swap import SwapController

ON_DEMAND = SwapRules(on_demand=True, patience_s=0.0)


def spec(name: str, **settings: object) -> ModelSpec:
    return ModelSpec(id=name, path=Path("models") / name, **settings)  # type: ignore[arg-type]


@dataclass
class Answer:
    """How one request ended, and when."""

    text: str = ""
    model: str = ""
    finished: bool = False
    error: HotswapError | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass
class House:
    registry: ScriptedRegistry
    catalog: ScriptedCatalog
    controller: SwapController
    service: SwapService
    answers: list[Answer] = field(default_factory=list)

    async def ask(self, model: str | None, tokens: int = 3, **options: object) -> Answer:
        answer = Answer()
        self.answers.append(answer)
        request = GenerationRequest(
            prompts=(TextPrompt("hello"),),
            model=model,
            max_tokens=tokens,
            **options,  # type: ignore[arg-type]
        )
        try:
            async with self.service.generate(request) as generation:
                answer.model, answer.began = generation.model, anyio.current_time()
                async for events in generation:
                    for event in events:
                        if isinstance(event, TextDelta):
                            answer.text += event.text
                        elif isinstance(event, Finished):
                            answer.finished = True
        except HotswapError as error:
            answer.error = error
        answer.ended = anyio.current_time()
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on the controller, at most a virtual hour."""
        with anyio.fail_after(3600):
            while not condition():
                await self.service.changed(self.controller.snapshot().version)

    @property
    def phase(self) -> str:
        return self.controller.snapshot().phase

    @property
    def resident(self) -> str | None:
        resident = self.controller.snapshot().resident
        return resident.id if resident else None


def text(model: str, tokens: int = 3) -> str:
    return "".join(f"{model} {number} " for number in range(tokens))


def drawn(house: House) -> int:
    """Tokens of all engines."""
    return sum(engine.steps for engine in house.registry.engines)


def counters(snapshot: SwapSnapshot) -> dict[str, float]:
    """What may only grow."""
    counts = {
        "loads": snapshot.loads,
        "swaps": snapshot.swaps,
        "tokens": snapshot.tokens,
        "leaked_bytes": snapshot.teardown_leaked_bytes,
        "rebuilds": snapshot.rebuilds,
    }
    unloads = {reason.value: count for reason, count in snapshot.unloads_by_reason.items()}
    return {**counts, **unloads, **snapshot.phase_seconds}


async def watch_counters(house: House) -> None:
    """Until it is cancelled, see at every change that none of them has gone back."""
    seen: Mapping[str, float] = {}
    while True:
        snapshot = house.controller.snapshot()
        now = counters(snapshot)
        fallen = {name for name, count in seen.items() if now.get(name, -1) < count}
        assert not fallen
        seen = now
        await house.service.changed(snapshot.version)


def restless_clock() -> MockClock:
    """Virtual time that, like real time, is later at every look. A clock that stood still
    between two looks once hid a wait that never ended."""
    clock = MockClock(autojump_threshold=0)
    standing = clock.current_time

    def current_time() -> float:
        clock.jump(1e-9)
        return standing()

    clock.current_time = current_time  # type: ignore[method-assign]  # the class is final
    return clock


def play(
    scenario: Callable[[House], Awaitable[None]],
    rules: SwapRules = ON_DEMAND,
    script: Script | None = None,
    models: tuple[ModelSpec, ...] = (spec("A"), spec("B"), spec("C")),
    startup: str | None = None,
    *,
    registry: ScriptedRegistry | None = None,
    catalog: ScriptedCatalog | None = None,
) -> House:
    """Run a scenario against a fresh controller and see it shut down with nothing left over."""
    registry = registry or ScriptedRegistry(script)
    catalog = catalog or ScriptedCatalog(*models, startup=startup)
    controller = SwapController(registry, catalog.fetch, rules)
    house = House(registry, catalog, controller, SwapService(controller, registry, catalog))

    async def main() -> None:
        async with house.controller.running():
            await scenario(house)
        snapshot = house.controller.snapshot()
        assert snapshot.phase == "closed"
        assert snapshot.leases == 0
        assert not snapshot.waiting
        assert registry.current is None
        assert all(engine.running == 0 for engine in registry.engines)

    trio.run(main, clock=restless_clock())
    return house
