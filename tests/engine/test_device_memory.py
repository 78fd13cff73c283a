"""A model on a device with memory of its own. Host memory stands in for it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from hotswap.errors import EngineFailed, InsufficientMemory
from tests.engine.serving import Served, ignore, spec_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hotswap.contracts.models import ModelSpec
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.engine import TorchEngine
    from hotswap.engine.registry import TorchEngineRegistry

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
LONG = list(range(3, 103))
MORE = [*LONG, *range(200, 220)]


class Notes:
    """What was asked of the memory."""

    def __init__(self) -> None:
        self.arenas: list[weakref.ref[Tensor]] = []
        self.pinned: set[int] = set()
        self.times_pinned = 0
        self.free = 64 << 30
        self.full_beside: Any = None
        """Weights ahead that leave no room, if they are given."""

    @property
    def alive(self) -> int:
        """Bytes of arenas."""
        arenas = [arena() for arena in self.arenas]
        return sum(0 if a is None else a.untyped_storage().nbytes() for a in arenas)


def noted_memory(notes: Notes) -> HostMemory:
    from hotswap.engine.device_memory import HostMemory

    class Noted(HostMemory):
        def free_bytes(self) -> int:
            full = notes.full_beside is not None and notes.full_beside.bytes
            return 0 if full else notes.free

        def reserve(self, size: int) -> Tensor:
            arena = super().reserve(size)
            notes.arenas.append(weakref.ref(arena))
            return arena

        def pin(self, memory: Tensor) -> bool:
            notes.times_pinned += 1
            notes.pinned.add(memory.data_ptr())
            return True

        def unpin(self, memory: Tensor) -> None:
            notes.pinned.remove(memory.data_ptr())

    return Noted()


def new_registry(notes: Notes, memory: Any = None, **options: Any) -> TorchEngineRegistry:
    from hotswap.engine.registry import TorchEngineRegistry

    def memory_of(_: torch.device) -> Any:
        return memory or noted_memory(notes)

    return TorchEngineRegistry(memory_of=memory_of, **options)


async def play(
    registry: TorchEngineRegistry, spec: ModelSpec, prompt: list[int] = LONG
) -> tuple[str, dict[str, Any]]:
    """Have the model on the device, ask it, and take it off again: the answer, and what the engine
    said of itself. The image, if there is to be one, is made."""
    prepared = await registry.prepare(spec, ignore)
    async with registry.start(prepared, ignore, ignore) as engine:
        answer = await Served(registry, prepared, engine).ask(prompt, max_tokens=8)
        details = dict(engine.stats().details)
        await image_made(engine)
    assert registry.memory is not None
    assert registry.memory.leaked_bytes == 0
    return answer.text, details


async def image_made(engine: TorchEngine) -> None:
    """The device thread begins it after the client has been told of the end of its answer."""
    with anyio.fail_after(120):
        while engine._answered is not None or _runs("hotswap-image"):
            await anyio.sleep(0.001)


def _runs(name: str) -> bool:
    return any(thread.name.startswith(name) for thread in threading.enumerate())


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine import loader

    monkeypatch.setattr(loader, "read_weights", lambda *_: pytest.fail("it is read again"))


# -- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("qwen3", "arena"),
        ("gemma3", "arena"),
        ("llama_biases", "arena"),
        ("llama_tied", "arena"),
        ("phi3", "arena"),
        ("qwen3_moe", "arena"),
        ("gpt2", "modules"),
        ("falcon", "modules"),
    ],
)
async def test_a_model_answers_as_in_place_each_time_it_comes(
    checkpoint: Checkpoint, architecture: str, kind: str
) -> None:
    from hotswap.engine.registry import TorchEngineRegistry

    spec, other = spec_of(checkpoint(architecture)), spec_of(checkpoint("llama"))
    async with TorchEngineRegistry() as registry:
        wanted, details = await play(registry, spec)
        assert details["weights"] in {"mapped", "converted", "modules"}
    notes = Notes()
    async with new_registry(notes) as registry:
        for _ in range(3):
            answer, details = await play(registry, spec)
            assert answer == wanted
            assert details["weights"] == kind
            assert notes.alive == 0
            await play(registry, other)


async def test_a_known_model_is_put_together_from_its_files(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(checkpoint())
    async with new_registry(Notes(), park_bytes=0) as registry:
        first, _ = await play(registry, spec)
        refuse_to_read(monkeypatch)
        assert (await play(registry, spec))[0] == first


async def test_converted_weights_are_read_again_and_lie_in_an_arena_too(
    checkpoint: Checkpoint,
) -> None:
    spec, notes = spec_of(checkpoint(), dtype="bfloat16"), Notes()
    async with new_registry(notes, park_bytes=0) as registry:
        first, details = await play(registry, spec)
        assert details["weights"] == "arena"
        assert (await play(registry, spec))[0] == first
        assert notes.alive == 0


async def test_the_plain_model_and_the_skeleton_share_the_arena(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are compared there is one copy of the weights, and what lies beside it is gone
    afterwards."""
    from hotswap.engine import stage
    from hotswap.engine.forward.choice import choose
    from hotswap.engine.placement import InArena

    seen = list[int]()

    def chosen(placed: Any) -> Any:
        assert isinstance(placed, InArena)
        assert placed._arena is not None
        start = placed._arena.data_ptr()
        end = start + len(placed._arena)
        inside = [start <= p.data_ptr() < end for p in placed.model.parameters()]
        seen.append(inside.count(False))
        seen.append(len(placed._own))
        return choose(placed)

    monkeypatch.setattr(stage, "choose", chosen)
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore):
            buffers = seen.pop()
            assert seen == [0]
            assert 0 < buffers <= 3


