"""The real engine floor under a controller, and something that goes wrong at one point of it after
the other: from the first look at a model's files to its leaving the device."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest

from hotswap.errors import (
    CheckpointRefused,
    DeviceLost,
    EngineFailed,
    InsufficientMemory,
    ModelLoadFailed,
)
from hotswap.scripted import ScriptedCatalog
from hotswap.service import SwapService
from hotswap.swap import SwapController
from tests.engine.serving import spec_of
from tests.swap.house import ON_DEMAND, Answer, House

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]


class Bug(Exception):
    """What nobody foresaw."""


def no_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory")


def lost() -> Exception:
    import torch

    return torch.AcceleratorError("an illegal memory access was encountered")


def unmappable() -> Exception:
    return OSError(errno.ENOMEM, "Cannot allocate memory")


def unreadable() -> Exception:
    return OSError(errno.EIO, "Input/output error")


@dataclass(frozen=True)
class Point:
    """Where something goes wrong, once, while B is asked for and A is on the device."""

    where: str
    """Module and name of the function."""
    what: Callable[[], Exception]
    told: type[Exception] | None
    """What B's client is told."""
    after: str
    """"kept": A has never left; "back": it left and came back; "there": B is; "lost": the device
    is."""

    def __str__(self) -> str:
        return f"{self.where.rpartition(':')[2]}-{self.what.__name__}"


REGISTRY, STAGE = "hotswap.engine.registry:", "hotswap.engine.stage:"
PLANNING, LOADER = "hotswap.engine.planning:", "hotswap.engine.loader:"
PREPARING = [
    Point("hotswap.engine.front:read_config", Bug, None, "kept"),
    Point("hotswap.engine.front:AutoTokenizer.from_pretrained", Bug, CheckpointRefused, "kept"),
    Point(PLANNING + "check_weights", unreadable, ModelLoadFailed, "kept"),
    Point(PLANNING + "load_key", unreadable, ModelLoadFailed, "kept"),
    Point("hotswap.engine.fit:too_large", Bug, ModelLoadFailed, "kept"),
    Point(PLANNING + "estimate", Bug, ModelLoadFailed, "kept"),
    Point(REGISTRY + "loops_compiled", Bug, ModelLoadFailed, "kept"),
    Point(LOADER + "map_files", unreadable, CheckpointRefused, "kept"),
    Point(LOADER + "map_files", unmappable, InsufficientMemory, "kept"),
    Point(LOADER + "fill_page_cache", unreadable, CheckpointRefused, "kept"),
    Point(LOADER + "read_weights", Bug, ModelLoadFailed, "kept"),
    *(
        Point("hotswap.engine.weights:AutoModelForCausalLM.from_pretrained", what, told, "kept")
        for what, told in (
            (Bug, CheckpointRefused),
            (MemoryError, InsufficientMemory),
            (no_memory, InsufficientMemory),
        )
    ),
]
STARTING = [
    Point(REGISTRY + "Stay.begin", unreadable, ModelLoadFailed, "back"),
    Point(REGISTRY + "Findings.remember", Bug, ModelLoadFailed, "back"),
    Point(STAGE + "Stage.build", Bug, ModelLoadFailed, "back"),
    *(
        Point(STAGE + name, what, told, after)
        for name in ("place", "choose")
        for what, told, after in (
            (Bug, CheckpointRefused, "back"),
            (no_memory, InsufficientMemory, "back"),
            (lost, DeviceLost, "lost"),
        )
    ),
    Point(STAGE + "sampler_on", Bug, CheckpointRefused, "back"),
    Point(STAGE + "Stage._reserve", no_memory, InsufficientMemory, "back"),
    Point(STAGE + "Stage._get_ready", no_memory, InsufficientMemory, "back"),
    Point("hotswap.engine.kv_pool:KVPool.__init__", unmappable, InsufficientMemory, "back"),
    Point("hotswap.engine.kv_pool:KVPool._made", unmappable, InsufficientMemory, "back"),
    Point("hotswap.engine.blueprint:Blueprint.of", Bug, CheckpointRefused, "back"),
]
LEAVING = [
    Point(STAGE + "Stage.leave", Bug, DeviceLost, "lost"),
    Point("hotswap.engine.placement:InPlace.leave", Bug, DeviceLost, "lost"),
    Point("hotswap.engine.device:release_cached", Bug, DeviceLost, "lost"),
    Point(REGISTRY + "Park.put", Bug, DeviceLost, "lost"),
    Point(REGISTRY + "Stay.report", unreadable, DeviceLost, "lost"),
]
STEPPING = [
    *(
        Point(where, what, told, after)
        for where in (
            "hotswap.engine.runner:ModelRunner.launch",
            "hotswap.engine.runner:Launched.results",
        )
        for what, told, after in (
            (Bug, EngineFailed, "there"),
            (no_memory, InsufficientMemory, "there"),
            (lost, DeviceLost, "lost"),
        )
    ),
    Point("hotswap.engine.scheduler:Scheduler.plan", Bug, EngineFailed, "there"),
    Point("hotswap.engine.scheduler:Scheduler.computed", Bug, EngineFailed, "there"),
    Point("hotswap.engine.sequence:Sequence.accept", Bug, EngineFailed, "there"),
    Point("hotswap.engine.answer:AnswerText.finish", Bug, EngineFailed, "there"),
    Point("hotswap.engine.engine:TorchEngine._add", Bug, EngineFailed, "there"),
]
POINTS = [*PREPARING, *STARTING, *LEAVING, *STEPPING]


