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
        self._lock = threading.Lock()
        """Of the arenas: one that begins on a thread may have been given up on the event loop."""

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
        with self._lock:
            there = {key: arena for key, arena in self._arenas.items() if arena() is not None}
            self._arenas = {**there, id(upload.arena): weakref.ref(upload.arena)}
        upload.send_ahead()
        return Ahead(upload)

    def take(self, ahead: Ahead | None) -> Upload | None:
        """Its turn has come."""
        upload = None if ahead is None else ahead.take()
        if upload is not None:
            with self._lock:
                self._arenas.pop(id(upload.arena), None)
        return upload
