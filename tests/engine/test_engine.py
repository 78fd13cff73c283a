from __future__ import annotations

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from hotswap.contracts.answers import Finished
from hotswap.contracts.requests import SamplingParams
from hotswap.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InsufficientMemory,
    ModelUnloaded,
    ShuttingDown,
    SwapInProgress,
)
from tests.engine.serving import Answer, Served, reference, request, serving, spec_of

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]

PROMPTS = [[5 + i for i in range(6)], [300 - i for i in range(33)], [7, 50, 9], list(range(40, 57))]

LONG = [(i * 31) % 300 for i in range(100)]


def text_of(served: Served, ids: list[int]) -> str:
    return served.prepared.front.vocabulary.text(ids)


@pytest.fixture
def threads_switched_as_in_the_server() -> Iterator[None]:
    from hotswap.server import SWITCH_INTERVAL_S

    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    yield
    sys.setswitchinterval(before)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


async def test_a_prompt_longer_than_a_step_is_computed_in_chunks(checkpoint: Checkpoint) -> None:
    for architecture in ("mistral", "gpt_oss"):
        path = checkpoint(architecture)
        prompt = [(i * 31) % 300 for i in range(70)]
        [expected] = reference(path, [prompt], 8)
        async with serving(path) as served:
            served.engine._scheduler.limits = _with_step_tokens(served, 16)
            steps = served.engine.stats().steps
            answer = await served.ask(prompt, max_tokens=8, ignore_eos=True)
            assert answer.text == text_of(served, expected)
            assert served.engine.stats().steps - steps == 5 + 7


def _with_step_tokens(served: Served, tokens: int) -> Any:
    return dataclasses.replace(
        served.engine._scheduler.limits, token_budget=tokens, token_budget_beside=tokens
    )


@pytest.mark.parametrize("architecture", ["qwen3", "falcon"])
async def test_preemption_leaves_the_answers_as_they_are(
    checkpoint: Checkpoint, architecture: str
) -> None:
    path = checkpoint(architecture)
    options: dict[str, Any] = {
        "max_tokens": 90,
        "ignore_eos": True,
        "sampling": SamplingParams(temperature=0.9, seed=3, presence_penalty=0.3),
    }
    async with serving(path) as served:
        wanted = [(await served.ask(prompt, **options)).text for prompt in PROMPTS]
        room = served.engine._scheduler.budget.cost(200)
    async with serving(path, kv_cache_memory=room, max_model_len=200) as served:
        preempted = served.note_preempted()
        answers = await served.ask_all(*PROMPTS, **options)
    assert [answer.text for answer in answers] == wanted
    assert preempted


async def test_of_a_repeated_prompt_only_the_tail_is_computed(checkpoint: Checkpoint) -> None:
    def details(name: str) -> int:
        return int(served.engine.stats().details[name])

    async with serving(checkpoint()) as served:
        first = await served.ask(LONG, max_tokens=9, ignore_eos=True)
        assert details("reused_prompt_tokens") == details("kv_used_bytes") == 0
        assert details("kv_remembered_bytes") > 0
        again = await served.ask(LONG, max_tokens=9, ignore_eos=True)
        assert again.text == first.text
        # All full blocks but the one that holds the last token.
        assert details("reused_prompt_tokens") == 96
        other = await served.ask([*LONG[:50], 5, 6, 7], max_tokens=9, ignore_eos=True)
        assert details("reused_prompt_tokens") == 96 + 48
    assert [cached_tokens(answer) for answer in (first, again, other)] == [0, 96, 48]
    async with serving(checkpoint()) as served:
        alone = await served.ask([*LONG[:50], 5, 6, 7], max_tokens=9, ignore_eos=True)
    assert other.text == alone.text


def cached_tokens(answer: Answer) -> int:
    assert answer.finished is not None
    return answer.finished.cached_tokens