@asynccontextmanager
async def real_house(*paths: Path, **options: Any) -> AsyncIterator[House]:
    """A controller over the real engine floor; its models are called A, B, ..."""
    from hotswap.engine.registry import TorchEngineRegistry

    async with TorchEngineRegistry(**options) as registry:
        specs = [replace(spec_of(path), id=name) for name, path in zip("ABC", paths, strict=False)]
        catalog = ScriptedCatalog(*specs)
        controller = SwapController(registry, catalog.fetch, ON_DEMAND)
        service = SwapService(controller, registry, catalog)
        house: Any = House(registry, catalog, controller, service)  # type: ignore[arg-type]
        async with controller.running():
            yield house


def once(monkeypatch: pytest.MonkeyPatch, point: Point) -> list[str]:
    """Have the next call of the point's function fail. What is returned is empty until then."""
    module, _, name = point.where.partition(":")
    owner: Any = import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, failed = getattr(owner, last), list[str]()

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if failed:
            return real(*arguments, **keywords)
        failed.append(name)
        raise point.what()

    patched = staticmethod(failing) if hasattr(real, "__self__") else failing
    monkeypatch.setattr(owner, last, patched)
    return failed


async def asked(house: House, model: str) -> Answer | Exception:
    """The answer; or what nobody foresaw, which the API floor turns into a 500."""
    with anyio.fail_after(60):
        try:
            return await house.ask(model, 6)
        except Bug as bug:
            return bug


async def check(house: House, point: Point, before: dict[str, str]) -> None:
    """That there is a model that serves, nothing is held for nobody, and all answer as before."""
    registry: Any = house.registry

    def is_settled() -> bool:
        is_ready = house.phase == "ready" and registry.current.failure is None
        return is_ready or house.phase in ("empty", "failed")

    await house.until(is_settled)
    snapshot = house.controller.snapshot()
    assert (snapshot.leases, snapshot.waiting) == (0, {})
    if point.after == "lost":
        assert house.phase == "failed"
        assert isinstance((await house.ask("A")).error, DeviceLost)
        return
    assert house.resident == ("B" if point.after == "there" else "A")
    house.controller.desk.forgive("B")  # else it cools down for ten seconds
    for model in "AB":
        answer = await house.ask(model, 6)
        assert answer.finished
        assert answer.text == before[model]
    assert registry.memory.leaked_bytes == 0
    with anyio.fail_after(120):
        while registry.current.stats().details["kv_used_bytes"]:
            await anyio.sleep(0.001)


@pytest.fixture(scope="module")
def before(checkpoint: Checkpoint) -> dict[str, str]:
    """What the models answer where nothing goes wrong."""

    async def answers() -> dict[str, str]:
        async with real_house(checkpoint("qwen3"), checkpoint("llama")) as house:
            return {model: (await house.ask(model, 6)).text for model in "AB"}

    found = anyio.run(answers)
    assert found["A"] != found["B"]
    return found


