from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import TaskGroup

from hotswap.contracts.models import ChatFacts, EngineConfig
from hotswap.contracts.reports import MemoryReport
from hotswap.contracts.requests import ChatPrompt
from hotswap.errors import (
    CheckpointRefused,
    ContextLengthExceeded,
    DeviceLost,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelUnloaded,
)
from tests.engine.checkpoints import hf
from tests.engine.serving import Served, ignore, request, serving, spec_of

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

if TYPE_CHECKING:
    from hotswap.engine.registry import TorchEngineRegistry

Checkpoint = Callable[..., Path]


def new_registry(**options: Any) -> TorchEngineRegistry:
    from hotswap.engine.registry import TorchEngineRegistry

    return TorchEngineRegistry(**options)


def copied(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to / path.name))


def poison(path: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][0] = value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


async def test_a_prepared_model_can_be_started_again_and_again(checkpoint: Checkpoint) -> None:
    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        answers, generations, watched = [], [], []
        for _ in range(3):
            async with registry.start(prepared, ignore, ignore) as engine:
                watched.append(registry.current)
                answers.append((await Served(registry, prepared, engine).ask([1, 2, 3])).text)
                generations.append(engine.generation)
            watched.append(registry.current)
            assert registry.memory is not None
            assert registry.memory.leaked_bytes == 0
            assert not engine.stats().alive
    assert len(set(answers)) == 1
    assert generations == [1, 2, 3]
    assert [engine and engine.generation for engine in watched] == [1, None, 2, None, 3, None]


async def test_models_of_all_tiers_follow_each_other_undisturbed(checkpoint: Checkpoint) -> None:
    async with new_registry() as registry:
        prepared = [
            await registry.prepare(spec_of(checkpoint(name)), ignore)
            for name in ("qwen3", "gpt2", "falcon")
        ]
        answers: dict[str, set[str]] = {}
        for _ in range(2):
            for model in prepared:
                async with registry.start(model, ignore, ignore) as engine:
                    answer = await Served(registry, model, engine).ask([5, 6, 7], max_tokens=6)
                    answers.setdefault(model.spec.id, set()).add(answer.text)
    assert [len(texts) for texts in answers.values()] == [1, 1, 1]


async def test_a_model_off_the_device_stays_as_it_was_read(
    checkpoint: Checkpoint,
) -> None:
    from hotswap.engine.forward.lean import LeanForward

    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        heads, answers = [], []
        for _ in range(2):
            async with registry.start(prepared, ignore, ignore) as engine:
                forward = engine._runner.forward
                assert isinstance(forward, LeanForward)
                heads.append(forward.skeleton.head)
                answers.append((await Served(registry, prepared, engine).ask([1, 2, 3])).text)
    assert heads[0] is heads[1]
    assert answers[0] == answers[1]


async def test_thirty_cycles_keep_neither_memory_nor_threads(checkpoint: Checkpoint) -> None:
    import torch

    from hotswap.engine.device import used_bytes

    cpu = torch.device("cpu")
    sizes, threads = [], []
    async with new_registry() as registry:
        for _ in range(30):
            prepared = await registry.prepare(spec_of(checkpoint()), ignore)
            async with registry.start(prepared, ignore, ignore) as engine:
                await Served(registry, prepared, engine).ask([1, 2, 3], max_tokens=3)
            sizes.append(used_bytes(cpu))
            threads.append(threading.active_count())
    assert threads[9] == threads[-1]
    assert sizes[-1] - sizes[9] < 4 << 20


async def test_an_engine_that_was_left_is_not_kept(checkpoint: Checkpoint) -> None:
    async with new_registry(park_bytes=0) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask([1, 2, 3], max_tokens=3)
            cache = weakref.ref(engine._runner.forward)
            gc.disable()  # it may be long before garbage is collected
        del engine
        try:
            assert cache() is None
        finally:
            gc.enable()


async def test_the_device_thread_ends_with_the_registry() -> None:
    async with new_registry() as registry:
        thread = registry._device._thread
        assert thread.is_alive()
    assert not thread.is_alive()