async def test_choices_of_one_prompt_compute_it_once(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        alone = await served.ask(LONG, max_tokens=5, ignore_eos=True)
    async with serving(checkpoint()) as served:
        choices = await served.ask_all(LONG, max_tokens=5, ignore_eos=True, n=6)
        assert served.engine.stats().details["reused_prompt_tokens"] == 5 * 96
        again = await served.ask_all(LONG, max_tokens=5, ignore_eos=True, n=2)
    assert [choice.text for choice in choices] == [alone.text] * 6
    assert list(map(cached_tokens, choices)) == [0] * 6, "none of the prompt was known before"
    assert list(map(cached_tokens, again)) == [96, 0], "a prompt is counted once"


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt2"])
async def test_a_beginning_that_is_copied_is_as_good_as_a_shared_or_a_computed_one(
    checkpoint: Checkpoint, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import scheduler

    path = checkpoint(architecture)
    prompts = [[*LONG[:70], 5, number] for number in range(5)]
    options: dict[str, Any] = {
        "max_tokens": 20,
        "ignore_eos": True,
        "sampling": SamplingParams(temperature=0.8, seed=11),
    }
    alone = []
    for prompt in prompts:
        async with serving(path) as served:
            alone.append((await served.ask(prompt, **options)).text)
    for worth_sharing, copied in ((0, False), (512, True)):
        monkeypatch.setattr(scheduler, "_WORTH_SHARING_TOKENS", worth_sharing)
        async with serving(path) as served:
            forward, copies = served.engine._runner.forward, list[tuple[int, int]]()
            copy = forward.copy

            def noted(
                blocks: Sequence[tuple[int, int]],
                copies: list[tuple[int, int]] = copies,
                copy: Callable[[Sequence[tuple[int, int]]], None] = copy,
            ) -> None:
                copies.extend(blocks)
                copy(blocks)

            monkeypatch.setattr(forward, "copy", noted)
            answers = await served.ask_all(*prompts, **options)
            assert served.engine.stats().details["reused_prompt_tokens"] == 4 * 64
        assert len(copies) == 4 * 4 * copied
        assert [answer.text for answer in answers] == alone


async def test_an_answer_that_is_continued_is_not_computed_again(checkpoint: Checkpoint) -> None:
    path = checkpoint()
    [ids] = reference(path, [LONG], 40)
    async with serving(path) as served:
        await served.ask(LONG, max_tokens=40, ignore_eos=True)
        longer = [*LONG, *ids, 3, 4]
        answer = await served.ask(longer, max_tokens=5, ignore_eos=True)
        # The keys and values of the last token drawn were never needed.
        assert served.engine.stats().details["reused_prompt_tokens"] == 128
        [expected] = reference(path, [longer], 5)
        assert answer.text == text_of(served, expected)


@pytest.mark.parametrize("architecture", ["qwen3", "falcon"])
async def test_a_cancelled_answer_is_gone_at_the_next_step(
    checkpoint: Checkpoint, architecture: str
) -> None:
    from hotswap.engine.forward.cached import CachedForward

    async with serving(checkpoint(architecture)) as served:
        rendered = await served.registry.render(
            served.spec, request([1, 2, 3], max_tokens=400, ignore_eos=True)
        )
        async with served.engine.generate(rendered) as generation:
            async for _ in generation:
                break
        left_at = served.engine.stats().steps
        await until(lambda: served.engine.stats().running == 0)
        assert served.engine.stats().steps - left_at <= 1, "only the step that was under way"
        assert served.engine.stats().details["kv_used_bytes"] == 0
        forward = served.engine._runner.forward
        if isinstance(forward, CachedForward):
            assert forward.state_bytes == 0


async def test_an_idle_engine_does_not_step(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        await served.ask([1, 2], max_tokens=3)
        await until(lambda: served.engine.stats().running == 0)
        steps = served.engine.stats().steps
        await served.registry.render(served.spec, request("anything"))
        assert served.engine.stats().steps == steps


async def test_the_end_of_the_first_answer_is_told_once(checkpoint: Checkpoint) -> None:
    told: list[int] = []
    async with serving(checkpoint()) as served:
        engine = served.engine
        engine._answered = lambda: told.append(engine._ended)
        async with anyio.create_task_group() as group:
            for tokens in (3, 40):
                group.start_soon(partial(served.ask, [1, 2, 3], max_tokens=tokens, ignore_eos=True))
        await served.ask([1, 2, 3], max_tokens=2)
        await until(lambda: engine._ended == 3)
    assert told == [1]


async def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(checkpoint: Checkpoint) -> None:
    hot = SamplingParams(temperature=1.3, top_p=0.95, seed=1234)
    async with serving(checkpoint()) as served:
        alone = await served.ask(PROMPTS[0], sampling=hot, max_tokens=20)
        batch = await served.ask_all(*PROMPTS, sampling=hot, max_tokens=20)
        choices = await served.ask_all(PROMPTS[0], sampling=hot, max_tokens=20, n=3)
        unseeded = await served.ask_all(
            PROMPTS[0], sampling=SamplingParams(temperature=1.3), max_tokens=20, n=3
        )
    assert batch[0].text == alone.text == choices[0].text
    assert len({choice.text for choice in choices}) == 3
    assert len({choice.text for choice in unseeded}) == 3


async def test_a_seed_of_the_settings_holds_for_requests_without_one(
    checkpoint: Checkpoint,
) -> None:
    hot = SamplingParams(temperature=1.3)
    async with serving(checkpoint(), sampling=SamplingParams(seed=1234)) as served:
        ours = [(await served.ask(PROMPTS[0], sampling=hot, max_tokens=20)).text for _ in range(2)]
        seeds = [
            (
                await served.ask(
                    PROMPTS[0], sampling=SamplingParams(temperature=1.3, seed=seed), max_tokens=20
                )
            ).text
            for seed in (1234, 0)
        ]
    assert ours == [seeds[0]] * 2
    assert seeds[1] != seeds[0]


async def test_choices_are_numbered_by_prompt_and_choice(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        answers = await served.ask_all(PROMPTS[0], PROMPTS[2], n=2, max_tokens=5, ignore_eos=True)
        alone = [
            await served.ask(p, max_tokens=5, ignore_eos=True) for p in (PROMPTS[0], PROMPTS[2])
        ]
    texts = [answer.text for answer in answers]
    assert texts == [alone[0].text, alone[0].text, alone[1].text, alone[1].text]


async def test_an_answer_ends_at_the_token_that_ends_it(checkpoint: Checkpoint) -> None:
    path = checkpoint()
    [ids] = reference(path, PROMPTS[:1], 12)
    end = next(token for token in ids[3:] if token not in ids[:3])
    place = ids.index(end)
    async with serving(path) as served:
        stopped = await served.ask(
            PROMPTS[0], max_tokens=12, ignore_eos=True, stop_token_ids=(end,)
        )
        assert stopped.text == text_of(served, ids[:place])
        assert stopped.finished is not None
        assert stopped.finished.reason == "stop"
        assert stopped.finished.completion_tokens == place + 1
        later = await served.ask(
            PROMPTS[0],
            max_tokens=12,
            min_tokens=place + 3,
            ignore_eos=True,
            stop_token_ids=(end,),
        )
        assert later.finished is not None
        assert later.finished.completion_tokens >= place + 3


async def test_the_eos_token_ends_an_answer_unless_ignored(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        [eos] = served.prepared.front.eos_ids
        sure = SamplingParams(temperature=0.0, logit_bias={eos: 1000.0})
        ended = await served.ask([1, 2], sampling=sure, max_tokens=9)
        assert (ended.text, ended.finished) == (
            "",
            Finished(index=0, reason="stop", completion_tokens=1),
        )
        ignored = await served.ask([1, 2], sampling=sure, max_tokens=9, ignore_eos=True)
        assert ignored.finished == Finished(index=0, reason="length", completion_tokens=9)
        assert ignored.text == ""


async def test_stop_strings_end_an_answer_and_are_never_shown(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        whole = (await served.ask(PROMPTS[1], max_tokens=30, ignore_eos=True)).text
        for begin in range(0, len(whole) - 6, 3):
            stop = whole[begin : begin + 6]
            answer = await served.ask(PROMPTS[1], max_tokens=30, ignore_eos=True, stop=(stop,))
            assert answer.text == whole[: whole.index(stop)]
            assert answer.finished is not None
            assert answer.finished.stop_sequence == stop


async def test_logprobs_are_of_the_model_and_cover_the_answer(checkpoint: Checkpoint) -> None:
    from tests.engine.checkpoints import VOCAB

    async with serving(checkpoint()) as served:
        answer = await served.ask(PROMPTS[0], max_tokens=6, ignore_eos=True, logprobs=VOCAB)
        biased = SamplingParams(temperature=0.0, logit_bias={40: 100.0})
        forced = await served.ask([1], max_tokens=1, sampling=biased, logprobs=0)
    assert len(answer.logprobs) == 6
    for entry in answer.logprobs:
        all_of_them = [top.logprob or 0.0 for top in entry.top]
        assert sum(map(math.exp, all_of_them)) == pytest.approx(1, abs=1e-4)
        assert entry.logprob == all_of_them[0] == max(all_of_them)
    assert b"".join(e.raw for e in answer.logprobs).decode(errors="replace") == answer.text
    assert (forced.logprobs[0].logprob or 0.0) < -1e-3
    assert forced.logprobs[0].top == ()


async def test_logprobs_of_a_stop_string_are_not_shown(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        whole = await served.ask(PROMPTS[0], max_tokens=12, ignore_eos=True, logprobs=0)
        stop = "".join(e.text for e in whole.logprobs[5:7])
        cut = await served.ask(PROMPTS[0], max_tokens=12, ignore_eos=True, logprobs=0, stop=(stop,))
    assert cut.logprobs == whole.logprobs[: len(cut.logprobs)]
    assert "".join(entry.text for entry in cut.logprobs) == cut.text


async def test_echo_begins_each_choice_with_its_prompt(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        plain = await served.ask("The quick brown", max_tokens=4, ignore_eos=True)
        echoed = await served.ask_all(
            "The quick brown", max_tokens=4, ignore_eos=True, echo=True, n=2
        )
    assert [answer.text for answer in echoed] == ["The quick brown" + plain.text] * 2


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "mamba"])
async def test_an_echo_with_logprobs_tells_those_of_the_prompt(
    checkpoint: Checkpoint, architecture: str
) -> None:
    """In all tiers, whatever is remembered, and whatever would end an answer."""
    import torch

    from tests.engine.checkpoints import hf

    path = checkpoint(architecture)
    options: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True, "logprobs": 2, "n": 2}
    async with serving(path) as served:
        plain = await served.ask_all(LONG, LONG[:7], **options)
        stops = {"stop": (text_of(served, LONG[1:4]),), "stop_token_ids": (LONG[4],)}
        told = await served.ask_all(LONG, LONG[:7], echo=True, **stops, **options)
        texts = [text_of(served, LONG), text_of(served, LONG[:7])]
        tokens = served.engine.stats().tokens
    model = hf().AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([LONG])).logits[0].log_softmax(-1)
    for number, (ours, answer) in enumerate(zip(told, plain, strict=True)):
        prompt = LONG if number < 2 else LONG[:7]
        first, *others = ours.logprobs
        assert (first.logprob, first.top) == (None, ())
        for place, entry in enumerate(others[: len(prompt) - 1]):
            expected = logprobs[place]
            assert entry.logprob == pytest.approx(float(expected[prompt[place + 1]]), abs=1e-3)
            likely = [float(value) for value in expected.topk(2).values]
            assert [top.logprob for top in entry.top] == pytest.approx(likely, abs=1e-3)
        assert ours.text == texts[number // 2] + answer.text
        assert [e.text for e in ours.logprobs[len(prompt) :]] == [e.text for e in answer.logprobs]
        assert ours.finished is not None
        assert (ours.finished.reason, ours.finished.completion_tokens) == ("length", 4)
        assert ours.finished.cached_tokens == 0
    assert tokens == 2 * 4 * len(plain), "what the prompts were drawn as is not counted"


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "mamba"])
async def test_a_prompt_is_scored_without_an_answer(
    checkpoint: Checkpoint, architecture: str
) -> None:
    """Also one that fills the context, and one of a single token."""
    options: dict[str, Any] = {"echo": True, "logprobs": 1}
    prompts = [LONG[:40], LONG[:7], LONG[:1]]
    async with serving(checkpoint(architecture), max_model_len=40) as served:
        expected = await served.ask_all(*prompts[1:], max_tokens=1, ignore_eos=True, **options)
        told = await served.ask_all(*prompts, max_tokens=0, **options)
        bare = await served.ask_all(*prompts, max_tokens=0, echo=True, n=2)
        texts = [text_of(served, prompt) for prompt in prompts]
        before = served.engine.stats().tokens
        with pytest.raises(ContextLengthExceeded):
            await served.ask(LONG[:41], max_tokens=0, **options)
    assert before == 2, "an answer's tokens only"
    assert [answer.text for answer in told] == texts
    assert [answer.text for answer in bare] == [text for text in texts for _ in range(2)]
    for prompt, answer in zip(prompts, told, strict=True):
        assert len(answer.logprobs) == len(prompt)
        assert answer.logprobs[0].logprob is None
    for longer, answer in zip(expected, told[1:], strict=True):
        for ours, theirs in zip(answer.logprobs[1:], longer.logprobs[1:], strict=False):
            assert ours.raw == theirs.raw
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    for answer in (*told, *bare):
        assert answer.finished is not None
        assert (answer.finished.reason, answer.finished.completion_tokens) == ("length", 0)


async def test_a_prompt_of_a_step_and_one_token_is_scored_alone_and_beside_an_answer(
    checkpoint: Checkpoint,
) -> None:
    """Its last token is computed by itself, and no token follows it."""
    async with serving(checkpoint()) as served:
        scheduler = served.engine._scheduler
        scheduler.limits = dataclasses.replace(
            scheduler.limits, token_budget=16, token_budget_beside=8
        )
        options: dict[str, Any] = {"max_tokens": 0, "echo": True}
        with anyio.fail_after(60):
            alone = await served.ask(LONG[:33], **options)
            async with anyio.create_task_group() as group:
                group.start_soon(partial(served.ask, LONG[:5], max_tokens=64, ignore_eos=True))
                beside = [await served.ask(LONG[:n], **options) for n in (17, 25, 33, 34)]
        for answer in (alone, *beside):
            assert answer.finished is not None
            assert answer.finished.reason == "length"
        assert served.engine.failure is None


async def test_an_echo_with_logprobs_tells_the_token_that_ends_the_answer(
    checkpoint: Checkpoint,
) -> None:
    """lm-evaluation-harness takes all but the last token for the prompt."""
    async with serving(checkpoint()) as served:
        [eos] = served.prepared.front.eos_ids
        sure = SamplingParams(temperature=0.0, logit_bias={eos: 1000.0})
        options: dict[str, Any] = {"sampling": sure, "max_tokens": 1, "logprobs": 1}
        told = await served.ask(LONG[:9], echo=True, **options)
        plain = await served.ask(LONG[:9], **options)
        end = served.prepared.front.vocabulary.raw(eos)
    assert [entry.raw for entry in told.logprobs[9:]] == [end]
    assert told.text == text_of(served, LONG[:9])
    assert plain.logprobs == []


async def test_without_max_tokens_an_answer_goes_on_to_the_end_of_the_context(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint(), max_model_len=40) as served:
        answer = await served.ask(PROMPTS[0], ignore_eos=True)
        cut = await served.ask(PROMPTS[0], ignore_eos=True, max_tokens=4096, cut_to_context=True)
    assert answer.finished == Finished(index=0, reason="length", completion_tokens=34)
    assert (cut.finished, cut.text) == (answer.finished, answer.text)


async def test_what_does_not_fit_this_engine_is_refused_on_entering(checkpoint: Checkpoint) -> None:
    from hotswap.engine.text import PromptRenderer

    path = checkpoint()
    async with serving(path, kv_cache_memory=100_000) as served:
        limit, front = served.engine.max_model_len, served.prepared.front
        assert limit < front.max_model_len
        renderer = PromptRenderer(served.spec.id, front, served.spec.sampling)
        rendered = renderer.render(request([1] * 20, max_tokens=front.max_model_len - 20))
        with pytest.raises(ContextLengthExceeded, match=f"maximum context length is {limit} "):
            async with served.engine.generate(rendered):
                pass
        assert served.engine.stats().waiting == 0


async def test_a_context_that_was_asked_for_and_has_no_room_is_refused(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(InsufficientMemory, match="lower max_model_len"):
        async with serving(checkpoint(), kv_cache_memory=1000, max_model_len=256):
            pass


async def test_a_budget_for_not_even_one_token_says_what_to_raise(checkpoint: Checkpoint) -> None:
    says = (
        r"of 1 token need [\d.]+ (bytes|KiB) and there is room for 9 bytes; raise kv_cache_memory\."
    )
    with pytest.raises(InsufficientMemory, match=says):
        async with serving(checkpoint(), kv_cache_memory=9):
            pass


async def test_more_than_may_run_wait_and_their_number_is_told(checkpoint: Checkpoint) -> None:
    rings = 0

    def ring() -> None:
        nonlocal rings
        rings += 1

    async with serving(checkpoint(), max_num_seqs=2, changed=ring) as served:
        prompts = [[i, i + 1] for i in range(6)]
        answers = await served.ask_all(*prompts, max_tokens=100, ignore_eos=True)
        assert len(answers) == 6
        stats = served.engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
    assert rings >= 3


async def test_requests_are_counted_by_request_and_sequences_beside_them(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint(), max_num_seqs=2) as served:
        long = request([1, 2], [3, 4], n=2, max_tokens=400, ignore_eos=True)
        rendered = await served.registry.render(served.spec, long)
        async with served.engine.generate(rendered), served.engine.generate(rendered):
            await until(lambda: served.engine.stats().running == 1)
            stats = served.engine.stats()
            assert stats.waiting == 1
            assert stats.details["running_sequences"] == 2
            assert stats.details["waiting_sequences"] == 6
        await until(lambda: served.engine.stats().running == 0)
        stats = served.engine.stats()
        assert (stats.waiting, stats.details["waiting_sequences"]) == (0, 0)


async def test_a_request_that_was_rendered_for_another_model_is_refused(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint()) as served:
        other = await served.registry.render(spec_of(checkpoint("llama")), request([1]))
        with pytest.raises(EngineFailed, match="test/llama"):
            async with served.engine.generate(other):
                pass


async def test_a_failure_is_raised_anew_each_time_and_keeps_no_frames(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint()) as served:
        rendered = await served.registry.render(served.spec, request([1], ignore_eos=True))
        async with served.engine.generate(rendered) as generation:
            served.engine.abort(SwapInProgress("another model is wanted"))
            raised = []
            for _ in range(2):
                with pytest.raises(SwapInProgress) as caught:
                    await anext(generation)
                raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert generation.error is not None
    assert generation.error.__traceback__ is None


async def test_a_step_that_raises_ends_every_answer_and_the_engine(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    rang = anyio.Event()
    async with serving(checkpoint(), changed=rang.set) as served:
        runner = served.engine._runner
        works = runner.launch

        def breaks(plan: Any, after: Any) -> Any:
            if served.engine.stats().steps > 3:
                raise ValueError("secret of the inside")
            return works(plan, after)

        monkeypatch.setattr(runner, "launch", breaks)
        failures: list[EngineFailed] = []

        async def ask(prompt: list[int]) -> None:
            with pytest.raises(EngineFailed) as caught:
                await served.ask(prompt, max_tokens=50, ignore_eos=True)
            failures.append(caught.value)

        async with anyio.create_task_group() as group:
            for prompt in PROMPTS:
                group.start_soon(ask, prompt)
        assert len({id(failure) for failure in failures}) == len(PROMPTS)
        assert "secret" not in str(failures[0])
        await rang.wait()
        assert isinstance(served.engine.failure, EngineFailed)
        await until(lambda: not served.engine.stats().alive)
        with pytest.raises(EngineFailed):
            await served.ask([1])


async def test_that_nothing_moved_while_there_was_no_work_is_not_told_as_a_hang(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint()) as served:
        engine, wakes = served.engine, threading.Event()

        def wake_slowly() -> None:
            wakes.wait(60)

        rendered = await served.registry.render(served.spec, request([1], max_tokens=2))
        engine._wishes.put(wake_slowly)
        before = time.monotonic()
        assert engine.stats().last_progress < before
        async with engine.generate(rendered) as first, engine.generate(rendered):
            stats = engine.stats()
            assert stats.waiting == 2
            assert stats.last_progress >= before
            await until(lambda: time.monotonic() > stats.last_progress)
            async with engine.generate(rendered):
                assert engine.stats().last_progress == stats.last_progress, "more work is no step"
            wakes.set()
            assert [event async for events in first for event in events]


async def test_out_of_memory_costs_one_request_and_the_others_go_on(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(checkpoint()) as served:
        wanted = (await served.ask(PROMPTS[0], max_tokens=100, ignore_eos=True)).text
        runner = served.engine._runner
        works = runner.launch
        before = served.engine.stats().steps
        broken: list[int] = []

        def short_once(plan: Any, after: Any) -> Any:
            if len(plan.chunks) == 2 and served.engine.stats().steps > before + 4 and not broken:
                broken.append(1)
                raise MemoryError
            return works(plan, after)

        monkeypatch.setattr(runner, "launch", short_once)
        small, large = [
            await served.registry.render(
                served.spec, request(prompt, max_tokens=tokens, ignore_eos=True)
            )
            for prompt, tokens in ((PROMPTS[0], 100), ([9] * 100, 200))
        ]
        answer = Answer()
        # At once: one that is still to be rendered may find the other one gone.
        async with served.engine.generate(small) as first, served.engine.generate(large) as second:
            with pytest.raises(InsufficientMemory):
                async for _ in second:
                    pass
            async for events in first:
                for event in events:
                    answer.take(event)
        assert answer.text == wanted
        assert served.engine.failure is None


async def test_abort_ends_running_and_waiting_answers_with_the_error(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint(), max_num_seqs=1) as served:
        refused = 0

        async def ask() -> None:
            nonlocal refused
            with pytest.raises(SwapInProgress, match="another model"):
                await served.ask([1, 2], max_tokens=400, ignore_eos=True)
            refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            await until(lambda: served.engine.stats().running == 1)
            await until(lambda: served.engine.stats().waiting == 2)
            served.engine.abort(SwapInProgress("another model is wanted"))
        assert refused == 3
        assert (await served.ask([1, 2], max_tokens=2, ignore_eos=True)).finished is not None


async def test_leaving_the_engine_ends_its_answers_with_model_unloaded(
    checkpoint: Checkpoint,
) -> None:
    async def ask(served: Served) -> None:
        with pytest.raises(ModelUnloaded):
            await served.ask([1, 2], max_tokens=400, ignore_eos=True)

    async with anyio.create_task_group() as group, serving(checkpoint()) as served:
        late = await served.registry.render(served.spec, request([1]))
        group.start_soon(ask, served)
        await until(lambda: served.engine.stats().running == 1)
    with pytest.raises(ModelUnloaded):
        async with served.engine.generate(late):
            pass
    with pytest.raises(ShuttingDown):
        await served.registry.render(served.spec, request([1]))


@pytest.mark.usefixtures("threads_switched_as_in_the_server")
async def test_a_busy_event_loop_does_not_delay_the_steps(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        rendered = await served.registry.render(
            served.spec, request([1, 2], max_tokens=30, ignore_eos=True)
        )
        async with served.engine.generate(rendered) as generation:
            deadline = time.monotonic() + 60
            # The event loop is held here: no await until the engine has finished.
            while served.engine.stats().tokens < 30 and time.monotonic() < deadline:
                pass
            assert served.engine.stats().tokens >= 30
            batches = [events async for events in generation]
    assert len(batches) == 1, "all that has come is given out at once"
    assert isinstance(batches[0][-1], Finished)


@pytest.mark.usefixtures("threads_switched_as_in_the_server")
async def test_a_stall_of_the_event_loop_does_not_stop_decoding(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        rendered = await served.registry.render(served.spec, request([1, 2], ignore_eos=True))
        async with served.engine.generate(rendered) as generation:
            await anext(generation)
            before, end = served.engine.stats().tokens, time.monotonic() + 0.2
            while time.monotonic() < end:
                pass
            assert served.engine.stats().tokens > before
            await anext(generation)


async def test_a_reader_that_is_cancelled_takes_its_sequence_along(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        async with anyio.create_task_group() as group:
            group.start_soon(served.ask, [1, 2, 3])
            await until(lambda: served.engine.stats().tokens > 3)
            group.cancel_scope.cancel()
        await until(lambda: served.engine.stats().running == 0)
        assert served.engine._generations == {}
