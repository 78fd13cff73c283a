"""Weights on their way from host memory into an arena on the device, perhaps ahead of time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from hotswap.engine.arena import Layout
from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.forward.base import UnsupportedForward
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.reading import read
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.image import HostImage
from hotswap.engine.lanes import Arrival, Lane
from hotswap.engine.weights import HostWeights


@dataclass(frozen=True, slots=True)
class _Load:
    """What is to be copied, and where to."""

    layout: Layout
    arena: Tensor
    memory: DeviceMemory
    image: HostImage | None
    abandoned: threading.Event


class Upload:
    """An arena, and that its weights are coming. Whoever lets go of it lets go of the arena."""

    def __init__(
        self, layout: Layout, memory: DeviceMemory, image: HostImage | None = None
    ) -> None:
        """
        Args:
            image: Of the same layout.

        Raises:
            torch.OutOfMemoryError
        """
        self.layout = layout
        self.arena = memory.reserve(layout.size)
        self._load = _Load(layout, self.arena, memory, image, threading.Event())
        self._sent: Future[Arrival] = Future()
        """Resolved while anybody has the upload: what is sent ahead is given up after that."""
        self._begun = False
        self._copies = ExitStack()

    def send(self) -> None:
        """On the calling thread, which is free when what is pinned has been asked for, and the
        rest has been read."""
        arrival = self._copies.enter_context(_sending(self._load, lambda: True))
        self._begun = True
        self._sent.set_result(arrival)

    def send_ahead(self) -> None:
        """On a thread of its own, which gives up when the upload is let go of. The thread has the
        arena until what it asked for is there, so that nothing is written to freed memory."""
        self._begun = True
        of_this = weakref.ref(self), self._load, self._sent
        threading.Thread(
            target=_send_ahead, args=of_this, name="hotswap-upload", daemon=True
        ).start()

    def failed(self) -> bool:
        """Wait until all has been asked for, and say whether that failed."""
        return self._sent.exception() is not None

    def join(self) -> None:
        """Have what the calling thread computes on the device from now on come after it."""
        self._sent.result().join()

    def wait(self) -> None:
        """Until it is there."""
        with self._copies:
            self._sent.result().wait()

    def close(self) -> None:
        """Free the arena, even where a stray reference to it lives. What is sent ahead is given
        up."""
        self._load.abandoned.set()
        try:
            if self._begun and self._sent.exception() is None:
                self.wait()
        finally:
            self.arena.untyped_storage().resize_(0)


def upload_of(weights: HostWeights, memory: DeviceMemory) -> Upload | None:
    """None: the model runs in modules of its own, or has to be seen to run otherwise first.

    Raises:
        torch.OutOfMemoryError
    """
    layout = layout_of(weights)
    return None if layout is None else Upload(layout, memory, weights.image)


def layout_of(weights: HostWeights) -> Layout | None:
    """None: it is no skeleton, or is known to run otherwise."""
    if weights.image is not None:
        return weights.image.layout
    content, known = weights.content, weights.known
    if isinstance(content, PreTrainedModel):
        if known is not None and known.verdict.tier != LeanForward.tier:
            return None
        try:
            content = read(content)
        except UnsupportedForward:
            return None
    return Layout.of(content) if isinstance(content, Skeleton) else None


class _Abandoned(Exception):
    """Nobody waits for the weights any more."""


def _send_ahead(upload: Callable[[], Upload | None], load: _Load, sent: Future[Arrival]) -> None:
    try:
        with _sending(
            load, lambda: upload() is not None and not load.abandoned.is_set()
        ) as arrival:
            sent.set_result(arrival)
    except _Abandoned:
        sent.set_exception(_Abandoned())  # without frames, which hold the arena
    except Exception as error:
        if sent.done():
            raise
        sent.set_exception(error)


@contextmanager
def _sending(load: _Load, wanted: Callable[[], bool]) -> Iterator[Arrival]:
    """All has been asked for inside the block, and is there after it."""
    lane, arena = load.memory.lane, load.arena
    if load.image is not None and load.image.acquire():
        try:
            with _all_there(lane):
                for begin, stretch in load.image.stretches():
                    lane.copy(arena[begin : begin + len(stretch)], stretch)
                yield lane.mark()
        finally:
            load.image.release()
        return
    with _all_there(lane):
        with load.memory.ring() as ring:  # left at once: others on this thread may need it
            # In the order of the files.
            for piece in sorted(load.layout.pieces, key=lambda piece: piece.tensor.data_ptr()):
                if not wanted():
                    raise _Abandoned
                content = piece.content
                ring.send(arena[piece.offset : piece.offset + len(content)], content)
            arrival = ring.flush()
        yield arrival


@contextmanager
def _all_there(lane: Lane) -> Iterator[None]:
    """Whatever happens inside, nothing is on its way any more when the block has been left."""
    try:
        yield
    finally:
        lane.mark().wait()
