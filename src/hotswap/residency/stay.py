"""A model's stay on the device, from the moment it can answer until it is taken off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hotswap import audit
from hotswap.audit import BY_HAND, Cause, Change
from hotswap.contracts.engines import Engine, PreparedModel
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.reports import MemoryReport, UnloadReport
from hotswap.contracts.snapshot import UnloadReason


@dataclass(eq=False)
class Residency:
    """Leases of it are held by the requests that it answers."""

    prepared: PreparedModel
    engine: Engine
    arrived: float
    """When it could first answer."""
    idle_since: float
    idle_limit_s: float | None
    """Seconds without a lease after which the model is let go; None or negative: never. Those that
    the request wants which came last, or of two that ran together ended last."""
    leaves: bool = False
    """Somebody has let go of it, and nobody has been let in since."""
    awaited: bool = False
    """Somebody waited for it when it arrived."""
    leases: int = 0
    drained_s: float = 0.0
    """How long its answers took to end, once it had to leave."""

    @property
    def spec(self) -> ModelSpec:
        return self.prepared.spec

    @property
    def idle_until(self) -> float:
        if self.leases or self.idle_limit_s is None or self.idle_limit_s < 0:
            return math.inf
        return self.idle_since + self.idle_limit_s

    def expires_in_s(self, now: float) -> float | None:
        """Until it is let go, if nobody uses it from ``now`` on; None: never."""
        if self.idle_limit_s is None or self.idle_limit_s < 0:
            return None
        idle_s = 0.0 if self.leases else now - self.idle_since
        return max(0.0, self.idle_limit_s - idle_s)

    def first_token_s(self) -> Mapping[str, float]:
        """As a phase of its load: the one that ends when the load has been told already. Empty
        where nobody waited for the model, and before that token."""
        first = self.engine.stats().first_token
        if not self.awaited or first is None:
            return {}
        return {"first_token": max(0.0, first - self.arrived)}

    def unload_report(
        self, teardown_s: float, memory: MemoryReport | None, *, parked: bool
    ) -> UnloadReport:
        return UnloadReport(
            model=self.spec.id,
            drain_time_s=self.drained_s,
            shutdown_time_s=teardown_s,
            total_time_s=self.drained_s + teardown_s,
            memory=memory,
            parked=parked,
        )

    def tell_unloaded(self, reason: UnloadReason, report: UnloadReport) -> None:
        """The log's line on a model that left with no other one in its place."""
        audit.tell(
            Change(
                cause=self._cause(reason),
                left=self.spec.id,
                came=None,
                result="unloaded",
                seconds={"drain": report.drain_time_s, "teardown": report.shutdown_time_s},
                memory=report.memory,
            )
        )

    def _cause(self, reason: UnloadReason) -> Cause:
        match reason:
            case UnloadReason.REQUEST:
                return BY_HAND
            case UnloadReason.FAILURE:
                failure = self.engine.failure
                return Cause("engine", "the device is lost" if failure is None else failure.message)
            case UnloadReason.SHUTDOWN:
                return Cause("shutdown", "the server stops")
            case UnloadReason.IDLE:
                return Cause("idle time", f"nobody has used it for {self.idle_limit_s or 0.0:g} s")
