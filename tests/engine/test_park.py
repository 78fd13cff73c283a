"""Models that left the device: kept, found again, let go; and put together from their files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.engine.forward.test_lean import READABLE
from tests.engine.serving import Served, ignore, spec_of

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.contracts.models import ModelSpec
    from hotswap.engine.forward.skeleton import Skeleton
    from hotswap.engine.park import Parked
    from hotswap.engine.prepared import TorchPrepared
    from hotswap.engine.registry import TorchEngineRegistry

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
PROMPT = list(range(3, 40))
LONG = list(range(3, 103))


def new_registry(**options: Any) -> TorchEngineRegistry:
    from hotswap.engine.registry import TorchEngineRegistry

    return TorchEngineRegistry(**options)


async def play(registry: TorchEngineRegistry, spec: ModelSpec, prompt: list[int]) -> str:
    """Have the model on the device, ask it, and take it off again."""
    prepared = await registry.prepare(spec, ignore)
    async with registry.start(prepared, ignore, ignore) as engine:
        return (await Served(registry, prepared, engine).ask(prompt, max_tokens=8)).text


async def start(registry: TorchEngineRegistry, prepared: TorchPrepared, prompt: list[int]) -> str:
    async with registry.start(prepared, ignore, ignore) as engine:
        return (await Served(registry, prepared, engine).ask(prompt, max_tokens=8)).text


def names(registry: TorchEngineRegistry) -> list[str]:
    return [parked.model.removeprefix("test/") for parked in registry.parked()]


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing is read through transformers."""
    from hotswap.engine import loader

    def read(*_: object) -> None:
        pytest.fail("it is read again")

    monkeypatch.setattr(loader, "read_weights", read)


# -- parked ------------------------------------------------------------------------------------


async def test_a_model_that_left_is_parked_and_found_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import loader as module

    spec, other = spec_of(checkpoint()), spec_of(checkpoint("llama"))
    async with new_registry() as registry:
        first = await play(registry, spec, PROMPT)
        await play(registry, other, PROMPT)
        assert names(registry) == ["qwen3", "llama"]
        refuse_to_read(monkeypatch)
        monkeypatch.delattr(module, "map_files")
        assert await play(registry, spec, PROMPT) == first
        assert names(registry) == ["llama", "qwen3"]