async def test_weights_of_nan_are_refused_at_the_start_and_the_device_is_free_again(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bad = copied(checkpoint(), tmp_path)
    poison(bad, float("nan"))
    async with new_registry() as registry:
        broken = await registry.prepare(spec_of(bad), ignore)
        for _ in range(2):
            with pytest.raises(CheckpointRefused, match="NaN"):
                async with registry.start(broken, ignore, ignore):
                    pass
        good = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(good, ignore, ignore) as engine:
            await Served(registry, good, engine).ask([1], max_tokens=1)


async def test_only_one_model_is_on_the_device(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        with pytest.raises(ModelLoadFailed, match="Another model"):
            async with served.registry.start(served.prepared, ignore, ignore):
                pass
        assert served.registry.current is served.engine


async def test_a_start_that_is_cancelled_leaves_the_device_free(checkpoint: Checkpoint) -> None:
    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        with anyio.CancelScope() as scope:

            def cancel(stage: str, value: float) -> None:
                scope.cancel()

            async with registry.start(prepared, cancel, ignore):
                pytest.fail("it was cancelled before")
        assert scope.cancelled_caught
        async with registry.start(prepared, ignore, ignore) as engine:
            await Served(registry, prepared, engine).ask([1], max_tokens=1)


async def test_a_preparation_that_is_cancelled_stops_at_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import loader as module

    reading, release = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        reading.set()
        release.wait(20)

    monkeypatch.setattr(module, "read_weights", slow)
    async with new_registry() as registry:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(registry.prepare, spec_of(checkpoint()), ignore)
                while not reading.is_set():
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
        release.set()


async def test_progress_is_told_in_stages_and_never_goes_back(checkpoint: Checkpoint) -> None:
    told: list[tuple[str, float]] = []

    def report(stage: str, value: float) -> None:
        told.append((stage, value))

    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), report)
        async with registry.start(prepared, report, ignore):
            pass
    stages = [stage for stage, _ in told]
    assert list(dict.fromkeys(stages)) == ["checking", "reading", "starting"]
    assert told == sorted(
        told, key=lambda t: (["checking", "reading", "starting"].index(t[0]), t[1])
    )


async def test_weights_that_disagree_with_the_configuration_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    wrong = copied(checkpoint(), tmp_path)
    config = json.loads((wrong / "config.json").read_text())
    async with new_registry() as registry:
        for change in (
            {"hidden_size": 40},
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
        ):
            (wrong / "config.json").write_text(json.dumps(config | change))
            with pytest.raises(CheckpointRefused) as caught:
                await registry.prepare(spec_of(wrong), ignore)
            assert str(tmp_path) not in caught.value.message


async def refusal(config: dict[str, Any], wrong: Path) -> str:
    (wrong / "config.json").write_text(json.dumps(config))
    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused) as caught:
            await registry.prepare(spec_of(wrong), ignore)
    return caught.value.message


async def test_tensors_that_disagree_are_named_with_both_shapes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    wrong = copied(checkpoint("llama"), tmp_path)
    config = json.loads((wrong / "config.json").read_text())
    first = "'model.layers.0.mlp.down_proj.weight' is [32, 64] in the files and [32, 48]"
    message = await refusal(config | {"intermediate_size": 48}, wrong)
    assert message.startswith(f"6 tensors have the wrong shape: {first} by config.json, ")
    assert message.count("in the files") == 3
    missing = "9 tensors are missing: 'model.layers.2.input_layernorm.weight', "
    assert (await refusal(config | {"num_hidden_layers": 3}, wrong)).startswith(missing)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "foo"}, "config.json: hidden_act 'foo' makes no model."),
        (
            {"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}},
            "config.json: rope_parameters.rope_type 'foo' makes no model.",
        ),
        ({"dtype": "int3"}, "config.json: dtype 'int3' makes no model."),
        ({"hidden_size": "large"}, "config.json: hidden_size 'large' makes no model."),
        ({"head_dim": -1}, "config.json has values that make no model."),
    ],
)
async def test_a_value_that_makes_no_model_is_named_and_the_weights_are_not_blamed(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    wrong = copied(checkpoint("llama"), tmp_path)
    config = json.loads((wrong / "config.json").read_text())
    assert await refusal(config | change, wrong) == told


async def test_a_model_larger_than_the_host_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotswap.engine.device.free_host_bytes", lambda: 1 << 20)
    async with new_registry() as registry:
        with pytest.raises(InsufficientMemory, match="GiB free"):
            await registry.prepare(spec_of(checkpoint()), ignore)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"device": "tpu"}, "device"),
        ({"dtype": "float8"}, "dtype"),
        ({"max_model_len": 100_000}, "max_model_len"),
    ],
)
async def test_settings_that_cannot_be_had_are_refused(
    checkpoint: Checkpoint, engine: dict[str, Any], reason: str
) -> None:
    async with new_registry() as registry:
        with pytest.raises(ModelLoadFailed, match=reason):
            await registry.prepare(spec_of(checkpoint(), **engine), ignore)