async def test_a_model_that_has_no_room_for_its_keys_can_be_started_later(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.stage import Stage

    def short(*_: object) -> None:
        raise InsufficientMemory("for the moment")

    spec, notes = spec_of(checkpoint()), Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec, ignore)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Stage, "_reserve", short)
            with pytest.raises(InsufficientMemory):
                async with registry.start(prepared, ignore, ignore):
                    pytest.fail("it has no room")
        assert notes.alive == 0
        async with registry.start(prepared, ignore, ignore) as engine:
            assert (await Served(registry, prepared, engine).ask(LONG)).finished


async def test_thirty_swaps_keep_neither_memory_nor_threads(checkpoint: Checkpoint) -> None:
    notes, specs = Notes(), [spec_of(checkpoint(name)) for name in ("qwen3", "llama")]
    async with new_registry(notes) as registry:
        threads = list[int]()
        for turn in range(30):
            await play(registry, specs[turn % 2])
            threads.append(threading.active_count())
            assert notes.alive == 0
        assert threads[9] == threads[-1]
        assert len(notes.pinned) == 2
        assert notes.times_pinned == 2
    assert not notes.pinned


async def test_an_engine_that_was_left_holds_nothing_of_the_device(checkpoint: Checkpoint) -> None:
    """Although the one who asked for it has it still."""
    import torch

    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask(LONG, max_tokens=2)
            skeleton = engine._runner.forward.skeleton
            tensors = _tensors(skeleton)
            assert all(tensor.untyped_storage().nbytes() for tensor in tensors)
        assert not any(tensor.untyped_storage().nbytes() for tensor in tensors)
        assert isinstance(skeleton.embedding, torch.Tensor)


def _tensors(skeleton: Any) -> list[Tensor]:
    from hotswap.engine.blueprint import with_tensors

    found: list[Any] = list(skeleton.layers[0].attention.rope.table(8))

    def note(tensor: Any) -> Any:
        found.append(tensor)
        return tensor

    with_tensors(skeleton, note)
    return found


# -- the host image ------------------------------------------------------------------------------