async def test_a_model_on_the_device_is_not_parked(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        await play(registry, spec, PROMPT)
        async with registry.start(await registry.prepare(spec, ignore), ignore, ignore):
            assert names(registry) == []
        assert names(registry) == ["qwen3"]


async def test_a_chat_goes_on_where_it_was_before_the_model_left(checkpoint: Checkpoint) -> None:
    """Only what is new is computed."""
    spec, turn = spec_of(checkpoint()), list(range(3, 103))
    async with new_registry() as registry:
        await play(registry, spec, turn)
        await play(registry, spec_of(checkpoint("llama")), turn)
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask([*turn, *range(200, 220)], max_tokens=2)
            assert engine.stats().details["reused_prompt_tokens"] == 96
        assert registry.memory is not None
        assert registry.memory.leaked_bytes == 0


async def test_other_settings_get_the_weights_and_a_pool_of_their_own(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        answer = await play(registry, spec, PROMPT)
        refuse_to_read(monkeypatch)
        shorter = replace(spec, engine=replace(spec.engine, max_model_len=64))
        prepared = await registry.prepare(shorter, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            assert engine.max_model_len == 64
            text = (await Served(registry, prepared, engine).ask(PROMPT, max_tokens=8)).text
        assert text == answer


async def test_a_type_that_was_asked_for_is_another_model(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        await play(registry, spec, PROMPT)
        half = replace(spec, engine=replace(spec.engine, dtype="bfloat16"))
        assert (await registry.prepare(half, ignore)).weights.dtype == "bfloat16"


async def test_files_that_changed_are_read_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint(), tmp_path / "changing"))
    spec = spec_of(path)
    async with new_registry() as registry:
        before = await play(registry, spec, PROMPT)
        other = checkpoint("llama")
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(other / name, tmp_path / name)
            os.replace(tmp_path / name, path / name)
        assert await play(registry, spec, PROMPT) != before
        assert names(registry) == ["changing"], "its former state is not kept beside it"


async def test_without_memory_for_them_no_models_are_parked(checkpoint: Checkpoint) -> None:
    async with new_registry(park_bytes=0) as registry:
        await play(registry, spec_of(checkpoint()), PROMPT)
        assert names(registry) == []


async def test_the_least_recently_used_model_makes_room(checkpoint: Checkpoint) -> None:
    specs = {name: spec_of(checkpoint(name)) for name in ("qwen3", "llama", "qwen2")}
    async with new_registry() as registry:
        for spec in specs.values():
            await play(registry, spec, PROMPT)
        sizes = {parked.model: parked.bytes for parked in registry.parked()}
    async with new_registry(park_bytes=sum(sizes.values()) - 1) as registry:
        for name in ("qwen3", "llama", "qwen3", "qwen2"):
            await play(registry, specs[name], PROMPT)
        assert names(registry) == ["qwen3", "qwen2"]
        await play(registry, specs["qwen3"], PROMPT)
        assert names(registry) == ["qwen2", "qwen3"]


async def test_a_pinned_model_stays_and_what_does_not_fit_beside_it_is_not_parked(
    checkpoint: Checkpoint,
) -> None:
    pinned = replace(spec_of(checkpoint()), pin=True)
    async with new_registry() as registry:
        await play(registry, pinned, PROMPT)
        [parked] = registry.parked()
    async with new_registry(park_bytes=parked.bytes) as registry:
        await play(registry, pinned, PROMPT)
        await play(registry, spec_of(checkpoint("llama")), PROMPT)
        assert names(registry) == ["qwen3"]


async def test_a_model_may_be_forgotten(checkpoint: Checkpoint) -> None:
    spec = replace(spec_of(checkpoint()), pin=True)
    async with new_registry() as registry:
        first = await play(registry, spec, PROMPT)
        registry.forget("nobody")
        assert names(registry) == ["qwen3"]
        registry.forget(spec.id)
        assert names(registry) == []
        assert await play(registry, spec, PROMPT) == first


@pytest.mark.parametrize("plays", [0, 1])
async def test_a_model_that_is_let_go_after_it_was_prepared_starts_all_the_same(
    checkpoint: Checkpoint, plays: int
) -> None:
    """Also if it has been on the device with what it had left behind."""
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        first = await play(registry, spec, LONG)
        prepared = await registry.prepare(spec, ignore)
        for _ in range(plays):
            async with registry.start(prepared, ignore, ignore):
                pass
        registry.forget(spec.id)
        assert await start(registry, prepared, LONG) == first


async def test_what_an_engine_that_failed_leaves_behind_is_not_used_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.errors import EngineFailed

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        first = await play(registry, spec, LONG)
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            monkeypatch.setattr(engine._runner, "launch", lambda *_: 1 // 0)
            with pytest.raises(EngineFailed):
                await Served(registry, prepared, engine).ask(LONG)
        assert names(registry) == []
        assert await start(registry, prepared, LONG) == first


async def test_an_engine_that_fails_while_it_is_left_is_not_parked(checkpoint: Checkpoint) -> None:
    from hotswap.errors import EngineFailed

    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            engine._wishes.put(lambda: engine._fail(EngineFailed("at the last moment")))
        assert names(registry) == []


async def test_a_start_that_is_cancelled_leaves_the_model_parked(checkpoint: Checkpoint) -> None:
    import anyio

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        first = await play(registry, spec, LONG)
        prepared = await registry.prepare(spec, ignore)
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with registry.start(prepared, ignore, ignore):
                pytest.fail("it was cancelled")
        assert names(registry) == ["qwen3"]
        assert await start(registry, prepared, LONG) == first


async def test_a_start_that_fails_before_it_begins_leaves_the_model_parked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device
    from hotswap.errors import DeviceLost

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        first = await play(registry, spec, PROMPT)
        prepared = await registry.prepare(spec, ignore)
        with monkeypatch.context() as lost:

            def used_bytes(_: object) -> int:
                raise DeviceLost("as a device that fell off its bus")

            lost.setattr(device, "used_bytes", used_bytes)
            with pytest.raises(DeviceLost):
                await start(registry, prepared, PROMPT)
        assert names(registry) == ["qwen3"]
        assert await start(registry, prepared, PROMPT) == first


async def test_a_parked_model_starts_when_more_models_were_seen_than_are_known(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import findings

    monkeypatch.setattr(findings, "_KNOWN_MODELS", 1)
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        first = await play(registry, spec, PROMPT)
        await play(registry, spec_of(checkpoint("llama")), PROMPT)
        assert await play(registry, spec, PROMPT) == first


async def test_a_model_that_had_no_room_once_starts_when_there_is_some(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.stage import Stage
    from hotswap.errors import InsufficientMemory

    def short(*_: object) -> None:
        raise InsufficientMemory("for the moment")

    spec = spec_of(checkpoint())
    async with new_registry(park_bytes=0) as registry:
        prepared = await registry.prepare(spec, ignore)
        first = await start(registry, prepared, PROMPT)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Stage, "_reserve", short)
            with pytest.raises(InsufficientMemory):
                await start(registry, prepared, PROMPT)
        assert await start(registry, prepared, PROMPT) == first


async def test_with_other_settings_the_former_pool_is_let_go(checkpoint: Checkpoint) -> None:
    from hotswap.engine.rested import AtRest

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        await play(registry, spec, PROMPT)
        parked = registry._park.find(spec.id, (await registry.prepare(spec, ignore)).key)
        assert parked is not None
        assert isinstance(parked.rested, AtRest)
        pool = parked.rested.forward.pool
        assert pool.token_bytes > 0
        other = replace(spec, engine=replace(spec.engine, max_num_seqs=3))
        async with registry.start(await registry.prepare(other, ignore), ignore, ignore):
            assert pool.token_bytes == 0


async def test_two_names_of_one_directory_are_parked_side_by_side(checkpoint: Checkpoint) -> None:
    spec = replace(spec_of(checkpoint()), pin=True)
    async with new_registry() as registry:
        await play(registry, spec, PROMPT)
        await play(registry, replace(spec, id="test/other", pin=False), PROMPT)
        assert names(registry) == ["qwen3", "other"]


async def test_parked_models_make_way_for_one_that_is_wanted_if_that_helps(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they give back is their own memory, not the weights that are mapped."""
    from hotswap.engine import device
    from hotswap.engine.fit import HOST_RESERVE_BYTES
    from hotswap.errors import InsufficientMemory

    wanted = spec_of(checkpoint("qwen2"))
    async with new_registry() as registry:
        need = (await registry.estimate(wanted)).weights_bytes + HOST_RESERVE_BYTES
        await play(registry, spec_of(checkpoint()), LONG)
        await play(registry, spec_of(checkpoint("llama"), dtype="bfloat16"), LONG)  # converted
        mapped, converted = (registry._park._models[p.model] for p in registry.parked())
        assert 0 < mapped.private_bytes < converted.private_bytes

        def free() -> int:
            gone = sum(p.private_bytes for p in (mapped, converted) if _is_gone(p))
            return need - missing + gone

        def _is_gone(parked: Parked) -> bool:
            return parked not in registry._park._models.values()

        monkeypatch.setattr(device, "free_host_bytes", free)
        missing = mapped.private_bytes + converted.private_bytes + 1
        with pytest.raises(InsufficientMemory, match="the host has"):
            await registry.prepare(wanted, ignore)
        assert names(registry) == ["qwen3", "llama"], "it would not have been enough"
        missing = mapped.private_bytes
        prepared = await registry.prepare(wanted, ignore)
        assert names(registry) == ["llama"]
        # Also when it is known how much it takes.
        missing = 0
        await start(registry, prepared, PROMPT)
        registry.forget(wanted.id)
        missing = mapped.private_bytes + 1
        await registry.prepare(wanted, ignore)
        assert names(registry) == []


async def test_a_parked_model_comes_back_when_memory_is_short(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are in memory already."""
    from hotswap.engine import device

    spec = spec_of(checkpoint(), kv_cache_memory=100_000)
    async with new_registry() as registry:
        first = await play(registry, spec, PROMPT)
        monkeypatch.setattr(device, "free_host_bytes", lambda: (256 << 20) + 200_000)
        assert (await registry.estimate(spec)).fits
        assert await play(registry, spec, PROMPT) == first
        registry.forget(spec.id)
        assert await play(registry, spec, PROMPT) == first
        registry.forget(spec.id)
        monkeypatch.setattr(device, "free_host_bytes", lambda: 256 << 20)
        assert not (await registry.estimate(spec)).fits


def parked(name: str, size: int, *, pin: bool = False) -> Any:
    """As much of a parked model as the park looks at."""
    from types import SimpleNamespace as Some

    from hotswap.engine.park import Parked

    prepared = Some(spec=Some(id=name, pin=pin), key=name, weights=Some(bytes=size, mapped=True))
    return Parked(cast("Any", prepared), None)


@pytest.mark.parametrize(
    ("sizes", "pinned", "left"),
    [
        ((3, 3, 3), "", "abc"),
        ((3, 3, 6), "", "bc"),
        ((3, 3, 10), "", "c"),
        ((3, 3, 11), "", "ab"),
        ((3, 3, 6), "a", "ac"),
        ((3, 3, 8), "a", "ab"),
        ((6, 3, 5), "ac", "ab"),
    ],
)
def test_the_park_keeps_what_fits(sizes: tuple[int, ...], pinned: str, left: str) -> None:
    from hotswap.engine.park import Park

    park, gone = Park(10), list[str]()
    for name, size in zip("abc", sizes, strict=True):
        going = park.put(parked(name, size, pin=name in pinned))
        gone += [one.prepared.spec.id for one in going]
    assert [reading.model for reading in park.readings()] == list(left)
    assert sorted(gone) == sorted(set("abc") - set(left))


def test_the_model_whose_turn_it_is_stays_in_the_park_and_its_room_is_free() -> None:
    from hotswap.engine.park import Park

    park = Park(100)
    assert not park.put(parked("next", 60))
    assert not park.put(parked("old", 40))
    park.expect("next")
    gone = park.put(parked("left", 70))
    assert [one.prepared.spec.id for one in gone] == ["old"]
    assert {reading.model for reading in park.readings()} == {"left", "next"}
    assert park.put(parked("huge", 101))[0].prepared.spec.id == "huge"
    park.claim("next", cast("Any", "next"))
    assert park.put(parked("next", 60))[0].prepared.spec.id == "left"
    assert park.put(parked("left", 70))[0].prepared.spec.id == "next", "its turn has come and gone"


async def test_two_models_with_room_for_one_are_parked_in_turn(checkpoint: Checkpoint) -> None:
    """Each keeps what it remembers, although both together are too large."""
    spec, other = spec_of(checkpoint()), spec_of(checkpoint("llama"))
    async with new_registry() as registry:
        await play(registry, spec, LONG)
        room = registry.parked()[0].bytes
    async with new_registry(park_bytes=room + 1000) as registry:
        await play(registry, spec, LONG)
        resident = await registry.prepare(other, ignore)
        async with registry.start(resident, ignore, ignore):
            prepared = await registry.prepare(spec, ignore)
        assert "qwen3" in names(registry)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask([*LONG, 7, 8], max_tokens=2)
            assert engine.stats().details["reused_prompt_tokens"] == 96


async def test_weights_that_were_read_ahead_are_no_leak(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted ones lie in the process's own memory while another model leaves it."""
    from hotswap.engine import device, stay

    spec, coming = spec_of(checkpoint()), spec_of(checkpoint("llama"), dtype="bfloat16")
    used = [1 << 30]
    monkeypatch.setattr(stay, "_CPU_NOISE_BYTES", 0)
    monkeypatch.setattr(device, "used_bytes", lambda _: used[0])
    async with new_registry(park_bytes=0) as registry:
        await play(registry, coming, PROMPT)
        resident = await registry.prepare(spec, ignore)
        async with registry.start(resident, ignore, ignore):
            prepared = await registry.prepare(coming, ignore)
            used[0] += prepared.weights.bytes
        assert registry.memory is not None
        assert registry.memory.leaked_bytes == 0
        async with registry.start(prepared, ignore, ignore):
            used[0] += 4096
        assert registry.memory.leaked_bytes == 4096


async def test_weights_that_are_mapped_are_no_part_of_what_is_measured(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device

    monkeypatch.setattr(device, "used_bytes", lambda _: 1000)
    async with new_registry() as registry:
        resident = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(resident, ignore, ignore):
            first = await registry.prepare(spec_of(checkpoint("llama")), ignore)
            assert first.weights.known is None
        assert registry.memory is not None
        assert registry.memory.before_bytes == 1000


async def test_keys_and_values_that_do_not_fit_keep_no_model_out_of_the_park(
    checkpoint: Checkpoint,
) -> None:
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        prepared = await registry.prepare(spec, ignore)
        room = prepared.weights.bytes + 100
    async with new_registry(park_bytes=room) as registry:
        await play(registry, spec, LONG)
        assert names(registry) == ["qwen3"]
        assert registry.parked()[0].bytes < room


async def test_a_context_that_was_cut_grows_again_when_there_is_memory(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        await play(registry, spec, PROMPT)
        registry.forget(spec.id)
        prepared = await registry.prepare(spec, ignore)
        with monkeypatch.context() as short:
            short.setattr(device, "free_bytes", lambda _: 200_000)
            async with registry.start(prepared, ignore, ignore) as engine:
                cut = engine.max_model_len
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            assert engine.max_model_len > cut


async def test_keys_and_values_that_cannot_be_kept_do_not_keep_a_model_on_the_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.stage import Stage

    def break_down(*_: object) -> None:
        raise RuntimeError("no room for a copy")

    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Stage, "_rested", break_down)
            first = await play(registry, spec, PROMPT)
        assert names(registry) == ["qwen3"]
        assert await play(registry, spec, PROMPT) == first


async def test_files_that_go_after_they_were_read_do_no_harm(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoint(), tmp_path / "going"))
    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(path), ignore)
        (path / "model.safetensors").unlink()
        assert await start(registry, prepared, PROMPT)


@pytest.mark.parametrize("what", ["gone", "replaced"])
async def test_files_that_change_while_they_are_read_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from hotswap.engine import loader as module
    from hotswap.engine.blueprint import map_files
    from hotswap.errors import CheckpointRefused

    path = Path(shutil.copytree(checkpoint(), tmp_path / "changing"))
    file = path / "model.safetensors"

    def meanwhile(files: Sequence[Path]) -> Any:
        file.unlink()
        if what == "replaced":
            shutil.copyfile(checkpoint() / file.name, file)
        return map_files(files)

    monkeypatch.setattr(module, "map_files", meanwhile)
    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused, match="changed"):
            await registry.prepare(spec_of(path), ignore)


# -- put together from the files -----------------------------------------------------------------


def tensors_of(skeleton: Skeleton) -> list[Tensor]:
    from hotswap.engine.blueprint import with_tensors

    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with_tensors(skeleton, note)
    return found


async def discovered(
    registry: TorchEngineRegistry, spec: ModelSpec
) -> tuple[TorchPrepared, Skeleton]:
    """The model after its first stay, when it has become a skeleton."""
    from hotswap.engine.forward.skeleton import Skeleton

    prepared = await registry.prepare(spec, ignore)
    async with registry.start(prepared, ignore, ignore):
        skeleton = prepared.weights.content
        assert isinstance(skeleton, Skeleton)
    return prepared, skeleton


@pytest.mark.parametrize("architecture", sorted(set(READABLE) - {"qwen3_moe_normalised"}))
async def test_a_skeleton_is_put_together_again_as_it_was(
    checkpoint: Checkpoint, architecture: str
) -> None:
    import torch

    from hotswap.engine.blueprint import Blueprint, map_files, stretches

    async with new_registry(park_bytes=0) as registry:
        prepared, skeleton = await discovered(registry, spec_of(checkpoint(architecture)))
        blueprint = Blueprint.of(skeleton, prepared.weights.files)
        assert blueprint is not None
        file = checkpoint(architecture) / "model.safetensors"
        arenas = map_files([file])
        assert sum(map(len, stretches(arenas))) == file.stat().st_size
        again = tensors_of(blueprint.bind(arenas))
    wanted = tensors_of(skeleton)
    assert len(again) == len(wanted) > 10
    for one, other in zip(wanted, again, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    mapped = [
        tensor
        for tensor in again
        for arena in arenas
        if arena.data_ptr() <= tensor.data_ptr() < arena.data_ptr() + len(arena)
    ]
    assert len(mapped) == len(blueprint.places) > 10


async def test_a_known_model_is_not_read_through_transformers_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec_of(checkpoint(name)) for name in ("qwen3", "gemma3")]
    async with new_registry(park_bytes=0) as registry:
        answers = [await play(registry, spec, PROMPT) for spec in specs]
        refuse_to_read(monkeypatch)
        assert [await play(registry, spec, PROMPT) for spec in specs] == answers


async def test_weights_that_were_converted_are_read_again(checkpoint: Checkpoint) -> None:
    """They are no part of any file."""
    from hotswap.engine.blueprint import Blueprint

    spec = spec_of(checkpoint(), dtype="bfloat16")
    async with new_registry(park_bytes=0) as registry:
        prepared, skeleton = await discovered(registry, spec)
        assert Blueprint.of(skeleton, prepared.weights.files) is None
        first = await play(registry, spec, PROMPT)
        assert await play(registry, spec, PROMPT) == first


async def test_a_load_is_given_up_between_two_parts_of_a_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyio

    from hotswap.engine import blueprint
    from hotswap.engine import loader as module

    monkeypatch.setattr(blueprint, "_CHUNK_BYTES", 4096)
    parts: list[int] = []
    begun = anyio.Event()

    def read_in(stretch: Tensor) -> None:
        parts.append(len(stretch))
        if len(parts) == 3:
            anyio.from_thread.run_sync(begun.set)

    monkeypatch.setattr(module, "fill_page_cache", read_in)
    async with new_registry() as registry, anyio.create_task_group() as tasks:
        tasks.start_soon(registry.prepare, spec_of(checkpoint()), ignore)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert 3 <= len(parts) < checkpoint().joinpath("model.safetensors").stat().st_size // 4096


def test_what_is_in_memory_already_is_not_mapped_for_it(tmp_path: Path) -> None:
    from hotswap.engine import blueprint

    file = tmp_path / "weights"
    file.write_bytes(bytes(3 << 20))
    [arena] = blueprint.map_files([file])
    assert blueprint._is_cached(arena)
    assert blueprint._is_cached(arena[4097:12_345])
    mapped = smaps_of(file)
    blueprint.fill_page_cache(arena)
    assert smaps_of(file) == mapped < 3 << 10
    blueprint.read_in(arena)
    assert smaps_of(file) >= 3 << 10


def smaps_of(file: Path) -> int:
    """KiB of it that this process has mapped."""
    parts = Path("/proc/self/smaps").read_text().split(str(file))
    return sum(int(part.split("Rss:")[1].split()[0]) for part in parts[1:])


async def test_progress_grows_from_part_to_part(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import blueprint

    monkeypatch.setattr(blueprint, "_CHUNK_BYTES", 8192)
    told: list[float] = []

    def report(stage: str, done: float) -> None:
        if stage == "reading":
            told.append(done)

    async with new_registry() as registry:
        await registry.prepare(spec_of(checkpoint()), report)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert len(set(told)) > 5
