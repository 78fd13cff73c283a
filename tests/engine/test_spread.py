"""A model whose parts lie on several devices. Host memory stands in for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.errors import CheckpointRefused, EngineFailed, InsufficientMemory
from tests.engine.serving import Served, ignore, serving, spec_of
from tests.engine.spreading import PROMPT, HostRoom, new_registry, play, spread_spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hotswap.engine.device_memory import Room
    from hotswap.engine.spread import Spread

pytestmark = [pytest.mark.torch, pytest.mark.anyio, pytest.mark.usefixtures("no_reserve")]

Checkpoint = Callable[..., Path]
KB = 1000


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[Spread]:
    """Grows by each model that is spread from now on."""
    from hotswap.engine import stage
    from hotswap.engine.spread import Spread

    noted: list[Spread] = []

    class Noted(Spread):
        def __init__(self, *arguments: Any) -> None:
            noted.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(stage, "Spread", Noted)
    return noted


async def undivided(path: Path) -> str:
    async with serving(path) as served:
        return (await served.ask(PROMPT, max_tokens=8)).text


def storages(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.untyped_storage().nbytes() for tensor in tensors]


def tensors_of(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


# -- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "sizes", "places"),
    [
        ("qwen3", (120, 120), {0, 1}),
        ("qwen3", (140, 50), {0, 1, "cpu"}),
        ("qwen3", (140,), {0, "cpu"}),
        ("gemma3", (220, 100), {0, 1, "cpu"}),  # tied, with windows
        ("gpt2", (190, 150), {0, 1}),
        ("mamba", (100, 20), {0, "cpu"}),
        ("falcon", (140, 70), {0, 1, "cpu"}),
        ("gpt_oss", (220, 140), {0, 1, "cpu"}),
        ("qwen3_moe", (140, 50), {0, 1, "cpu"}),
    ],
)
async def test_answers_are_those_of_the_undivided_model(
    checkpoint: Checkpoint,
    placed: list[Spread],
    architecture: str,
    sizes: tuple[int, ...],
    places: set[int | str],
) -> None:
    path = checkpoint(architecture)
    wanted = await undivided(path)
    async with new_registry(*(size * KB for size in sizes)) as registry:
        text, details = await play(registry, spread_spec(path))
        assert text == wanted
        again, _ = await play(registry, spread_spec(path))
        assert again == wanted
    assert (details["weights"], details["tier"]) == ("spread", "B")
    assert sum(details["weights_on"].values()) == details["weights_bytes"]
    assert [set(spread._map.bytes) for spread in placed] == [places, places]


async def test_what_lies_on_the_host_is_there_only_while_it_is_computed_with(
    checkpoint: Checkpoint, placed: list[Spread]
) -> None:
    from hotswap.engine.device_map import HOST, named_tensors

    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask(PROMPT, max_tokens=3)
            [spread] = placed
            for name, tensor, is_buffer in named_tensors(spread.model):
                is_away = spread._map.place_of(name, is_buffer=is_buffer) == HOST
                assert (tensor.device.type == "meta") == is_away
            assert spread._map.bytes[HOST] > 0
            fetched = vars(spread.model.get_submodule("lm_head"))["_hf_hook"].weights_map["weight"]
            own = spread._host.get_parameter("lm_head.weight")
            assert fetched.data_ptr() == own.data_ptr(), "the host has it once"


async def test_twenty_swaps_to_and_fro_keep_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine.device import used_bytes

    large = spread_spec(checkpoint())
    small = spread_spec(checkpoint("mamba"))
    answers: dict[str, set[str]] = {}
    kinds, sizes = [], []
    async with new_registry(140 * KB, 50 * KB) as registry:
        for turn in range(20):
            spec = (large, small)[turn % 2]
            text, details = await play(registry, spec)
            answers.setdefault(spec.id, set()).add(text)
            kinds.append(details["weights"])
            sizes.append(used_bytes(torch.device("cpu")))
    assert kinds == ["spread", "modules"] * 10
    assert [len(texts) for texts in answers.values()] == [1, 1]
    assert sizes[-1] - sizes[5] < 4 << 20


async def test_what_was_on_devices_is_freed_where_stray_references_live(
    checkpoint: Checkpoint, placed: list[Spread]
) -> None:
    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB, 50 * KB) as registry:
        prepared = await registry.prepare(spec, ignore)
        host = tensors_of(prepared.weights.content)
        before = [tensor.clone() for tensor in host]
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask(PROMPT, max_tokens=3)
            model, mine = placed[0].model, list(placed[0]._own)
            assert all(storages(mine))
        assert storages(mine) == [0] * len(mine)
        left = [name for name, _ in model.named_parameters()]
        assert not left, "the host's tensors are not kept by modules"
        assert not [module for module in model.modules() if hasattr(module, "_hf_hook")]
        now = tensors_of(prepared.weights.content)
        assert len(now) == len(before)
        assert all((a == b).all() for a, b in zip(before, now, strict=True))


async def test_a_step_that_fails_leaves_nothing_of_what_it_had_fetched(
    checkpoint: Checkpoint, placed: list[Spread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the hooks of a module."""
    import torch

    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB) as registry:
        wanted, _ = await play(registry, spec)
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            fetched: list[Tensor] = []

            def fails(_: Tensor) -> None:
                # As it is where a device has memory of its own.
                fetched.append(head.get_parameter("weight").clone())
                head._parameters["weight"] = torch.nn.Parameter(fetched[0], requires_grad=False)
                raise RuntimeError("in the middle of it")

            head = placed[-1].model.get_submodule("lm_head")
            monkeypatch.setattr(head, "_old_forward", fails)
            with pytest.raises(EngineFailed):
                await Served(registry, prepared, engine).ask(PROMPT)
        assert storages(fetched) == [0]
        assert (await play(registry, spec))[0] == wanted


