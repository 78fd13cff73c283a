from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from hotswap.errors import CheckpointRefused, InsufficientMemory
from tests.engine.serving import Served, ignore, serving, spec_of

if TYPE_CHECKING:
    from hotswap.engine.blocks import Run
    from hotswap.engine.forward.lean import LeanForward

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]


async def test_room_for_keys_and_values_is_made_on_the_device_thread(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward.lean import LeanForward

    threads: list[threading.Thread] = []
    reserve = LeanForward.reserve

    def noted(self: LeanForward, blocks: int) -> None:
        threads.append(threading.current_thread())
        reserve(self, blocks)

    monkeypatch.setattr(LeanForward, "reserve", noted)
    async with serving(checkpoint()) as served:
        assert threads == [served.registry._device._thread]


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOMEM, InsufficientMemory), (errno.EIO, CheckpointRefused)]
)
async def test_memory_that_cannot_be_mapped_is_memory_that_is_short(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    from hotswap.engine.forward.lean import LeanForward
    from hotswap.engine.registry import TorchEngineRegistry

    def short(*_: object) -> None:
        raise OSError(number, "as mmap does")

    async with TorchEngineRegistry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(LeanForward, "reserve", short)
            with pytest.raises(expected):
                async with registry.start(prepared, ignore, ignore):
                    pytest.fail("it has no room")
        assert registry.memory is not None
        assert registry.memory.leaked_bytes == 0
        afresh = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(afresh, ignore, ignore) as engine:
            answer = await Served(registry, afresh, engine).ask([1, 2, 3], max_tokens=2)
    assert answer.finished is not None


async def test_what_had_no_room_can_be_started_when_there_is_some(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device as devices
    from hotswap.engine.registry import TorchEngineRegistry

    async with TorchEngineRegistry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(devices, "free_bytes", lambda _: 0)
            with pytest.raises(InsufficientMemory):
                async with registry.start(prepared, ignore, ignore):
                    pytest.fail("it has no room")
        async with registry.start(prepared, ignore, ignore) as engine:
            answer = await Served(registry, prepared, engine).ask([1, 2, 3], max_tokens=2)
    assert answer.finished is not None


@pytest.mark.parametrize(
    ("architecture", "tier", "remembers"),
    [("qwen3", "S", True), ("gpt2", "A", True), ("falcon", "B", False)],
)
async def test_only_where_beginnings_are_shared_there_are_blocks_to_remember_them(
    checkpoint: Checkpoint, architecture: str, tier: str, *, remembers: bool
) -> None:
    async with serving(checkpoint(architecture)) as served:
        assert served.tier == tier
        scheduler = served.engine._scheduler
        in_use = scheduler.budget.blocks_of(served.engine.max_model_len)
        assert scheduler.pool.count >= scheduler.limits.max_num_seqs * in_use
        more = scheduler.pool.count > scheduler.limits.max_num_seqs * in_use
        assert more == remembers
        await served.ask(list(range(64)), max_tokens=4, ignore_eos=True)
        assert (served.engine.stats().details["kv_remembered_bytes"] > 0) == remembers


@pytest.mark.parametrize("chosen", [None, 4 << 20])
async def test_what_was_asked_for_once_takes_little_unless_the_memory_has_been_granted(
    checkpoint: Checkpoint, chosen: int | None
) -> None:
    async with serving(checkpoint(), kv_cache_memory=chosen) as served:
        pool = served.engine._scheduler.pool
        assert (pool._most_once < pool._most_unused) == (chosen is None)


async def test_an_answer_is_the_same_after_memory_was_given_back(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import stage
    from hotswap.engine.kv_pool import KVPool

    given: list[int] = []
    vacate = KVPool.vacate

    def noted(self: KVPool, runs: Sequence[Run]) -> None:
        given.extend(count for _, count in runs)
        vacate(self, runs)

    monkeypatch.setattr(KVPool, "vacate", noted)
    monkeypatch.setattr(stage, "_WORTH_VACATING_BYTES", 1)
    monkeypatch.setattr(stage, "_REMEMBERED_ONCE_SHARE", 0)
    monkeypatch.setattr(stage, "_REMEMBERED_ONCE_BYTES", 0)
    asked = list(range(50))
    async with serving(checkpoint()) as served:
        first = await served.ask(asked, max_tokens=20, ignore_eos=True)
        await served.ask(list(range(90, 60, -1)), max_tokens=4, ignore_eos=True)
        with anyio.fail_after(120):  # it is given back after the answer has been told
            while sum(given) <= 3:
                await anyio.sleep(0.001)
        again = await served.ask(asked, max_tokens=20, ignore_eos=True)
    assert again.text == first.text
