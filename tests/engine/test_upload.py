"""Weights on their way to an arena, through a lane that is late, and images of them."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.test_arena import filled, skeleton_of
from tests.engine.test_lanes import LateLane

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.arena import Layout
    from hotswap.engine.device_memory import HostMemory

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


def late_memory() -> HostMemory:
    from hotswap.engine.device_memory import HostMemory

    memory = HostMemory()
    memory.lane = LateLane()
    return memory


@pytest.fixture
def layout(checkpoint: Checkpoint) -> Layout:
    from hotswap.engine.arena import Layout

    return Layout.of(skeleton_of(checkpoint("llama_biases")))


def same(layout: Layout, arena: Tensor) -> bool:
    """The pieces are in their places."""
    import torch

    return all(torch.equal(view, source) for source, view in layout.views(arena))


@pytest.fixture
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine import image

    monkeypatch.setattr(image, "_STRETCH_BYTES", 10_000)
    monkeypatch.setattr(image, "_COPY_BYTES", 3_000)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("imaged", [False, True])
@pytest.mark.usefixtures("small_stretches")
def test_the_weights_are_there_when_they_were_waited_for(
    layout: Layout, *, ahead: bool, imaged: bool
) -> None:
    from hotswap.engine.image import made
    from hotswap.engine.upload import Upload

    memory = late_memory()
    image = made(layout, memory, threading.Event()) if imaged else None
    upload = Upload(layout if image is None else image.layout, memory, image)
    upload.arena.fill_(0xFF)
    if ahead:
        upload.send_ahead()
    else:
        upload.send()
    upload.join()
    upload.wait()
    assert same(layout, upload.arena)
    if image is not None:
        image.close()
    stray = upload.arena
    upload.close()
    assert not stray.untyped_storage().nbytes()


@pytest.mark.usefixtures("small_stretches")
def test_an_image_holds_the_skeleton_and_is_pinned_until_it_is_closed(layout: Layout) -> None:
    import torch

    from hotswap.engine.blueprint import with_tensors
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.image import made

    pinned: dict[int, int] = {}

    class Noted(HostMemory):
        def pin(self, memory: Tensor) -> bool:
            pinned[memory.data_ptr()] = len(memory)
            return True

        def unpin(self, memory: Tensor) -> None:
            assert pinned.pop(memory.data_ptr()) == len(memory)

    image = made(layout, Noted(), threading.Event())
    assert image is not None
    assert len(pinned) > 3
    assert sum(pinned.values()) == layout.size
    assert image.layout.size == layout.size
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    with_tensors(image.skeleton, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    with_tensors(layout.place(filled(layout)), lambda t: wanted.append(t) or t)  # type: ignore[func-returns-value]
    assert len(found) == len(wanted) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    for _ in range(2):
        image.close()
        assert dict(pinned) == {}
    assert not image.acquire()


@pytest.mark.parametrize("refused", [0, 2])
@pytest.mark.usefixtures("small_stretches")
def test_without_memory_that_can_be_pinned_there_is_no_image(layout: Layout, refused: int) -> None:
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.image import made

    class Refusing(HostMemory):
        pinned = 0

        def pin(self, _: Tensor) -> bool:
            if self.pinned == refused:
                return False
            self.pinned += 1
            return True

        def unpin(self, _: Tensor) -> None:
            self.pinned -= 1

    memory = Refusing()
    assert made(layout, memory, threading.Event()) is None
    assert memory.pinned == 0


def test_an_image_that_is_given_up_is_none(layout: Layout) -> None:
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.image import made

    abandoned = threading.Event()
    abandoned.set()
    assert made(layout, HostMemory(), abandoned) is None


def test_an_image_is_closed_only_when_nobody_copies_from_it(layout: Layout) -> None:
    from hotswap.engine.device_memory import HostMemory
    from hotswap.engine.image import made
    from hotswap.engine.upload import Upload

    memory = late_memory()
    image = made(layout, HostMemory(), threading.Event())
    assert image is not None
    upload = Upload(image.layout, memory, image)
    upload.send()
    closing = threading.Thread(target=image.close)
    closing.start()
    assert image.is_open, "the copy has not arrived"
    upload.wait()
    closing.join(20)
    assert not image.acquire()
    assert same(layout, upload.arena)


def held_up(lane: Any) -> tuple[threading.Event, threading.Event]:
    """That a copy has been asked for, and what each of them waits for then."""
    copy, begun, release = lane.copy, threading.Event(), threading.Event()

    def slow(target: Tensor, source: Tensor) -> None:
        copy(target, source)
        begun.set()
        release.wait(20)

    lane.copy = slow
    return begun, release


def test_an_upload_that_is_dropped_gives_up_and_keeps_nothing(layout: Layout) -> None:
    """What is on its way by then arrives before the memory is free."""
    from hotswap.engine.upload import Upload

    memory = late_memory()
    lane: Any = memory.lane
    begun, release = held_up(lane)
    upload = Upload(layout, memory)
    arena = weakref.ref(upload.arena)
    [thread] = _started(upload.send_ahead)
    assert begun.wait(20)
    gc.disable()
    try:
        del upload
        assert arena() is not None
        release.set()
        thread.join(20)
        assert lane.done == 1
        lane._copies.clear()  # as the device forgets
        assert arena() is None
    finally:
        gc.enable()


def _started(call: Callable[[], None]) -> list[threading.Thread]:
    before = set(threading.enumerate())
    call()
    return [thread for thread in threading.enumerate() if thread not in before]


def test_an_upload_that_is_closed_on_its_way_gives_up_and_waits_for_what_was_begun(
    layout: Layout,
) -> None:
    from hotswap.engine.upload import Upload

    memory = late_memory()
    lane: Any = memory.lane
    begun, release = held_up(lane)
    upload = Upload(layout, memory)
    upload.send_ahead()
    assert begun.wait(20)
    [closing] = _started(threading.Thread(target=upload.close).start)
    while not upload._load.abandoned.is_set():
        time.sleep(0.001)
    assert upload.arena.untyped_storage().nbytes()
    release.set()
    closing.join(20)
    assert lane.done == len(lane._copies) == 1 < len(layout.pieces)
    assert not upload.arena.untyped_storage().nbytes()


# -- on a device ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("imaged", [False, True])
@pytest.mark.usefixtures("small_stretches")
def test_weights_reach_a_cuda_device_and_its_memory_comes_back(
    layout: Layout, *, imaged: bool
) -> None:
    import torch

    from hotswap.engine.device_memory import CudaMemory
    from hotswap.engine.image import made
    from hotswap.engine.upload import Upload

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    memory = CudaMemory(device)
    image = made(layout, memory, threading.Event()) if imaged else None
    assert imaged == (image is not None)
    if image is not None:
        assert image.skeleton.embedding.is_pinned()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    for ahead in (False, True):
        upload = Upload(layout if image is None else image.layout, memory, image)
        upload.arena.fill_(0xFF)
        torch.cuda.synchronize()
        if ahead:
            upload.send_ahead()
        else:
            upload.send()
        upload.join()
        assert all(torch.equal(view.cpu(), host) for host, view in layout.views(upload.arena))
        upload.wait()
        upload.close()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved(device) == before
    if image is not None:
        image.close()
        assert not image.skeleton.embedding.is_pinned()
