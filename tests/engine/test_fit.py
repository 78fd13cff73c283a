"""Whether a model would fit, before anything of it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.serving import ignore, spec_of

if TYPE_CHECKING:
    from hotswap.contracts.models import ModelSpec
    from hotswap.contracts.reports import Estimate

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
"""Keys and values of two layers with two groups of heads of eight float32."""


async def estimated(spec: ModelSpec) -> Estimate:
    from hotswap.engine.registry import TorchEngineRegistry

    async with TorchEngineRegistry() as registry:
        return await registry.estimate(spec)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much of the host's memory is free."""
    from hotswap.engine import device

    def has(free: int) -> None:
        monkeypatch.setattr(device, "free_host_bytes", lambda: free)

    return has


async def test_bytes_are_those_of_the_headers_and_of_the_configuration(
    checkpoint: Checkpoint,
) -> None:
    found = await estimated(spec_of(checkpoint()))
    file = checkpoint() / "model.safetensors"
    assert 0 < file.stat().st_size - found.weights_bytes < 10_000
    assert found.kv_bytes == 512 * TOKEN_BYTES
    assert found.fits
    assert found.reason is None


async def test_numbers_that_become_others_are_counted_as_these(checkpoint: Checkpoint) -> None:
    saved = await estimated(spec_of(checkpoint()))
    half = await estimated(spec_of(checkpoint(), dtype="bfloat16"))
    assert half.weights_bytes == saved.weights_bytes // 2


async def test_of_a_model_that_has_run_they_are_what_was_measured(checkpoint: Checkpoint) -> None:
    from hotswap.engine.registry import TorchEngineRegistry

    # All of Falcon's heads share one of keys and values: its configuration says so elsewhere.
    for name, is_as_guessed in (("qwen3", True), ("gpt2", True), ("falcon", False)):
        spec = spec_of(checkpoint(name))
        async with TorchEngineRegistry() as registry:
            guessed = await registry.estimate(spec)
            prepared = await registry.prepare(spec, ignore)
            async with registry.start(prepared, ignore, ignore):
                known = await registry.estimate(spec)
        assert 0 < known.kv_bytes <= guessed.kv_bytes
        assert (known.kv_bytes == guessed.kv_bytes) is is_as_guessed


async def test_a_state_that_does_not_grow_takes_no_keys(checkpoint: Checkpoint) -> None:
    assert (await estimated(spec_of(checkpoint("mamba")))).kv_bytes == 0


async def test_weights_that_the_host_has_no_memory_for_do_not_fit(
    checkpoint: Checkpoint, host: Callable[[int], None]
) -> None:
    host(1 << 20)
    found = await estimated(spec_of(checkpoint()))
    assert not found.fits
    assert found.reason is not None
    assert "the host has 0.0 GiB free" in found.reason


@pytest.mark.parametrize(("asked", "fits"), [(None, True), (400, False)])
async def test_a_context_that_would_be_cut_is_told_and_refused_where_it_was_asked_for(
    checkpoint: Checkpoint, asked: int | None, fits: bool
) -> None:
    spec = spec_of(checkpoint(), kv_cache_memory=100 * TOKEN_BYTES)
    spec = replace(spec, engine=replace(spec.engine, max_model_len=asked))
    found = await estimated(spec)
    assert found.fits is fits
    assert found.reason == "There is room for the keys and values of 100 tokens only."


async def test_a_start_gets_the_context_that_was_promised(
    checkpoint: Checkpoint, host: Callable[[int], None]
) -> None:
    from hotswap.engine.registry import TorchEngineRegistry

    spec = spec_of(checkpoint())
    async with TorchEngineRegistry() as registry:
        async with registry.start(await registry.prepare(spec, ignore), ignore, ignore):
            pass
        host(1_000 * TOKEN_BYTES)
        reason = (await registry.estimate(spec)).reason
        async with registry.start(await registry.prepare(spec, ignore), ignore, ignore) as engine:
            longest = engine.max_model_len
    assert reason == "There is room for the keys and values of 300 tokens only."
    assert longest in range(285, 301), "whole blocks"


async def test_no_room_for_a_single_token_is_no_room(checkpoint: Checkpoint) -> None:
    found = await estimated(spec_of(checkpoint(), kv_cache_memory=TOKEN_BYTES - 1))
    assert not found.fits
    assert found.reason is not None
    assert "single token" in found.reason


@pytest.mark.parametrize("known", [False, True])
async def test_what_cannot_fit_is_refused_before_it_is_read(
    checkpoint: Checkpoint, known: bool
) -> None:
    """So that the model that serves need not leave for it."""
    from hotswap.engine.registry import TorchEngineRegistry
    from hotswap.errors import InsufficientMemory

    async with TorchEngineRegistry() as registry:
        if known:
            prepared = await registry.prepare(spec_of(checkpoint()), ignore)
            async with registry.start(prepared, ignore, ignore):
                pass
        with pytest.raises(InsufficientMemory, match="kv_cache_memory asks for"):
            await registry.prepare(spec_of(checkpoint(), kv_cache_memory=1 << 50), ignore)
        small = spec_of(checkpoint(), kv_cache_memory=TOKEN_BYTES - 1)
        if known:
            with pytest.raises(InsufficientMemory, match="single token"):
                await registry.prepare(small, ignore)
        else:  # how much a token takes is a guess by then
            assert await registry.prepare(small, ignore)
