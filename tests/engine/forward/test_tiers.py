"""Every architecture, in the tier that it is expected to get, answers as `generate` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.checkpoints import ARCHITECTURES, VARIANTS, WITHOUT_SKELETON
from tests.engine.serving import Served, reference, serving

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]

TIERS = {
    "gemma": "S",
    "gemma2": "S",
    "gemma3": "S",
    "llama": "S",
    "llama_biases": "S",
    "llama_rope_linear": "S",
    "llama_rope_llama3": "S",
    "llama_rope_yarn": "S",
    "llama_tied": "S",
    "ministral": "S",
    "mistral": "S",
    "mistral_without_window": "S",
    "olmo2": "S",
    "olmo3": "S",
    "olmoe": "S",
    "phi3": "S",
    "phi3_partial": "S",
    "qwen2": "S",
    "qwen2_windows": "S",
    "qwen3": "S",
    "qwen3_moe": "S",
    "qwen3_moe_normalised": "S",
    "seed_oss": "S",
    "gpt2": "A",
    "gpt_neox": "A",
    "gpt_oss": "A",
    "granite": "A",
    "smollm3": "A",
    "falcon": "B",
    "llama_rope_dynamic": "B",
    "mamba": "B",
}
EXPERTS = {"olmoe", "qwen3_moe", "qwen3_moe_normalised"}
"""Those of tier S that the compiled loops do not know."""
SHARED = [(11 * i) % 300 for i in range(40)]
"""More than two blocks."""
PROMPTS = [[5 + i for i in range(6)], [300 - i for i in range(33)], [7, 50, 9], [*SHARED, 1, 2]]
TAILS = [[*SHARED, 3], [*SHARED, *range(60, 80)]]
TOKENS = 16
ANSWER: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True}


@cache
def wanted(path: Path) -> list[list[int]]:
    return reference(path, PROMPTS + TAILS, TOKENS)


def texts_wanted(served: Served, path: Path) -> list[str]:
    return [served.prepared.front.vocabulary.text(ids) for ids in wanted(path)]


def reused(served: Served) -> int:
    return int(served.engine.stats().details["reused_prompt_tokens"])


async def test_every_architecture_has_a_tier_that_is_expected() -> None:
    assert TIERS.keys() == (ARCHITECTURES | VARIANTS).keys()
    assert {name for name, tier in TIERS.items() if tier != "S"} == WITHOUT_SKELETON


@pytest.mark.parametrize("architecture", sorted(TIERS))
async def test_greedy_answers_equal_generate_alone_in_a_batch_and_with_a_known_beginning(
    checkpoint: Checkpoint, architecture: str
) -> None:
    path = checkpoint(architecture)
    async with serving(path) as served:
        assert served.tier == TIERS[architecture]
        assert is_native(served) == (served.tier == "S" and architecture not in EXPERTS)
        texts = texts_wanted(served, path)
        assert (await served.ask(PROMPTS[1], **ANSWER)).text == texts[1]
        assert await staggered(served, PROMPTS) == texts[: len(PROMPTS)]
        before = reused(served)
        assert await staggered(served, TAILS) == texts[len(PROMPTS) :]
        # Two of the blocks that both prompts begin with are full.
        assert reused(served) - before == (0 if served.tier == "B" else 2 * 32)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", sorted(TIERS))
async def test_greedy_answers_on_a_cuda_device_equal_generate(
    checkpoint: Checkpoint, architecture: str
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    path = checkpoint(architecture)
    async with serving(path, device="cuda") as served:
        assert served.tier == TIERS[architecture]
        texts = texts_wanted(served, path)
        for _ in range(3):  # as it is, recorded, replayed
            assert (await served.ask(PROMPTS[1], **ANSWER)).text == texts[1]
        assert await staggered(served, PROMPTS) == texts[: len(PROMPTS)]
        assert await staggered(served, TAILS) == texts[len(PROMPTS) :]


def is_native(served: Served) -> bool:
    """Its newest tokens are computed by compiled loops."""
    if find_spec("numba") is None:
        pytest.skip("Numba is not installed")
    from hotswap.engine.native.forward import NativeForward

    return isinstance(served.engine._runner.forward, NativeForward)


async def staggered(served: Served, prompts: list[list[int]]) -> list[str]:
    """The answers when each prompt comes some steps after the one before."""
    got: dict[int, str] = {}
    start = served.engine.stats().steps

    async def ask(number: int) -> None:
        while served.engine.stats().steps < start + 4 * number:
            await anyio.sleep(0.001)
        got[number] = (await served.ask(prompts[number], **ANSWER)).text

    with anyio.fail_after(600):
        async with anyio.create_task_group() as group:
            for number in range(len(prompts)):
                group.start_soon(ask, number)
    return [got[number] for number in range(len(prompts))]


@pytest.mark.parametrize("architecture", sorted(TIERS))
async def test_greedy_answers_equal_generate_in_chunks_and_where_room_is_scarce(
    checkpoint: Checkpoint, architecture: str
) -> None:
    path = checkpoint(architecture)
    async with serving(path) as served:
        texts = texts_wanted(served, path)
        room = served.engine._scheduler.budget.cost(96)
    async with serving(path, kv_cache_memory=room, max_model_len=96) as served:
        scheduler = served.engine._scheduler
        scheduler.limits = dataclasses.replace(
            scheduler.limits, token_budget=9, token_budget_beside=7
        )
        preempted = served.note_preempted()
        answers = await served.ask_all(*PROMPTS, *TAILS, **ANSWER)
        assert [answer.text for answer in answers] == texts
        assert scheduler.used_bytes == 0
        assert bool(preempted) == (architecture != "mamba"), "its state does not grow"
