"""One step ahead changes when tokens are looked at, and nothing about them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from hotswap.contracts.requests import SamplingParams
from hotswap.errors import EngineFailed, InsufficientMemory
from tests.engine.serving import GREEDY, Answer, Served, request, serving

if TYPE_CHECKING:
    from hotswap.engine.runner import Launched
    from hotswap.engine.scheduler import Plan

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]

HOT = SamplingParams(temperature=1.2, top_p=0.9, seed=5)
PENALISED = SamplingParams(temperature=0.8, seed=6, presence_penalty=0.7, repetition_penalty=1.2)
PROMPTS = [[5 + i for i in range(6)], [300 - i for i in range(33)], [7, 50, 9], list(range(40, 57))]


@asynccontextmanager
async def ahead(path: Path, **options: Any) -> AsyncIterator[Served]:
    async with serving(path, **options) as served:
        served.engine._ahead = True
        yield served


def note_launches(served: Served) -> list[bool]:
    """Grows with each step from now on: whether it was launched before the last one's end."""
    runner, noted = served.engine._runner, list[bool]()
    launch = runner.launch

    def noting(plan: Plan, after: Launched | None = None) -> Launched:
        noted.append(after is not None)
        return launch(plan, after)

    runner.launch = noting  # type: ignore[method-assign]
    return noted


async def mixed(served: Served) -> list[Answer]:
    """Answers of many kinds, each begun some steps after the one before."""
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 40},
        {"max_tokens": 30, "sampling": HOT},
        {"max_tokens": 12, "sampling": HOT, "logprobs": 3, "n": 2},
        {"max_tokens": 1},
        {"max_tokens": 35, "stop": ("e", "th")},
        {"max_tokens": 20, "stop_token_ids": tuple(range(0, 384, 3)), "min_tokens": 7},
        {"max_tokens": 25, "sampling": PENALISED},
        {"max_tokens": 33, "sampling": HOT},
    ]
    got: dict[int, list[Answer]] = {}
    start = served.engine.stats().steps

    async def ask(number: int, fields: dict[str, Any]) -> None:
        while served.engine.stats().steps < start + 3 * number:
            await anyio.sleep(0.001)
        prompt = PROMPTS[number % len(PROMPTS)]
        got[number] = await served.ask_all(prompt, ignore_eos=True, **fields)

    with anyio.fail_after(600):
        async with anyio.create_task_group() as group:
            for number, fields in enumerate(kinds):
                group.start_soon(ask, number, fields)
    return [answer for number in range(len(kinds)) for answer in got[number]]


def told(answers: list[Answer]) -> list[Any]:
    """All but the pieces it came in, and how much of its prompt was remembered when it came;
    log-probabilities depend a little on who else is there."""
    return [
        (a.text, replace(a.finished, cached_tokens=0), [entry.raw for entry in a.logprobs])
        for a in answers
        if a.finished is not None
    ]


@pytest.mark.parametrize("architecture", ["qwen3", "gpt_oss", "falcon", "mamba"])
async def test_answers_are_the_same(checkpoint: Checkpoint, architecture: str) -> None:
    path = checkpoint(architecture)
    async with serving(path) as served:
        wanted = await mixed(served)
    async with ahead(path) as served:
        launches = note_launches(served)
        got = await mixed(served)
        assert served.engine.stats().details["kv_used_bytes"] == 0
    assert told(got) == told(wanted)
    assert any(launches)
    assert not all(launches)


async def test_a_decode_step_is_launched_before_the_last_one_is_looked_at(
    checkpoint: Checkpoint,
) -> None:
    async with ahead(checkpoint()) as served:
        launches = note_launches(served)
        answer = await served.ask(PROMPTS[0], max_tokens=20, ignore_eos=True)
        assert answer.finished is not None
        assert answer.finished.completion_tokens == 20
        assert launches == [False] + [True] * 19, "and none beyond the end that was known"


async def test_an_end_that_was_not_known_costs_one_step(checkpoint: Checkpoint) -> None:
    path = checkpoint()
    async with ahead(path) as served:
        whole = await served.ask(PROMPTS[0], max_tokens=20, ignore_eos=True)
        launches = note_launches(served)
        stopped = await served.ask(
            PROMPTS[0], max_tokens=20, ignore_eos=True, stop=(whole.text[3:5],)
        )
        assert stopped.finished is not None
        assert len(launches) == stopped.finished.completion_tokens + 1
        stats = served.engine.stats()
        assert stats.tokens == 20 + stopped.finished.completion_tokens, "what it drew is not used"
        again = await served.ask(PROMPTS[0], max_tokens=20, ignore_eos=True)
    assert again.text == whole.text