async def test_an_image_is_made_after_the_first_answer_and_kept_while_the_model_is_parked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.lanes import Ring

    spec, notes = spec_of(checkpoint()), Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            assert not notes.pinned
            first = (await Served(registry, prepared, engine).ask(LONG, max_tokens=8)).text
            with anyio.fail_after(120):
                while prepared.weights.image is None:
                    await anyio.sleep(0.001)
        assert len(notes.pinned) == 1
        [parked] = registry._park._models.values()
        assert parked.rested is not None
        saved, sizes, send = parked.rested.bytes, list[int](), Ring.send

        def noted(self: Ring, target: Tensor, source: Tensor) -> None:
            sizes.append(source.nbytes)
            send(self, target, source)

        monkeypatch.setattr(Ring, "send", noted)
        assert (await play(registry, spec))[0] == first
        assert sizes == [saved]  # keys and values; the weights go up from the image
        assert len(notes.pinned) == 1
        registry.forget(spec.id)
        await let_go()
        assert not notes.pinned


async def let_go() -> None:
    with anyio.fail_after(120):
        while _runs("letting-go"):
            await anyio.sleep(0.001)


async def test_weights_that_were_let_go_of_go_up_without_their_image(
    checkpoint: Checkpoint,
) -> None:
    spec, notes = spec_of(checkpoint()), Notes()
    async with new_registry(notes) as registry:
        first, _ = await play(registry, spec)
        notes.free = 0  # not ahead of time
        prepared = await registry.prepare(spec, ignore)
        registry.forget(spec.id)
        await let_go()
        assert not notes.pinned
        async with registry.start(prepared, ignore, ignore) as engine:
            answer = await Served(registry, prepared, engine).ask(LONG, max_tokens=8)
        assert answer.text == first


@pytest.mark.parametrize("room", [-1, 0])
async def test_an_image_is_made_only_if_it_fits_beside_what_is_parked(
    checkpoint: Checkpoint, room: int
) -> None:
    spec, other = spec_of(checkpoint()), replace(spec_of(checkpoint("llama")), pin=True)
    async with new_registry(Notes()) as registry:
        sizes = [(await registry.prepare(s, ignore)).weights.bytes for s in (spec, other)]
    notes = Notes()
    async with new_registry(notes, park_bytes=sum(sizes) + room) as registry:
        prepared = await registry.prepare(other, ignore)
        async with registry.start(prepared, ignore, ignore):
            pass  # without an answer there is no image, and without keys the park has room
        await play(registry, spec)
        assert notes.times_pinned == (room == 0)


async def test_an_image_is_given_up_when_the_model_leaves(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import image

    begun = threading.Event()

    def filled(_: object, __: object, abandoned: threading.Event) -> bool:
        begun.set()
        return not abandoned.wait(20)

    monkeypatch.setattr(image, "_filled", filled)
    spec, notes = spec_of(checkpoint()), Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec, ignore)
        with anyio.fail_after(120):
            async with registry.start(prepared, ignore, ignore) as engine:
                await Served(registry, prepared, engine).ask(LONG, max_tokens=2)
                while not begun.is_set():
                    await anyio.sleep(0.001)
        assert prepared.weights.image is None
        assert not notes.pinned
        assert not _runs("hotswap-image")


async def test_a_model_that_leaves_before_its_first_answer_gets_no_image(
    checkpoint: Checkpoint,
) -> None:
    notes = Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore):
            pass
        assert prepared.weights.image is None
        assert not notes.times_pinned