@pytest.mark.parametrize("fails_at", [1, 5, None])
async def test_a_start_that_fails_half_way_leaves_nothing(
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int | None,
) -> None:
    """At a tensor, or when all of them are there."""
    import accelerate
    import torch

    from hotswap.engine import spread as module

    made: list[Tensor] = []
    empty_like, dispatch = torch.empty_like, accelerate.dispatch_model

    def counted(tensor: Tensor, **options: Any) -> Tensor:
        if len(made) == fails_at:
            raise torch.OutOfMemoryError("as CUDA does")
        made.append(empty_like(tensor, **options))
        return made[-1]

    def dispatched(*arguments: Any, **options: Any) -> None:
        dispatch(*arguments, **options)
        if fails_at is None:
            raise torch.OutOfMemoryError("as CUDA does")

    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB, 50 * KB) as registry:
        prepared = await registry.prepare(spec, ignore)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(torch, "empty_like", counted)
            meanwhile.setattr(module, "dispatch_model", dispatched)
            with pytest.raises(InsufficientMemory):
                async with registry.start(prepared, ignore, ignore):
                    pytest.fail("it has no room")
        assert made
        assert not any(storages(made))
        assert registry.memory is not None
        assert registry.memory.leaked_bytes == 0
        async with registry.start(prepared, ignore, ignore) as engine:
            assert (await Served(registry, prepared, engine).ask(PROMPT)).finished


# -- when it is spread, and when not ---------------------------------------------------------------


async def test_a_model_that_fits_lies_whole_whatever_the_setting(checkpoint: Checkpoint) -> None:
    async with new_registry(10_000 * KB, 10_000 * KB) as registry:
        for device_map in ("auto", "none"):
            spec = spec_of(checkpoint(), device_map=device_map)
            _, details = await play(registry, spec)
            assert (details["weights"], details["tier"]) == ("mapped", "S")
            assert details["weights_on"] == {"cpu": details["weights_bytes"]}
            assert (await registry.estimate(spec)).spread is None


