"""The engine: what it does with several requests, with those who leave, and when it fails."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hotswap.contracts.requests import GenerationRequest, TextPrompt
from hotswap.errors import (
    CheckpointRefused,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelUnloaded,
)
from tests.engine.embedding.serving import Embedding, embedding, embedding_spec, request, rows
from tests.engine.serving import Served, ignore, spec_of
from tests.engine.serving import request as generation_request

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Encoders = Callable[..., Path]
Checkpoint = Callable[..., Path]
MEAN = {"pooling_mode_mean_tokens": True}


def new_registry(**options: Any) -> Any:
    from hotswap.engine.registry import TorchEngineRegistry

    return TorchEngineRegistry(**options)


class Gate:
    """Holds the device thread before the first layer until it is opened."""

    def __init__(self, served: Embedding) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._open = threading.Event()
        self.layers = 0
        body: Any = served.engine._encoder.body
        self._hooks = [layer.register_forward_hook(self._count) for layer in body.encoder.layer]
        self._hooks.append(body.embeddings.register_forward_hook(self._wait))

    def _wait(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._open.wait(30)

    def _count(self, *_: Any) -> None:
        self.layers += 1

    def open(self) -> None:
        self._open.set()

    def remove(self) -> None:
        self.open()
        for hook in self._hooks:
            hook.remove()


@contextmanager
def gate(served: Embedding) -> Iterator[Gate]:
    made = Gate(served)
    try:
        yield made
    finally:
        made.remove()


def failing(served: Embedding, error: Callable[[int], Exception | None]) -> list[int]:
    """Has a batch of so many texts fail; grows by the size of each batch."""
    encoder: Any = served.engine._encoder
    sizes, forward = list[int](), encoder.forward

    def sometimes(texts: Any, before_layer: Any) -> Any:
        sizes.append(len(texts))
        found = error(len(texts))
        if found is not None:
            raise found
        return forward(texts, before_layer)

    encoder.forward = sometimes
    return sizes


async def test_requests_that_wait_are_computed_together(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        alone = [await served.ask(text) for text in ("a cat", "the dog", "fox fox")]
        found: dict[int, Any] = {}

        async def ask(number: int, text: str) -> None:
            found[number] = await served.ask(text)

        steps = served.engine.stats().steps
        async with anyio.create_task_group() as tasks:
            with gate(served) as closed:
                tasks.start_soon(served.ask, "the lazy dog")
                await closed.reached.wait()
                for number, text in enumerate(("a cat", "the dog", "fox fox")):
                    tasks.start_soon(ask, number, text)
                while served.engine._accepted < 7:
                    await asyncio.sleep(0)
                stats = served.engine.stats()
                assert (stats.running, stats.waiting) == (1, 3)
        assert served.engine.stats().steps == steps + 2
        stats = served.engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        for number, one in enumerate(alone):
            assert found[number].vectors[0] == pytest.approx(one.vectors[0], abs=1e-6)


async def test_many_texts_are_split_and_come_back_in_their_order(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        served.engine._batch_tokens = 40
        texts = [" ".join(["fox"] * (1 + 7 * i % 30)) for i in range(25)]
        together = await served.ask(*texts)
        assert served.engine.stats().steps > 5
        for text, vector in zip(texts, together.vectors, strict=True):
            assert vector == pytest.approx((await served.ask(text)).vectors[0], abs=1e-6)


async def test_who_leaves_stops_what_is_computed_for_nobody_else(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        with gate(served) as closed:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(served.ask, "a cat")
                await closed.reached.wait()
                tasks.cancel_scope.cancel()
            closed.open()
            assert len((await served.ask("a dog")).vectors) == 1
            assert closed.layers == 3  # of the second one
        stats = served.engine.stats()
        assert (stats.steps, stats.running, stats.waiting) == (1, 0, 0)


async def test_an_abort_ends_what_runs_and_the_engine_goes_on(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        with gate(served) as closed:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(raises, ModelUnloaded, served.ask("a cat", "a dog"))
                await closed.reached.wait()
                served.engine.abort(ModelUnloaded("away"))
        assert len((await served.ask("a cat")).vectors) == 1


async def raises(kind: type[Exception], work: Any) -> None:
    with pytest.raises(kind):
        await work


async def test_leaving_the_device_ends_what_runs(encoder: Encoders) -> None:
    async with anyio.create_task_group() as tasks, embedding(encoder(pooling=MEAN)) as served:
        with gate(served) as closed:
            tasks.start_soon(raises, ModelUnloaded, served.ask("a cat"))
            await closed.reached.wait()
            served.engine.stop()
        with pytest.raises(ModelUnloaded):
            await served.ask("a cat")


async def test_out_of_memory_makes_batches_smaller_and_costs_only_what_never_fits(
    encoder: Encoders,
) -> None:
    import torch

    async with embedding(encoder(pooling=MEAN)) as served:
        expected = rows(await served.ask("a cat", "a dog", "a fox"))
        sizes = failing(served, lambda n: torch.OutOfMemoryError("full") if n > 1 else None)
        found = rows(await served.ask("a cat", "a dog", "a fox"))
        assert torch.allclose(found, expected, atol=1e-6)
        assert sizes[0] == 3
        assert sizes[-3:] == [1, 1, 1]
        del served.engine._encoder.forward
        failing(served, lambda _: torch.OutOfMemoryError("full"))
        with pytest.raises(InsufficientMemory):
            await served.ask("a cat")
        del served.engine._encoder.forward
        assert served.engine.failure is None
        assert len((await served.ask("a cat")).vectors) == 1


async def test_what_is_no_number_costs_only_the_text_that_it_is_in(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        step = served.engine._encoder.steps[-1]

        def spoil(*arguments: Any) -> Any:
            vectors = arguments[2].clone()
            vectors[0, 0] = float("nan")
            return vectors

        hook = step.register_forward_hook(spoil)
        with pytest.raises(EngineFailed, match="no numbers"):
            await served.ask("a cat", "a dog")
        hook.remove()
        assert len((await served.ask("a cat")).vectors) == 1


async def test_a_step_that_raises_costs_the_engine(encoder: Encoders) -> None:
    calls = []
    async with new_registry() as registry:
        spec = embedding_spec(encoder(pooling=MEAN))
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, lambda: calls.append(1)) as engine:
            served = Embedding(registry, spec, engine)
            failing(served, lambda _: RuntimeError("broken"))
            with pytest.raises(EngineFailed):
                await served.ask("a cat")
            assert isinstance(engine.failure, EngineFailed)
            assert calls
            with pytest.raises(EngineFailed):
                await served.ask("a cat")
            del engine._encoder.forward
        assert registry.parked() == ()  # what did not work is read anew


async def test_chat_and_embedding_models_follow_each_other_and_leave_nothing(
    encoder: Encoders, checkpoint: Checkpoint
) -> None:
    chat = spec_of(checkpoint())
    embed = replace(embedding_spec(encoder("qwen3", pooling=MEAN)), id="test/embedding")
    answers: list[str] = []
    vectors = []
    async with new_registry() as registry:
        for spec in (chat, embed, chat, embed, chat):
            prepared = await registry.prepare(spec, ignore)
            async with registry.start(prepared, ignore, ignore) as engine:
                assert registry.current is engine
                if spec is chat:
                    answer = await Served(registry, prepared, engine).ask([1, 2, 3])
                    answers.append(answer.text)
                else:
                    vectors.append((await Embedding(registry, spec, engine).ask("a b")).vectors)
                    assert engine.stats().details["task"] == "embed"
            assert not engine.stats().alive
            if answers and vectors:  # the first start of a process keeps what it has compiled
                assert registry.memory is not None
                assert registry.memory.leaked_bytes == 0
        assert {one.model for one in registry.parked()} == {chat.id, embed.id}
    assert len(set(answers)) == 1
    assert vectors[0] == vectors[1]


async def test_a_parked_model_is_not_read_again(encoder: Encoders) -> None:
    async with new_registry() as registry:
        spec = embedding_spec(encoder(pooling=MEAN))
        contents = []
        for _ in range(2):
            prepared = await registry.prepare(spec, ignore)
            contents.append(prepared.weights.content)
            async with registry.start(prepared, ignore, ignore) as engine:
                await Embedding(registry, spec, engine).ask("a cat")
        assert contents[0] is contents[1]


async def test_an_engine_that_was_left_is_not_kept(encoder: Encoders) -> None:
    async with new_registry(park_bytes=0) as registry:
        spec = embedding_spec(encoder(pooling=MEAN))
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Embedding(registry, spec, engine).ask("a cat")
            kept = weakref.ref(engine)
            gc.disable()  # it may be long before garbage is collected
        del engine
        await anyio.lowlevel.checkpoint()  # what was called on the loop is over
        try:
            assert kept() is None
        finally:
            gc.enable()


async def test_each_kind_of_model_refuses_what_is_for_the_other(
    encoder: Encoders, checkpoint: Checkpoint
) -> None:
    async with new_registry() as registry:
        chat, embed = spec_of(checkpoint()), embedding_spec(encoder(pooling=MEAN))
        with pytest.raises(InvalidRequest, match="is an embedding model"):
            await registry.render(embed, generation_request("a"))
        with pytest.raises(InvalidRequest, match="is not an embedding model"):
            await registry.render_embedding(chat, request("a"))
        prepared = await registry.prepare(embed, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            with pytest.raises(InvalidRequest):
                engine.generate(GenerationRequest(prompts=(TextPrompt("a"),)))
        prepared = await registry.prepare(chat, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            with pytest.raises(InvalidRequest):
                await engine.embed(None)


async def test_the_estimate_asks_for_no_keys_and_values(encoder: Encoders) -> None:
    async with new_registry() as registry:
        found = await registry.estimate(embedding_spec(encoder(pooling=MEAN)))
        assert found.fits
        assert found.kv_bytes == 0
        assert found.weights_bytes > 0


async def test_a_model_that_comes_to_no_numbers_is_refused_at_the_start(
    encoder: Encoders, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(encoder(pooling=MEAN), tmp_path / "m"))
    tensors = load_file(path / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    async with new_registry() as registry:
        prepared = await registry.prepare(embedding_spec(path), ignore)
        with pytest.raises(CheckpointRefused, match="does not compute"):
            async with registry.start(prepared, ignore, ignore):
                pass
        assert registry.memory.leaked_bytes == 0


async def test_tensors_that_are_missing_are_refused_unless_nothing_comes_of_them(
    encoder: Encoders, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(encoder(pooling=MEAN), tmp_path / "m"))
    tensors = load_file(path / "model.safetensors")
    poolers = [name for name in tensors if name.startswith("pooler.")]
    assert poolers
    for name in poolers:
        del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    async with embedding(path) as served:
        assert len((await served.ask("a cat")).vectors) == 1
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused, match="are missing"):
            await registry.prepare(embedding_spec(path), ignore)