async def test_the_image_of_a_model_that_failed_is_not_kept(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, notes = spec_of(checkpoint()), Notes()
    async with new_registry(notes) as registry:
        first, _ = await play(registry, spec)
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            monkeypatch.setattr(engine._runner, "launch", lambda *_: 1 // 0)
            with pytest.raises(EngineFailed):
                await Served(registry, prepared, engine).ask(LONG)
        await let_go()
        assert not notes.pinned
        assert notes.alive == 0
        assert (await play(registry, spec))[0] == first


# -- ahead of time -------------------------------------------------------------------------------


async def test_the_next_model_goes_up_while_the_one_before_it_is_there(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which does not look like something that was left behind."""
    from hotswap.engine import device, stay, upload

    spec, other, notes = spec_of(checkpoint()), spec_of(checkpoint("llama")), Notes()
    monkeypatch.setattr(stay, "_CPU_NOISE_BYTES", 0)
    monkeypatch.setattr(device, "used_bytes", lambda _: notes.alive)
    async with new_registry(notes) as registry:
        wanted, _ = await play(registry, other)
        resident = await registry.prepare(spec, ignore)
        async with registry.start(resident, ignore, ignore) as engine:
            early = await registry.prepare(other, ignore)
            assert early.ahead is None, "the resident one has not taken its room yet"
            await Served(registry, resident, engine).ask(LONG, max_tokens=2)
            alone = notes.alive
            prepared = await registry.prepare(other, ignore)
            assert prepared.ahead is not None
            assert notes.alive > alone
        assert registry.memory is not None
        assert registry.memory.leaked_bytes == 0
        assert registry.memory.before_bytes == alone
        assert notes.alive
        monkeypatch.delattr(upload.Upload, "send")
        async with registry.start(prepared, ignore, ignore) as engine:
            answer = await Served(registry, prepared, engine).ask(LONG, max_tokens=8)
        assert answer.text == wanted
        assert registry.memory.leaked_bytes == 0
        assert notes.alive == 0


async def test_a_prepared_model_that_is_dropped_takes_its_arena_with_it(
    checkpoint: Checkpoint,
) -> None:
    notes = Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        assert prepared.ahead is not None
        assert notes.alive
        gc.disable()
        try:
            del prepared
            with anyio.fail_after(120):
                while notes.alive:  # the thread may have it a moment longer
                    await anyio.sleep(0.001)
        finally:
            gc.enable()


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3_moe"])
async def test_what_was_made_on_the_device_thread_serves_other_threads(
    checkpoint: Checkpoint, architecture: str
) -> None:
    """Tensors that are made in inference mode cannot be written outside of it."""
    notes = Notes()
    spec, other = spec_of(checkpoint(architecture)), spec_of(checkpoint("llama"))
    notes.free = 0
    memory = noted_memory(notes)
    async with new_registry(notes, memory) as registry:
        wanted, _ = await play(registry, spec)  # from the device thread
        assert len(notes.pinned) == 1
        registry.forget(spec.id)
        await let_go()
        notes.free = 64 << 30
        for one in (other, spec):
            prepared = await registry.prepare(one, ignore)
            assert prepared.ahead is not None
            async with registry.start(prepared, ignore, ignore) as engine:
                answer = await Served(registry, prepared, engine).ask(LONG, max_tokens=8)
        assert answer.text == wanted


async def test_without_room_for_both_nothing_is_sent_ahead(checkpoint: Checkpoint) -> None:
    notes = Notes()
    notes.free = 2 << 30
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        assert prepared.ahead is None
        assert not notes.arenas


async def test_memory_that_turns_out_to_be_short_is_no_error_ahead_of_time(
    checkpoint: Checkpoint,
) -> None:
    import torch

    from hotswap.engine.device_memory import HostMemory

    class Full(HostMemory):
        is_full = True

        def free_bytes(self) -> int:
            return 64 << 30

        def reserve(self, size: int) -> Tensor:
            if self.is_full:
                raise torch.OutOfMemoryError("as CUDA does")
            return super().reserve(size)

    memory = Full()
    async with new_registry(Notes(), memory) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        assert prepared.ahead is None
        with pytest.raises(InsufficientMemory):
            async with registry.start(prepared, ignore, ignore):
                pytest.fail("it has no room")
        memory.is_full = False
        async with registry.start(prepared, ignore, ignore) as engine:
            assert (await Served(registry, prepared, engine).ask(LONG)).finished


async def test_weights_that_do_not_arrive_are_told_at_the_start(checkpoint: Checkpoint) -> None:
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.lanes import HostLane
    from hotswap.errors import CheckpointRefused

    class Broken(HostLane):
        def copy(self, target: Tensor, source: Tensor) -> None:
            raise OSError(f"{len(source)} bytes cannot be sent to {target.device}")

    memory = HostMemory()
    memory.lane = Broken()
    async with new_registry(Notes(), memory) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        assert prepared.ahead is not None
        for _ in range(2):  # ahead of time, and then on the device thread
            with pytest.raises(CheckpointRefused):
                async with registry.start(prepared, ignore, ignore):
                    pytest.fail("it is not there")


async def test_weights_that_did_not_arrive_ahead_of_time_are_sent_again(
    checkpoint: Checkpoint,
) -> None:
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.lanes import HostLane

    class BrokenOnce(HostLane):
        broke = threading.Event()

        def copy(self, target: Tensor, source: Tensor) -> None:
            if not self.broke.is_set():
                self.broke.set()
                raise OSError("not this time")
            super().copy(target, source)

    spec, notes, memory = spec_of(checkpoint()), Notes(), HostMemory()
    async with new_registry(notes) as registry:
        wanted, _ = await play(registry, spec)
    memory.lane = BrokenOnce()
    async with new_registry(notes, memory) as registry:
        prepared = await registry.prepare(spec, ignore)
        assert prepared.ahead is not None
        async with registry.start(prepared, ignore, ignore) as engine:
            answer = await Served(registry, prepared, engine).ask(LONG, max_tokens=8)
        assert BrokenOnce.broke.is_set()
        assert answer.text == wanted


# -- keys and values -----------------------------------------------------------------------------


async def test_a_chat_goes_on_where_it_was_before_the_model_left(checkpoint: Checkpoint) -> None:
    spec, other = spec_of(checkpoint()), spec_of(checkpoint("llama"))
    async with new_registry(Notes(), park_bytes=0) as registry:
        wanted, details = await play(registry, spec, MORE)
        assert details["reused_prompt_tokens"] == 0
    async with new_registry(Notes()) as registry:
        for _ in range(2):
            await play(registry, spec)
            await play(registry, other)
        answer, details = await play(registry, spec, MORE)
        assert details["reused_prompt_tokens"] == 96
        assert answer == wanted


async def test_room_for_keys_and_values_is_taken_as_it_is_needed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a running answer, and given back when the model leaves."""
    from hotswap.engine import stage

    spec = spec_of(checkpoint())
    prompts = [[n, *LONG] for n in range(6)]
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            wanted = await Served(registry, prepared, engine).ask_all(*prompts, max_tokens=40)
            block = engine._scheduler.budget.block_bytes
    monkeypatch.setattr(stage, "_FIRST_KV_BYTES", 4 * block)
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            served, pool = Served(registry, prepared, engine), engine._scheduler.pool
            assert pool.count == 4
            answers = await served.ask_all(*prompts, max_tokens=40)
            assert [answer.text for answer in answers] == [answer.text for answer in wanted]
            assert pool.count >= 6 * 9  # each has nine blocks
            kept = pool.remembered
        assert kept > 4
        assert pool.count == kept  # the next stay begins with what it has to bring back
        _, details = await play(registry, spec, [0, *LONG, 5])
        assert details["reused_prompt_tokens"] == 96


async def test_without_memory_for_more_an_answer_waits_for_the_room_of_another(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import stage
    from hotswap.engine.kv_pool import KVPool

    def refuse(self: KVPool, blocks: int) -> None:
        raise torch.OutOfMemoryError

    import torch

    monkeypatch.setattr(KVPool, "grow", refuse)
    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            block = engine._scheduler.budget.block_bytes
    monkeypatch.setattr(stage, "_FIRST_KV_BYTES", 12 * block)
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            answers = await Served(registry, prepared, engine).ask_all(
                *([n, *LONG] for n in range(3)), max_tokens=8
            )
            assert all(answer.finished for answer in answers)
            assert engine._scheduler.pool.count == 12


async def test_a_request_that_was_promised_more_than_there_is_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it, and others are answered."""
    import torch

    from hotswap.engine import stage
    from hotswap.engine.kv_pool import KVPool

    def refuse(self: KVPool, blocks: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(KVPool, "grow", refuse)
    monkeypatch.setattr(stage, "_first_blocks", lambda _: 8)
    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            served = Served(registry, prepared, engine)
            with anyio.fail_after(60):
                with pytest.raises(InsufficientMemory, match="any more"):
                    await served.ask([*LONG, *LONG], max_tokens=4)
                with pytest.raises(InsufficientMemory, match="any more"):  # in the middle
                    await served.ask(LONG, max_tokens=200, ignore_eos=True)
                assert (await served.ask(LONG, max_tokens=4)).finished


async def test_an_answer_gets_the_room_of_weights_that_were_sent_ahead(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that they are of starts all the same, and sends them again."""
    from hotswap.engine import stage

    monkeypatch.setattr(stage, "_first_blocks", lambda _: 4)
    spec, other, notes = spec_of(checkpoint()), spec_of(checkpoint("llama")), Notes()
    async with new_registry(notes) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            served = Served(registry, prepared, engine)
            await served.ask([1, 2, 3], max_tokens=2)
            following = await registry.prepare(other, ignore)
            assert following.ahead is not None
            assert registry._aheads.bytes
            notes.full_beside = registry._aheads
            assert (await served.ask(LONG, max_tokens=4)).finished
            assert registry._aheads.bytes == 0
        async with registry.start(following, ignore, ignore) as engine:
            answer = await Served(registry, following, engine).ask(LONG, max_tokens=4)
            assert answer.finished


async def test_keys_come_back_beside_weights_that_go_through_the_same_ring(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that left before it had an image, and was not sent ahead."""
    from hotswap.engine.stage import Stage

    monkeypatch.setattr(Stage, "_make_image", lambda _: None)
    notes = Notes()
    notes.free = 0
    async with new_registry(notes) as registry:
        with anyio.fail_after(60):
            first, _ = await play(registry, spec_of(checkpoint()))
            again, details = await play(registry, spec_of(checkpoint()))
    assert details["reused_prompt_tokens"] == 96
    assert again == first


async def test_without_room_for_its_keys_a_model_starts_and_computes_them_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine import kv_pool

    def refuse(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        first, _ = await play(registry, spec)
        monkeypatch.setattr(kv_pool, "brought", refuse)
        again, details = await play(registry, spec)
    assert details["reused_prompt_tokens"] == 0
    assert again == first


async def test_what_has_no_room_any_more_is_computed_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import device

    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        await play(registry, spec)
        parked = registry._park.find(spec.id, (await registry.prepare(spec, ignore)).key)
        assert parked is not None
        assert parked.rested is not None
        assert 0 < parked.rested.bytes < parked.rested.needed_bytes
        room = parked.rested.needed_bytes // 2
        monkeypatch.setattr(device, "free_bytes", lambda _: room)
        answer, details = await play(registry, spec, MORE)
        assert details["reused_prompt_tokens"] == 0
    async with new_registry(Notes()) as registry:
        assert (await play(registry, spec, MORE))[0] == answer


@pytest.mark.parametrize(("saved", "reused"), [(6, 96), (4, 64), (0, 0)])
async def test_as_much_is_saved_as_there_is_room_for(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, saved: int, reused: int
) -> None:
    """Of the newest answer, from its beginning."""
    from hotswap.engine import rested

    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            served = Served(registry, prepared, engine)
            await served.ask(list(range(300, 200, -1)), max_tokens=2)
            await served.ask(LONG, max_tokens=2)
            block = engine._scheduler.budget.block_bytes
            monkeypatch.setattr(rested, "_SAVED_BYTES", saved * block)
        _, details = await play(registry, spec, MORE)
        assert details["reused_prompt_tokens"] == reused


async def test_keys_do_not_keep_a_model_out_of_the_park(checkpoint: Checkpoint) -> None:
    """They get what its weights leave."""
    spec = spec_of(checkpoint())
    async with new_registry(Notes()) as registry:
        size = (await registry.prepare(spec, ignore)).weights.bytes
    async with new_registry(Notes(), park_bytes=size) as registry:
        await play(registry, spec)
        assert [parked.bytes for parked in registry.parked()] == [size]


# -- on a device ---------------------------------------------------------------------------------


@pytest.mark.gpu
async def test_a_hundred_swaps_on_a_cuda_device_leave_nothing_behind(
    checkpoint: Checkpoint,
) -> None:
    import torch

    from hotswap.engine.registry import TorchEngineRegistry

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    specs = [spec_of(checkpoint(n), device="cuda") for n in ("qwen3", "gemma3", "gpt2")]
    answers: dict[str, set[str]] = {}
    async with TorchEngineRegistry() as registry:
        for turn in range(100):
            spec = specs[turn % 3]
            prepared = await registry.prepare(spec, ignore)
            async with registry.start(prepared, ignore, ignore) as engine:
                answer = await Served(registry, prepared, engine).ask([turn, *LONG], max_tokens=4)
                assert answer.finished
                again = await Served(registry, prepared, engine).ask(LONG, max_tokens=4)
                answers.setdefault(spec.id, set()).add(again.text)
                if turn % 5 == 0:  # the next one goes up meanwhile
                    early = await registry.prepare(specs[(turn + 1) % 3], ignore)
            assert registry.memory is not None
            assert registry.memory.leaked_bytes == 0, f"swap {turn}"
            if turn % 5 == 0:
                del early
    assert [len(texts) for texts in answers.values()] == [1, 1, 1]


@pytest.mark.gpu
async def test_room_for_keys_and_values_grows_on_a_cuda_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside recorded steps, which are recorded anew."""
    import torch

    from hotswap.engine import stage
    from hotswap.engine.registry import TorchEngineRegistry

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    spec, prompts = spec_of(checkpoint("qwen3"), device="cuda"), [[n, *LONG] for n in range(6)]
    texts: list[list[str]] = []
    for blocks in (256, 4):
        monkeypatch.setattr(stage, "_first_blocks", lambda _, blocks=blocks: blocks)
        async with TorchEngineRegistry() as registry:
            prepared = await registry.prepare(spec, ignore)
            async with registry.start(prepared, ignore, ignore) as engine:
                served = Served(registry, prepared, engine)
                first = engine._scheduler.pool.count
                found = [await served.ask(LONG, max_tokens=40)]
                found += await served.ask_all(*prompts, max_tokens=40)
                texts.append([answer.text for answer in found])
                assert (engine._scheduler.pool.count > first) == (blocks == 4)
            assert registry.memory is not None
            assert registry.memory.leaked_bytes == 0
    assert texts[0] == texts[1]


@pytest.mark.gpu
async def test_a_chat_on_a_cuda_device_goes_on_where_it_was(checkpoint: Checkpoint) -> None:
    import torch

    from hotswap.engine.registry import TorchEngineRegistry

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    spec, other = (spec_of(checkpoint(n), device="cuda") for n in ("qwen3", "llama"))
    async with TorchEngineRegistry(park_bytes=0) as registry:
        wanted, details = await play(registry, spec, MORE)
        assert details["weights"] == "arena"
    async with TorchEngineRegistry() as registry:
        await play(registry, spec)
        await play(registry, other)
        answer, details = await play(registry, spec, MORE)
        assert details["reused_prompt_tokens"] == 96
        assert answer == wanted