async def test_a_model_that_would_fill_its_device_lies_there_only_if_it_cannot_be_spread(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device_map, fit

    for module in (device_map, fit):
        monkeypatch.setattr(module, "DEVICE_RESERVE_BYTES", 30 * KB)
    spec = spread_spec(checkpoint())
    async with new_registry(210 * KB, 80 * KB) as registry:
        assert (await play(registry, spec))[1]["weights"] == "spread"
    monkeypatch.setattr("transformers.Qwen3PreTrainedModel._no_split_modules", None)
    async with new_registry(210 * KB, 80 * KB) as registry:
        assert (await play(registry, spec))[1]["weights"] == "mapped"


async def test_a_model_that_was_whole_is_read_again_to_be_spread_and_the_other_way_round(
    checkpoint: Checkpoint,
) -> None:
    """As a skeleton it has no modules any more."""
    from hotswap.engine.registry import TorchEngineRegistry

    sizes = [0, 50 * KB]

    def rooms_of(device: torch.device) -> Sequence[Room]:
        return [HostRoom(device, size) for size in sizes]

    spec, kinds, texts = spread_spec(checkpoint()), [], set()
    async with TorchEngineRegistry(rooms_of=rooms_of) as registry:
        for room in (1000 * KB, 140 * KB, 140 * KB, 1000 * KB):
            sizes[0] = room
            text, details = await play(registry, spec)
            texts.add(text)
            kinds.append(details["weights"])
    assert kinds == ["mapped", "spread", "spread", "mapped"]
    assert len(texts) == 1


async def test_a_dry_run_knows_where_the_parts_would_lie(checkpoint: Checkpoint) -> None:
    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB, 50 * KB) as registry:
        found = await registry.estimate(spec)
        assert found.fits
        assert found.spread is not None
        _, details = await play(registry, spec)
        assert dict(found.spread) == details["weights_on"]
        # Tables of rotary positions are in no file.
        assert 0 <= details["weights_bytes"] - found.weights_bytes < 100


