"""Weights that go to the device while another model is still there.

They belong to the prepared model: with the last reference to it they are gone. Nothing depends on
them; a model without them is brought when the other one has left.
"""

from __future__ import annotations

import logging
import threading
import weakref

import torch
from torch import Tensor

from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.upload import Upload, layout_of
from hotswap.engine.weights import HostWeights

_log = logging.getLogger(__name__)

_MARGIN_BYTES = 2 << 30
"""Of the device, left to the model that is there: it has its keys and values, and computes."""


class Ahead:
    """An upload that is under way, for the one who starts the model."""

    def __init__(self, upload: Upload) -> None:
        self._upload: Upload | None = upload

    def take(self) -> Upload | None:
        """None: somebody has."""
        upload, self._upload = self._upload, None
        return upload


class Aheads:
    """What is on the device for models whose turn has not come."""

    def __init__(self) -> None:
        self._arenas: dict[int, weakref.ref[Tensor]] = {}
        """By their `id`: a thread may hold one a moment longer than the model does."""
        self._waiting: list[weakref.ref[Ahead]] = []
        self._lock = threading.Lock()
        """They begin on some thread, are taken on the event loop, and given up on the device's."""

    @property
    def bytes(self) -> int:
        """Of the device."""
        with self._lock:
            arenas = [arena() for arena in self._arenas.values()]
        return sum(0 if arena is None else arena.untyped_storage().nbytes() for arena in arenas)

    def begin(self, weights: HostWeights, memory: DeviceMemory) -> Ahead | None:
        """Send ``weights`` to the device, if it has room for them beside what is there. From any
        thread, one at a time."""
        layout = layout_of(weights)
        if layout is None or layout.size > memory.free_bytes() - _MARGIN_BYTES:
            return None
        try:
            upload = Upload(layout, memory, weights.image)
        except torch.OutOfMemoryError:
            _log.info("The device has no room for %d bytes ahead of time", layout.size)
            return None
        upload.send_ahead()
        ahead = Ahead(upload)
        with self._lock:
            there = {key: arena for key, arena in self._arenas.items() if arena() is not None}
            self._arenas = {**there, id(upload.arena): weakref.ref(upload.arena)}
            self._waiting = [ref for ref in self._waiting if ref() is not None]
            self._waiting.append(weakref.ref(ahead))
        return ahead

    def take(self, ahead: Ahead | None) -> Upload | None:
        """Its turn has come."""
        with self._lock:
            upload = None if ahead is None else ahead.take()
            if upload is not None:
                self._arenas.pop(id(upload.arena), None)
        return upload

    def give_up(self) -> bool:
        """Free all of it: the model that is there needs the room. Waits for copies that are under
        way. False: there is nothing."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        uploads = [upload for ref in waiting if (upload := self.take(ref())) is not None]
        for upload in uploads:
            _log.info("%d bytes ahead of time make room for an answer", upload.layout.size)
            upload.close()
        return bool(uploads)
