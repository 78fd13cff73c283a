from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hotswap.contracts.models import ModelSpec
from hotswap.errors import CheckpointRefused
from tests.engine.serving import spec_of

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


@pytest.fixture
def model(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint(), tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(model: Path) -> str:
    from hotswap.engine.front import Fronts

    with pytest.raises(CheckpointRefused) as caught:
        Fronts().get(spec_of(model))
    assert str(model) not in caught.value.message
    return caught.value.message


def test_a_front_is_loaded_once_and_again_when_its_files_change(model: Path) -> None:
    from hotswap.engine.front import Fronts

    fronts = Fronts()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(fronts.get, [spec_of(model)] * 8))
    assert len({id(front) for front in loaded}) == 1
    change(model / "generation_config.json", temperature=0.3)
    os.utime(model / "generation_config.json", (1, 1))
    assert fronts.get(spec_of(model)).sampling.temperature == 0.3
    assert fronts.get(spec_of(model, max_model_len=64)).max_model_len == 64


def test_only_the_most_recent_ones_are_kept(model: Path) -> None:
    from hotswap.engine.front import Fronts

    fronts = Fronts(size=2)
    first = fronts.get(spec_of(model))
    for length in (10, 20):
        fronts.get(spec_of(model, max_model_len=length))
    assert fronts.get(spec_of(model)) is not first


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "no_such_type"}, "not known"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "not a causal language model"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": "Qwen3ForCausalLM"}, "not a list"),
        ({"hidden_size": "large"}, "config.json"),
        ({"max_position_embeddings": 1}, ""),
    ],
)
def test_configurations_that_make_no_model_are_refused(
    model: Path, changes: dict[str, Any], reason: str
) -> None:
    change(model / "config.json", **changes)
    if reason:
        assert reason in refusal(model)


def test_a_tokenizer_must_be_there_and_load(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert "tokenizer" in refusal(model)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(model)


def test_defaults_of_a_wrong_type_are_refused(model: Path) -> None:
    change(model / "generation_config.json", temperature="hot")
    assert "temperature" in refusal(model)


def test_a_model_that_is_not_on_disk_is_refused() -> None:
    from hotswap.engine.front import Fronts

    with pytest.raises(CheckpointRefused, match="not on this machine"):
        Fronts().get(ModelSpec(id="org/name", path=None))


def test_a_recurrent_model_has_a_bound_too(checkpoint: Checkpoint) -> None:
    from hotswap.engine.front import Fronts

    assert Fronts().get(spec_of(checkpoint("mamba"))).max_model_len == 32768


async def wait_for(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


@pytest.fixture
def slow_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLoads]:
    from hotswap.engine import front as module

    slow = SlowLoads(module._load)
    monkeypatch.setattr(module, "_load", slow.load)
    yield slow
    slow.release.set()


class SlowLoads:
    """Fronts of ``held`` are read only once they are let."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self._load = load
        self.held: set[Path] = set()
        self.release = threading.Event()
        self.begun: list[Path] = []

    def load(self, path: Path, *rest: Any) -> Any:
        self.begun.append(path)
        if path in self.held:
            self.release.wait(20)
        return self._load(path, *rest)


@pytest.mark.anyio
async def test_a_front_that_many_wait_for_takes_one_thread_and_holds_up_no_other(
    model: Path, checkpoint: Checkpoint, slow_loads: SlowLoads
) -> None:
    from hotswap.engine.front import Fronts, SharedFronts

    slow_loads.held.add(model)
    fronts = SharedFronts(Fronts())
    got: list[Any] = []

    async def get() -> None:
        got.append(await fronts.get(spec_of(model)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(get)
            await wait_for(lambda: slow_loads.begun == [model])
            await fronts.get(spec_of(checkpoint()))
            assert got == []
            slow_loads.release.set()
    assert slow_loads.begun.count(model) == 1
    assert len({id(front) for front in got}) == 1


@pytest.mark.anyio
async def test_when_the_one_who_reads_leaves_another_goes_on(
    model: Path, slow_loads: SlowLoads
) -> None:
    from hotswap.engine.front import Fronts, SharedFronts

    slow_loads.held.add(model)
    fronts = SharedFronts(Fronts())
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as first:
            first.start_soon(fronts.get, spec_of(model))
            await wait_for(lambda: bool(slow_loads.begun))
            group.start_soon(fronts.get, spec_of(model))
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        slow_loads.release.set()
    assert slow_loads.begun == [model], "what was begun is not read twice"


@pytest.mark.anyio
async def test_all_who_wait_for_a_bad_front_get_an_error_of_their_own(
    model: Path, slow_loads: SlowLoads
) -> None:
    from hotswap.engine.front import Fronts, SharedFronts

    change(model / "config.json", model_type="no_such_type")
    slow_loads.held.add(model)
    fronts = SharedFronts(Fronts())
    errors: list[CheckpointRefused] = []

    async def get() -> None:
        with pytest.raises(CheckpointRefused, match="not known") as caught:
            await fronts.get(spec_of(model))
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
        await wait_for(lambda: bool(slow_loads.begun))
        await wait_for(
            lambda: anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        )
        await anyio.wait_all_tasks_blocked()
        slow_loads.release.set()
    assert len({id(error) for error in errors}) == 5
    assert slow_loads.begun == [model]