async def test_where_spreading_would_help_the_refusal_says_so(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine import stage

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("as CUDA does")

    spec = spec_of(checkpoint(), kv_cache_memory=1 << 30)
    for sizes, helps in (((140 * KB, 3 << 30), True), ((140 * KB, 50 * KB), False)):
        async with new_registry(*sizes) as registry:
            found = await registry.estimate(spec)
            assert not found.fits
            assert found.reason is not None
            assert ("--device-map auto" in found.reason) is helps
    spec = spec_of(checkpoint())
    for sizes, helps in (((140 * KB, 50 * KB), True), ((5 * KB, 5 * KB), False)):
        async with new_registry(*sizes) as registry:
            prepared = await registry.prepare(spec, ignore)
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(stage, "place", full)
                with pytest.raises(InsufficientMemory) as caught:
                    async with registry.start(prepared, ignore, ignore):
                        pytest.fail("it has no room")
            assert ("--device-map auto" in caught.value.message) is helps


async def test_what_cannot_be_spread_either_is_refused_before_it_is_read(
    checkpoint: Checkpoint,
) -> None:
    async with new_registry(5 * KB) as registry:
        spec = spread_spec(checkpoint())
        with pytest.raises(InsufficientMemory, match="KiB more are needed"):
            await registry.prepare(spec, ignore)
        found = await registry.estimate(spec)
        assert not found.fits
        assert found.reason is not None
        assert "KiB more are needed" in found.reason


async def test_nothing_is_put_on_a_disk(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device

    monkeypatch.setattr(device, "free_host_bytes", lambda: 200 << 20)
    async with new_registry(140 * KB, 50 * KB) as registry:
        with pytest.raises(InsufficientMemory, match="GiB are missing"):
            await registry.prepare(spread_spec(checkpoint()), ignore)


async def test_keys_and_values_take_what_the_devices_have_left(checkpoint: Checkpoint) -> None:
    from hotswap.engine.fit import kv_room

    size = 100 * KB
    async with new_registry(size) as registry:
        spec = spread_spec(checkpoint(), max_model_len=16)
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            # The room of the tests does not shrink; what is fetched has its place.
            fetched = 384 * 32 * 4
            limit = engine._scheduler.budget.limit_bytes
            assert limit == kv_room(size - fetched, is_apart=True)
        few = spread_spec(checkpoint(), max_model_len=16, kv_cache_memory=10 * KB)
        prepared = await registry.prepare(few, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            assert engine._scheduler.budget.limit_bytes == 10 * KB


def test_shares_of_keys_are_those_of_the_device_that_fills_first() -> None:
    from hotswap.engine.forward.choice import shares_of

    one, two = (torch_device(name) for name in ("cuda:0", "cuda:1"))
    growing = shares_of({one: 30, two: 10}, {one: 60, two: 20})
    assert growing == {one: 0.75, two: 0.25}
    with_state = shares_of({one: 30, two: 10 + 90}, {one: 60, two: 20 + 90})
    assert with_state == {one: 0.75, two: 1.0}
    assert shares_of({}, {one: 0}) == {one: 0.0}


def torch_device(name: str) -> torch.device:
    import torch

    return torch.device(name)


async def test_memory_is_measured_on_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine import device
    from hotswap.engine.stay import Stay

    one, two = (torch_device(name) for name in ("cuda:0", "cuda:1"))
    used = {one: 5, two: 7}
    monkeypatch.setattr(device, "used_bytes", lambda on: used[on])
    stay = Stay.begin((one, two), lambda: 0, None)
    used[two] = 10
    report = stay.report(None)
    assert (report.baseline_bytes, report.after_bytes, report.leaked_bytes) == (12, 15, 3)


async def test_a_model_without_places_to_divide_it_is_refused_unless_it_fits(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.Qwen3PreTrainedModel._no_split_modules", None)
    spec = spread_spec(checkpoint())
    async with new_registry(140 * KB, 50 * KB) as registry:
        with pytest.raises(CheckpointRefused, match="cannot be spread"):
            await registry.prepare(spec, ignore)
    async with new_registry(10_000 * KB) as registry:
        assert (await play(registry, spec))[1]["weights"] == "mapped"


async def test_embedding_models_are_not_spread(checkpoint: Checkpoint) -> None:
    async with new_registry(140 * KB, 50 * KB) as registry:
        spec = replace(spread_spec(checkpoint()), task="embed")
        assert (await registry.prepare(spec, ignore)).rooms == ()


# -- on devices ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
async def test_swaps_of_a_model_on_cuda_devices_and_the_host_leave_nothing_behind(
    checkpoint: Checkpoint, placed: list[Spread], architecture: str
) -> None:
    """With one device, a part on that and the rest on the host."""
    import torch

    from hotswap.engine.device_map import HOST
    from hotswap.engine.device_memory import CudaRoom
    from hotswap.engine.registry import TorchEngineRegistry

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")

    class Small(CudaRoom):
        def free_bytes(self) -> int:
            return 170 * KB

    numbers = range(min(2, torch.cuda.device_count()))
    small = [Small(torch.device("cuda", number)) for number in numbers]
    path = checkpoint(architecture)
    async with serving(path, device="cuda") as served:
        wanted = (await served.ask(PROMPT, max_tokens=8)).text
    async with TorchEngineRegistry(rooms_of=lambda _: small) as registry:
        for _ in range(5):
            text, details = await play(registry, spread_spec(path, device="cuda"))
            assert text == wanted
            assert details["weights"] == "spread"
            assert details["weights_on"]["cuda:0"] > 0
    for spread in placed:
        assert (HOST in spread._map.bytes) or len(small) == 2
        assert all(spread._map.bytes[number] > KB for number in numbers)
