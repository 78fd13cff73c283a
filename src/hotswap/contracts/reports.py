"""What a load or an unload did, or would do, and the memory around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Memory of the device (CPU device: of the process) around a teardown."""

    before_bytes: int
    after_bytes: int
    baseline_bytes: int
    leaked_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model would take, and what there is for it, in bytes."""

    weights_bytes: int
    kv_bytes: int
    """Keys and values of one sequence as long as the model takes."""
    device_free_bytes: int
    """Once the resident model has left; of all devices together, where it would be spread."""
    host_free_bytes: int
    fits: bool
    reason: str | None = None
    """Why it does not, in a sentence; also where only its context would be cut."""
    spread: Mapping[str, int] | None = None
    """How many bytes of the weights would lie on which device; None: all on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    model: str
    previous_model: str | None
    load_time_s: float
    already_loaded: bool
    timings: Mapping[str, float]
    config_applied: Mapping[str, Mapping[str, Any]]
    memory: MemoryReport | None = None
    """Around the teardown of the model that made way for it; None: there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadForecast:
    """What a load would do."""

    model: str
    already_loaded: bool
    leaves: str | None
    """The model that would have to go."""
    expected_s: float | None
    """Of reading and starting it, as the last time; None: it has not been loaded yet."""
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadReport:
    """``model`` is None where nothing was loaded."""

    model: str | None
    drain_time_s: float = 0.0
    shutdown_time_s: float = 0.0
    total_time_s: float = 0.0
    memory: MemoryReport | None = None
    parked: bool = False
    """It is kept in host memory."""
    was_parked: bool = False
    """It was in host memory only, and that has been let go of."""
    called_off: str | None = None
    """Nothing was unloaded: the load of this model was called off."""
