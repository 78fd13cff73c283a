from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.requests import GenerationRequest, TextPrompt
from hotswap.errors import ShuttingDown
from hotswap.late import LateRegistry, import_under_way, imported
from hotswap.scripted import Script, ScriptedRegistry
from tests.swap.house import spec

QUICK = Script(prepare_s=0.0, start_s=0.0, stop_s=0.0)
REQUEST = GenerationRequest(prompts=(TextPrompt("hi"),))


def ignored(*_: Any) -> None:
    """What a load reports."""


async def prepare(registry: EngineRegistry) -> None:
    assert (await registry.prepare(spec("A"), ignored)).spec.id == "A"


async def render(registry: EngineRegistry) -> None:
    assert (await registry.render(spec("A"), REQUEST)).prompt_tokens == 7


def look_at(registry: EngineRegistry) -> tuple[Any, ...]:
    return registry.current, registry.memory, registry.parked()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(main())


@pytest.mark.parametrize("ask", [prepare, render])
def test_who_needs_an_engine_waits_for_the_registry(
    ask: Callable[[EngineRegistry], Coroutine[Any, Any, None]],
) -> None:
    async def scenario() -> None:
        late = LateRegistry()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask(late))
            await asyncio.sleep(0)
            assert not asking.done()
            late.arrive(ScriptedRegistry(QUICK))
        await ask(late)

    play(scenario)


@pytest.mark.parametrize("ask", [prepare, render])
def test_who_waits_for_a_registry_that_will_not_come_is_told_why(
    ask: Callable[[EngineRegistry], Coroutine[Any, Any, None]],
) -> None:
    async def scenario() -> None:
        late = LateRegistry()
        asking = asyncio.ensure_future(ask(late))
        await asyncio.sleep(0)
        late.refuse(ShuttingDown("leaving"))
        with pytest.raises(ShuttingDown, match="leaving"):
            await asking
        with pytest.raises(ShuttingDown, match="leaving"):
            await ask(late)

    play(scenario)


def test_a_registry_that_is_there_is_not_refused_to_anybody() -> None:
    async def scenario() -> None:
        late = LateRegistry()
        late.arrive(ScriptedRegistry(QUICK))
        late.refuse(ShuttingDown("leaving"))
        await prepare(late)

    play(scenario)


def test_what_asks_how_things_are_is_told_before_and_after_the_arrival() -> None:
    async def scenario() -> None:
        late, registry = LateRegistry(), ScriptedRegistry(QUICK)
        late.forget("A")
        assert look_at(late) == (None, None, ())
        late.arrive(registry)
        prepared = await late.prepare(spec("A"), ignored)
        async with late.start(prepared, ignored, ignored) as engine:
            assert look_at(late) == look_at(registry) == (engine, None, ())
        assert look_at(late) == look_at(registry)
        assert late.memory is not None

    play(scenario)


def test_an_import_leaves_the_loop_free_and_its_result_is_frozen() -> None:
    may_end = threading.Event()
    kept: list[Any] = []

    def libraries() -> str:
        kept.extend([] for _ in range(1000))
        assert may_end.wait(30)
        return threading.current_thread().name

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            importing = tasks.create_task(imported(libraries))
            while not kept:
                await asyncio.sleep(0)
            assert import_under_way()
            may_end.set()
            assert await importing != threading.current_thread().name

    known = gc.get_freeze_count()
    try:
        play(scenario)
        assert gc.get_freeze_count() >= known + 1000
    finally:
        gc.unfreeze()


def test_an_import_that_fails_raises_what_it_raised() -> None:
    def libraries() -> None:
        raise ImportError("libmissing.so: cannot open shared object file")

    async def scenario() -> None:
        with pytest.raises(ImportError, match=r"libmissing\.so"):
            await imported(libraries)

    try:
        play(scenario)
        # It ends after it has told.
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and "importing" in thread.name:
                thread.join(30)
        assert not import_under_way()
    finally:
        gc.unfreeze()


@pytest.mark.torch
def test_libtorch_is_there_before_torch_is_imported() -> None:
    code = """
import sys
from pathlib import Path
from hotswap.late import load_libtorch
load_libtorch()
assert "torch" not in sys.modules
assert "libtorch_cpu.so" in Path("/proc/self/maps").read_text()
import torch
assert torch.ones(2).sum() == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
