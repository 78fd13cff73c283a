"""Models whose weights are read into memory of the process's own (`no_mmap`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from hotswap.errors import CheckpointRefused
from tests.engine.serving import Served, ignore, spec_of

if TYPE_CHECKING:
    from hotswap.contracts.models import ModelSpec
    from hotswap.engine.registry import TorchEngineRegistry

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
PROMPT = list(range(3, 40))


@pytest.fixture
def checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    """As elsewhere, but the test's own: what another test has mapped may be so still."""

    def directory(architecture: str = "qwen3") -> Path:
        own = tmp_path / "own" / architecture
        return own if own.exists() else Path(shutil.copytree(checkpoint(architecture), own))

    return directory


def new_registry(**options: Any) -> TorchEngineRegistry:
    from hotswap.engine.registry import TorchEngineRegistry

    return TorchEngineRegistry(**options)


def descriptors() -> set[str]:
    """What this process has open that goes by the name of copies."""
    open_files = Path("/proc/self/fd").iterdir()
    return {file.name for file in open_files if "hotswap-weights" in os.path.realpath(file)}


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


async def play(registry: TorchEngineRegistry, spec: ModelSpec, path: Path) -> tuple[str, str]:
    """What it answers, and how its weights are held. No file of ``path`` is mapped meanwhile."""
    prepared = await registry.prepare(spec, ignore)
    async with registry.start(prepared, ignore, ignore) as engine:
        answer = await Served(registry, prepared, engine).ask(PROMPT, max_tokens=8)
        assert is_mapped(path) == (not spec.engine.no_mmap)
        return answer.text, engine.stats().details["weights"]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("qwen3", "read"), ("gemma3", "read"), ("falcon", "modules")]
)
@pytest.mark.parametrize("park_bytes", [None, 0])
async def test_a_model_that_was_read_answers_as_a_mapped_one_each_time_it_comes(
    checkpoint: Checkpoint, architecture: str, kind: str, park_bytes: int | None
) -> None:
    path = checkpoint(architecture)
    async with new_registry() as registry:
        wanted, _ = await play(registry, spec_of(path), path)
    async with new_registry(park_bytes=park_bytes) as registry:
        for _ in range(3):
            assert await play(registry, spec_of(path, no_mmap=True), path) == (wanted, kind)
        assert not descriptors()
        assert (await play(registry, spec_of(path), path))[0] == wanted


async def test_where_its_tensors_lie_is_found_out_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import loader as module

    path = checkpoint()
    async with new_registry(park_bytes=0) as registry:
        first = await play(registry, spec_of(path, no_mmap=True), path)
        monkeypatch.setattr(module, "read_weights", lambda *_: pytest.fail("it is read again"))
        assert await play(registry, spec_of(path, no_mmap=True), path) == first


async def test_its_memory_comes_back_when_it_makes_room(checkpoint: Checkpoint) -> None:
    """That of mapped files the system takes anyway."""
    path = checkpoint()

    async def is_counted(*, no_mmap: bool) -> bool:
        async with new_registry() as registry:
            await play(registry, spec_of(path, no_mmap=no_mmap), path)
            [parked] = registry._park._models.values()
            return parked.private_bytes >= parked.prepared.weights.bytes

    assert not await is_counted(no_mmap=False)
    assert await is_counted(no_mmap=True)


async def test_a_dry_run_counts_them_as_memory_that_is_taken(checkpoint: Checkpoint) -> None:
    from hotswap.engine.fit import Free, estimate, need_of
    from hotswap.engine.front import Fronts

    path = checkpoint()
    free = Free(host=1 << 30, device=1 << 30, is_apart=False)
    front = Fronts().get(spec_of(path))

    def fits(*, no_mmap: bool, is_parked: bool = False) -> bool:
        spec = spec_of(path, no_mmap=no_mmap, kv_cache_memory=600 << 20)
        need = need_of(spec, front, weights_bytes=400 << 20)
        return estimate(need, free, is_parked=is_parked).fits

    assert fits(no_mmap=False)
    assert not fits(no_mmap=True)
    assert fits(no_mmap=True, is_parked=True)


def into_blobs(snapshot: Path, blobs: Path) -> None:
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")


async def test_a_model_of_the_hub_cache_is_found_behind_its_links(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = Path(shutil.copytree(checkpoint(), repository / "snapshots" / "abc"))
    into_blobs(snapshot, repository / "blobs")
    async with new_registry() as registry:
        assert (await play(registry, spec_of(snapshot, no_mmap=True), repository))[1] == "read"


@pytest.mark.parametrize("what", ["shorter", "gone"])
async def test_a_file_that_is_cut_while_it_is_read_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from hotswap.engine import copies

    path = Path(shutil.copytree(checkpoint(), tmp_path / "changing"))
    file = path / "model.safetensors"
    monkeypatch.setattr(copies, "_PART_BYTES", 4096)

    def report(stage: str, share: float) -> None:
        if stage == "reading" and share > 0.5 and file.exists():
            if what == "gone":
                file.unlink()
            else:
                os.truncate(file, file.stat().st_size // 2)

    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused, match="changed"):
            await registry.prepare(spec_of(path, no_mmap=True), report)
    assert not descriptors()


async def test_a_load_is_given_up_between_two_parts_of_a_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import copies

    monkeypatch.setattr(copies, "_PART_BYTES", 4096)
    told: list[float] = []
    begun = anyio.Event()

    def report(stage: str, share: float) -> None:
        if stage == "reading":
            told.append(share)
            if len(told) == 3:
                begun.set()

    async with new_registry() as registry, anyio.create_task_group() as tasks:
        tasks.start_soon(registry.prepare, spec_of(checkpoint(), no_mmap=True), report)
        await begun.wait()
        tasks.cancel_scope.cancel()
    parts = checkpoint().joinpath("model.safetensors").stat().st_size // 4096
    assert 3 <= len(told) < parts
    assert told == sorted(told)
    with anyio.fail_after(10):
        while descriptors():
            await anyio.sleep(0.001)