async def test_draws_that_depend_on_the_last_token_wait_for_it(checkpoint: Checkpoint) -> None:
    async with ahead(checkpoint()) as served:
        launches = note_launches(served)
        await served.ask(PROMPTS[0], max_tokens=9, ignore_eos=True, sampling=PENALISED)
    assert launches == [False] * 9


@pytest.mark.parametrize("architecture", ["qwen3", "falcon"])
async def test_preemption_leaves_the_answers_as_they_are(
    checkpoint: Checkpoint, architecture: str
) -> None:
    path = checkpoint(architecture)
    options: dict[str, Any] = {"max_tokens": 90, "ignore_eos": True}
    kinds = [GREEDY, HOT]
    async with serving(path) as served:
        wanted = [await served.ask(p, sampling=k, **options) for p in PROMPTS for k in kinds]
        room = served.engine._scheduler.budget.cost(200)
    async with ahead(path, kv_cache_memory=room, max_model_len=200) as served:
        preempted, launches = served.note_preempted(), note_launches(served)
        got: dict[tuple[int, int], Answer] = {}

        async def ask(prompt: int, kind: int) -> None:
            got[prompt, kind] = await served.ask(PROMPTS[prompt], sampling=kinds[kind], **options)

        async with anyio.create_task_group() as group:
            for prompt in range(len(PROMPTS)):
                for kind in range(len(kinds)):
                    group.start_soon(ask, prompt, kind)
    assert [got[key].text for key in sorted(got)] == [answer.text for answer in wanted]
    assert preempted
    assert any(launches)


@pytest.mark.parametrize("architecture", ["qwen3", "falcon"])
async def test_a_cancelled_answer_is_gone_within_two_steps(
    checkpoint: Checkpoint, architecture: str
) -> None:
    from hotswap.engine.forward.cached import CachedForward

    async with ahead(checkpoint(architecture)) as served:
        launches = note_launches(served)
        rendered = await served.registry.render(
            served.spec, request([1, 2, 3], max_tokens=400, ignore_eos=True)
        )
        async with served.engine.generate(rendered) as generation:
            async for _ in generation:
                break
        left_at = len(launches)
        with anyio.fail_after(60):
            while served.engine.stats().running or served.engine._under_way is not None:
                await anyio.sleep(0.001)
        assert len(launches) - left_at <= 2
        assert served.engine.stats().details["kv_used_bytes"] == 0
        forward = served.engine._runner.forward
        if isinstance(forward, CachedForward):
            assert forward.state_bytes == 0


async def test_out_of_memory_between_two_steps_costs_one_request(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"max_tokens": 20, "ignore_eos": True, "sampling": HOT}
    async with ahead(checkpoint()) as served:
        wanted = (await served.ask(PROMPTS[0], **short)).text
        forward = served.engine._runner.forward
        works, broken, both_came = forward.logits, list[int](), threading.Event()

        def short_once(segments: Any, ids: Any) -> Any:
            if len(segments[0].ids) == 1:
                assert both_came.wait(30)
            if len(segments) == 2 and ids is not None and not broken:
                broken.append(1)
                raise MemoryError
            return works(segments, ids)

        monkeypatch.setattr(forward, "logits", short_once)
        got: list[str] = []

        async def small() -> None:
            got.append((await served.ask(PROMPTS[0], **short)).text)

        async def large() -> None:
            with pytest.raises(InsufficientMemory):
                await served.ask([9] * 100, max_tokens=200, ignore_eos=True)

        async with anyio.create_task_group() as group:
            group.start_soon(small)
            group.start_soon(large)
            while served.engine.stats().running + served.engine.stats().waiting < 2:
                await anyio.sleep(0.001)
            both_came.set()
    assert broken
    assert got == [wanted]


async def test_a_step_that_breaks_on_the_device_ends_the_engine(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device tells of it when its results are asked for, the next step having been launched."""
    from hotswap.engine.runner import Launched

    def breaks(launched: Launched) -> Any:
        raise ValueError("an illegal instruction was encountered")

    async with ahead(checkpoint()) as served:
        monkeypatch.setattr(Launched, "results", breaks)
        with pytest.raises(EngineFailed):
            await served.ask(PROMPTS[0], max_tokens=9, ignore_eos=True)
        with anyio.fail_after(60):
            while served.engine.stats().alive:
                await anyio.sleep(0.001)
        assert served.engine._under_way is None
