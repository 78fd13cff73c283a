"""The state of the swap floor at one moment, as every status page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hotswap.contracts.engines import EngineStats, ParkedModel
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.contracts.reports import MemoryReport


class SwapPhase(StrEnum):
    """EMPTY -> LOADING -> READY -> DRAINING -> EMPTY; FAILED when the device is lost."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    model: str
    message: str
    code: str
    retry_at: float
    """Monotonic time at which a request may try again."""


class UnloadReason(StrEnum):
    """Why a model left the device with no other one in its place."""

    REQUEST = "request"
    IDLE = "idle"
    FAILURE = "failure"
    """Its engine failed."""
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSnapshot:
    """The whole state of the swap floor at one moment; feeds every status page."""

    version: int
    """Grows with each change, so that a reader can wait for the next one."""
    phase: SwapPhase
    resident: ModelSpec | None
    progress: Progress | None
    """Of the model being brought in, also while another one still serves."""
    waiting: Mapping[str, int]
    """By model ("current": any): requests that wait for it, those included whose prompts are being
    read, and loads that somebody waits for and whose turn has not come."""
    leases: int
    parked: tuple[ParkedModel, ...]
    failures: Mapping[str, LoadFailure]
    last_error: str | None
    engine: EngineStats | None
    loads: int
    swaps: int
    unloads_by_reason: Mapping[UnloadReason, int]
    tokens: int
    """That all engines so far have drawn."""
    serviceable: bool
    """A request could be served now or by loading a model on demand."""
    timings: Mapping[str, float]
    """Seconds per phase of the last load, in their order: "queued" until it was begun, "prepare",
    "patience" with who still came for the model before it, "drain" and "teardown" of that one,
    "start", "warm_up" (finding out how to run it), "first_token" of a model that was waited for.
    "gap" is no phase but the silence between two models: from the last token of the one before, or
    from when this one was wanted, if that was later, until it could answer."""
    phase_seconds: Mapping[str, float]
    """``timings`` added up over all loads so far that brought a model."""
    memory: MemoryReport | None
    """Around the last teardown."""
    teardown_leaked_bytes: int = 0
    """That all teardowns so far together left behind."""
    rebuilds: int = 0
    """Engines that failed and were built again."""
    restarts: int = 0
    """Times that this process has begun again, because of a fault that it could not mend."""
    asleep: str | None = None
    """The model that was put to sleep, until one is on the device again."""
    last_resident: str | None = None
    """The model that is on the device or was the last one there."""
    unserviceable_reason: str | None = None
    """Why not ``serviceable``, in a short sentence; None where it is."""
    expires_in_s: float | None = None
    """Until the resident model is let go, if nobody uses it from now on; None: never."""

    @property
    def is_sleeping(self) -> bool:
        """No model is on the device nor on its way there, and the one that `ModelService.wake_up`
        brings was put to sleep, or left and is parked. What else is parked does not count, for it
        is not woken; a server that has not loaded anything does not sleep."""
        left = any(parked.model == self.last_resident for parked in self.parked)
        return self.phase is SwapPhase.EMPTY and (self.asleep is not None or left)

    @property
    def unloads(self) -> int:
        return sum(self.unloads_by_reason.values())