@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_what_fails_at_a_point_costs_no_more_than_it_must(
    point: Point,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
) -> None:
    async with real_house(checkpoint("qwen3"), checkpoint("llama")) as house:
        assert (await house.ask("A", 6)).finished
        engine = house.registry.current
        failed = once(monkeypatch, point)
        answer = await asked(house, "B")
        assert failed, "this point has been passed"
        if point.told is None:
            assert isinstance(answer, Bug)
        else:
            assert isinstance(answer, Answer)
            assert type(answer.error) is point.told
            assert not answer.finished
        if point.after == "kept":
            assert house.registry.current is engine
        await check(house, point, before)


RETURNING = [
    Point("hotswap.engine.rested:AtRest.wake", Bug, CheckpointRefused, "back"),
    Point("hotswap.engine.rested:AtRest.wake", no_memory, None, "there"),
    Point("hotswap.engine.rested:AtRest.wake", lost, DeviceLost, "lost"),
    Point(STAGE + "Stage._resume", Bug, CheckpointRefused, "back"),
    Point(REGISTRY + "Park.claim", Bug, ModelLoadFailed, "back"),
    Point(REGISTRY + "Park.as_parked", Bug, ModelLoadFailed, "back"),
]


@pytest.mark.parametrize("point", RETURNING, ids=str)
async def test_a_parked_model_that_does_not_come_back_is_read_again(
    point: Point,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
) -> None:
    async with real_house(checkpoint("qwen3"), checkpoint("llama")) as house:
        for model in "BA":
            assert (await house.ask(model, 6)).finished
        failed = once(monkeypatch, point)
        answer = await asked(house, "B")
        assert failed
        assert isinstance(answer, Answer)
        assert (None if answer.error is None else type(answer.error)) is point.told
        await check(house, point, before)


REBUILDING = [
    Point("hotswap.engine.weights:Known.rebuilt", unreadable, CheckpointRefused, "kept"),
    Point("hotswap.engine.weights:Known.rebuilt", Bug, ModelLoadFailed, "kept"),
    Point(LOADER + "read_in", unreadable, CheckpointRefused, "kept"),
    Point(STAGE + "made", no_memory, InsufficientMemory, "back"),
]


@pytest.mark.parametrize("point", REBUILDING, ids=str)
async def test_a_model_that_is_known_and_not_parked_fails_as_gently(
    point: Point,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
) -> None:
    async with real_house(checkpoint("qwen3"), checkpoint("llama"), park_bytes=0) as house:
        for model in "BA":
            assert (await house.ask(model, 6)).finished
        failed = once(monkeypatch, point)
        answer = await asked(house, "B")
        assert failed
        assert isinstance(answer, Answer)
        assert type(answer.error) is point.told
        await check(house, point, before)


async def test_an_answer_without_memory_does_not_end_the_others(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real_house(checkpoint("qwen3")) as house:
        before = (await house.ask("A", 60)).text
        once(monkeypatch, Point("hotswap.engine.runner:ModelRunner.launch", no_memory, None, ""))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(house.ask, "A", 60)
        ends = [type(answer.error) for answer in house.answers[1:] if answer.error]
        assert ends == [InsufficientMemory]
        assert [answer.text for answer in house.answers[1:] if answer.finished] == [before] * 3


async def test_no_message_names_what_only_the_log_may_know(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    point = Point(STAGE + "place", lambda: Bug("/secret/path"), None, "")
    async with real_house(checkpoint("qwen3"), checkpoint("llama")) as house:
        assert (await house.ask("A")).finished
        once(monkeypatch, point)
        with caplog.at_level(logging.ERROR):
            answer = await house.ask("B")
        assert "/secret/path" not in str(answer.error)
        assert "/secret/path" in caplog.text
        assert "/secret/path" not in str(house.controller.snapshot().last_error)


def test_there_are_many_points() -> None:
    assert len({str(point) for point in (*POINTS, *RETURNING, *REBUILDING)}) >= 25