async def test_a_dtype_can_be_asked_for(checkpoint: Checkpoint) -> None:
    for dtype in ("bfloat16", "float16"):
        async with serving(checkpoint(), dtype=dtype) as served:
            assert served.engine.stats().details["dtype"] == dtype
            assert (await served.ask([1, 2, 3], max_tokens=4, ignore_eos=True)).finished


async def test_rendering_needs_no_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = copied(checkpoint(), tmp_path)
    (path / "model.safetensors").unlink()
    async with new_registry() as registry:
        prompt = ChatPrompt(messages=({"role": "user", "content": "quick fox"},))
        rendered = await registry.render(spec_of(path), request(prompt))
        assert rendered.prompt_tokens > 5
        with pytest.raises(InvalidRequest):
            await registry.render(spec_of(path), request([10_000_000]))


@pytest.mark.parametrize(
    ("template", "tools", "thinking"),
    [
        ("{{ messages }}", False, False),
        ("{{ messages }} tools reasoning_content", False, False),
        ("{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>", True, False),
        ("{{ messages }}[THINK][/THINK]", False, True),
        ("{% if enable_thinking %}{% endif %}", False, True),
        ("{{", False, False),
    ],
)
async def test_how_a_model_chats_is_what_its_speech_was_found_to_be(
    checkpoint: Checkpoint, template: str, tools: bool, thinking: bool
) -> None:
    async with new_registry() as registry:
        facts = await registry.chat_facts(spec_of(checkpoint(), chat_template=template))
    is_readable = template != "{{"
    expected = template if is_readable else None
    assert facts == ChatFacts(template=expected, tools=tools, thinking=thinking)


async def test_what_was_found_out_about_a_model_is_not_found_out_twice(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward import choice

    checks = 0
    plain = choice._plain

    def counted(*arguments: Any) -> Any:
        nonlocal checks
        checks += 1
        return plain(*arguments)

    monkeypatch.setattr(choice, "_plain", counted)
    async with new_registry() as registry:
        for expected in (2, 2):
            prepared = await registry.prepare(spec_of(checkpoint()), ignore)
            async with registry.start(prepared, ignore, ignore):
                assert checks == expected


async def test_a_model_that_cannot_be_taken_off_is_a_lost_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hotswap.engine.stage import Stage

    def breaks(self: Stage, *, room: int | None) -> None:
        raise RuntimeError("secret of the driver")

    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        readings: list[MemoryReport | None] = []
        async with registry.start(prepared, ignore, ignore):
            pass
        readings.append(registry.memory)
        with monkeypatch.context() as patched:
            patched.setattr(Stage, "leave", breaks)
            with pytest.raises(DeviceLost, match="freed") as caught:
                async with registry.start(prepared, ignore, ignore):
                    pass
        assert "secret" not in caught.value.message
        assert "secret of the driver" in caplog.text
        readings.append(registry.memory)
        assert readings[0] is not None
        assert readings[1] is None, "the reading of the teardown before is not this one's"
        async with registry.start(prepared, ignore, ignore):
            assert registry.current is not None, "the stage does not stay taken"


async def test_a_failing_teardown_hides_no_lost_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.stage import Stage

    def breaks(self: Stage, *, room: int | None) -> None:
        raise RuntimeError("synchronize failed")

    monkeypatch.setattr(Stage, "leave", breaks)
    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        with pytest.raises(DeviceLost, match="the first of both"):
            async with registry.start(prepared, ignore, ignore):
                raise DeviceLost("the first of both")


async def test_every_step_of_a_teardown_is_taken(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.placement import InPlace

    left: list[InPlace] = []

    def leave(self: InPlace) -> None:
        left.append(self)

    monkeypatch.setattr(InPlace, "leave", leave)
    async with new_registry(park_bytes=0) as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        with pytest.raises(DeviceLost):
            async with registry.start(prepared, ignore, ignore) as engine:
                monkeypatch.setattr(engine._runner.forward, "close", lambda: 1 // 0)
    assert len(left) == 1


async def test_a_step_that_hangs_is_given_up_when_the_engine_is_left(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def hangs(plan: Any, after: Any) -> Any:
        stuck.set()
        release.wait(20)
        raise ValueError("too late")

    async def ask(served: Served) -> None:
        with pytest.raises(ModelUnloaded):
            await served.ask([1, 2])

    async def leave_it_stuck(group: TaskGroup) -> None:
        async with registry.start(prepared, ignore, ignore) as engine:
            monkeypatch.setattr(engine._runner, "launch", hangs)
            group.start_soon(ask, Served(registry, prepared, engine))
            while not stuck.is_set():
                await anyio.sleep(0.001)

    registry = new_registry(hung_s=0.05)
    prepared = await registry.prepare(spec_of(checkpoint()), ignore)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            with pytest.raises(DeviceLost, match="does not answer"):
                await leave_it_stuck(group)
        with pytest.raises(DeviceLost):
            async with registry.start(prepared, ignore, ignore):
                pass
        await registry.close()
    release.set()
    assert registry._device.join(10)


async def test_closing_does_not_wait_for_a_device_that_hangs() -> None:
    registry, release = new_registry(hung_s=0.05), threading.Event()
    registry._device.submit(lambda: release.wait(20))
    with anyio.fail_after(60):
        await registry.close()
    release.set()
    assert registry._device.join(10)


async def test_the_model_on_the_device_answers_when_its_files_have_changed_or_gone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = copied(checkpoint(), tmp_path)
    async with serving(path) as served:
        wanted = (await served.ask("The quick", max_tokens=5)).text
        (path / "config.json").write_text("{")
        assert (await served.ask("The quick", max_tokens=5)).text == wanted
        shutil.rmtree(path)
        assert (await served.ask("The quick", max_tokens=5)).text == wanted
        gone = dataclasses.replace(served.spec, path=None)
        assert (await served.registry.render(gone, request("The quick"))).prompt_tokens > 0
        assert (await served.registry.chat_facts(gone)).template is not None
        other = dataclasses.replace(served.spec, engine=EngineConfig(chat_template="x"))
        with pytest.raises(CheckpointRefused):
            await served.registry.render(other, request("The quick"))


async def test_prompts_are_rendered_beside_the_event_loop(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.text import PromptRenderer

    render, threads = PromptRenderer.render, set[int]()

    def noted(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return render(*arguments)

    monkeypatch.setattr(PromptRenderer, "render", noted)
    async with serving(checkpoint()) as served:
        await served.ask("x" * 100, max_tokens=1)
    assert threads
    assert threading.get_ident() not in threads


async def test_requests_do_not_wait_for_those_that_are_only_counted(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.text import PromptRenderer

    render, release = PromptRenderer.render, threading.Event()
    running, most = [0], [0]

    def slow(self: Any, asked: Any) -> Any:
        if asked.counted:
            running[0] += 1
            most[0] = max(most[0], running[0])
            assert release.wait(60)
            running[0] -= 1
        return render(self, asked)

    monkeypatch.setattr(PromptRenderer, "render", slow)
    spec = spec_of(checkpoint())
    async with new_registry() as registry, anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(registry.render, spec, request("The quick", counted=True))
        try:
            with anyio.fail_after(30):
                while not most[0]:
                    await anyio.lowlevel.checkpoint()
                assert (await registry.render(spec, request("The quick"))).prompt_tokens
        finally:
            release.set()
    assert most == [1]


async def test_a_count_that_is_given_up_keeps_its_place_to_its_end_and_none_is_begun_for_nobody(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.text import PromptRenderer

    render, release = PromptRenderer.render, threading.Event()
    begun: list[str] = []

    def slow(self: Any, asked: Any) -> Any:
        begun.append(asked.prompts[0].text)
        assert release.wait(60)
        return render(self, asked)

    monkeypatch.setattr(PromptRenderer, "render", slow)
    spec = spec_of(checkpoint())
    async with new_registry() as registry:
        async with anyio.create_task_group() as group:
            for text in ("first", "second"):
                group.start_soon(registry.render, spec, request(text, counted=True))
                while not begun:
                    await anyio.sleep(0.001)
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(registry.render, spec, request("third", counted=True))
            await anyio.wait_all_tasks_blocked()
            assert begun == ["first"]
            release.set()
    assert begun == ["first", "third"]


async def test_the_model_on_the_device_does_not_wait_for_cold_ones(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import front

    release, begun = threading.Event(), threading.Event()
    load = front._load

    def slow(*arguments: Any) -> Any:
        begun.set()
        release.wait(20)
        return load(*arguments)

    async with serving(checkpoint()) as served:
        monkeypatch.setattr(front, "_load", slow)
        async with anyio.create_task_group() as group:
            for length in (100, 101, 102, 103, 104, 105):
                cold = spec_of(checkpoint("llama"), max_model_len=length)
                for _ in range(20):
                    group.start_soon(served.registry.render, cold, request("quick"))
            while not begun.is_set():
                await anyio.sleep(0.001)
            with anyio.fail_after(60):
                assert (await served.ask("quick", max_tokens=2)).finished
            release.set()


async def test_a_context_that_was_cut_is_known_before_the_next_start(
    checkpoint: Checkpoint,
) -> None:
    spec = spec_of(checkpoint(), kv_cache_memory=100_000)
    long = request([1] * 20, max_tokens=480)
    async with new_registry() as registry:
        assert (await registry.render(spec, long)).prompt_tokens == 20
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine:
            limit = engine.max_model_len
            with pytest.raises(ContextLengthExceeded, match=f"length is {limit} "):
                await registry.render(spec, long)
        with pytest.raises(ContextLengthExceeded, match=f"length is {limit} "):
            await registry.render(spec, long)
        roomier = dataclasses.replace(spec, engine=EngineConfig(device="cpu"))
        assert (await registry.render(roomier, long)).prompt_tokens == 20


async def test_a_load_that_was_abandoned_before_its_turn_is_not_begun(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import weights

    begun, release = [], threading.Event()
    auto = hf().AutoModelForCausalLM
    load = auto.from_pretrained

    def slow(path: Path, **options: Any) -> Any:
        begun.append(path)
        if len(begun) == 1:
            release.wait(20)
        return load(path, **options)

    monkeypatch.setattr(auto, "from_pretrained", slow)
    async with new_registry() as registry:
        async with anyio.create_task_group() as abandoned:
            abandoned.start_soon(registry.prepare, spec_of(checkpoint()), ignore)
            while not begun:
                await anyio.sleep(0.001)
            reading = anyio.Event()

            def told(stage: str, value: float) -> None:
                if stage == "reading":
                    reading.set()

            abandoned.start_soon(registry.prepare, spec_of(checkpoint("llama")), told)
            await reading.wait()
            await anyio.wait_all_tasks_blocked()
            abandoned.cancel_scope.cancel()
        release.set()
        await registry.prepare(spec_of(checkpoint("qwen2")), ignore)
    # A thread that waited for its turn may get it after the last one's; it must not use it.
    with weights.TRANSFORMERS:
        pass
    assert begun == [checkpoint(), checkpoint("qwen2")]


async def test_a_refused_checkpoint_leaves_no_frames_of_the_loader(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    wrong = copied(checkpoint(), tmp_path)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"hidden_size": 40}))
    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused) as caught:
            await registry.prepare(spec_of(wrong), ignore)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "read_weights" in frames
    assert "_read" not in frames
    assert caught.value.__context__ is None


async def test_what_holds_memory_after_a_teardown_is_told(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from hotswap.engine import device

    held: list[Any] = []
    used = device.used_bytes
    monkeypatch.setattr(device, "used_bytes", lambda d: used(d) + sum(t.nbytes for t in held))
    async with new_registry() as registry:
        prepared = await registry.prepare(spec_of(checkpoint()), ignore)
        async with registry.start(prepared, ignore, ignore):
            held.append(torch.zeros(33 << 20, 3, dtype=torch.uint8))
        assert registry.memory is not None
        assert registry.memory.leaked_bytes >= 3 * 33 << 20
    assert f"[{33 << 20}, 3] of torch.uint8" in caplog.text
