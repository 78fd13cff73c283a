"""One model on its way to the device: who wants it, how far it is, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hotswap import audit
from hotswap.audit import Cause, Change
from hotswap.contracts.engines import PreparedModel
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.reports import LoadReport, MemoryReport
from hotswap.policy import Meter

_A_LOADS_OWN = ("request", "uploaded")
"""Where settings come from that hold for one load only."""


@dataclass(eq=False)
class Load:
    """All that belongs to one load, so that nothing of it is left over for the next one."""

    spec: ModelSpec
    meter: Meter
    cause: Cause
    left: str | None = None
    """The model that is there when it is begun."""
    prepared: PreparedModel | None = None
    fallback: PreparedModel | None = None
    """The model before it, to go back to if this one does not start."""
    restoring: bool = False
    """This one is what was gone back to."""
    timings: dict[str, float] = field(default_factory=dict)
    """See `SwapSnapshot.timings`."""
    memory: MemoryReport | None = None
    """Around the teardown of the model before it."""
    wanted_at: float = math.inf
    """Since when somebody has waited for it."""
    silent_since: float = math.inf
    """When the model before it gave its last token; infinite: there is none before it."""
    was_parked: bool = False
    """Its weights were in host memory when it was begun."""
    after_failure: bool = False
    """It was there, and its engine failed."""
    _cancelled: bool = False

    def cancel(self) -> None:
        self._cancelled = True

    def is_cancelled(self) -> bool:
        return self._cancelled

    @property
    def is_special(self) -> bool:
        """It has settings that hold for this load only: a request would bring the model without."""
        return any(setting.source in _A_LOADS_OWN for setting in self.spec.applied.values())

    def arrive(self, now: float) -> LoadReport:
        """The model can answer. What was there before is not needed any more, and its weights take
        host memory."""
        if self.silent_since < math.inf:
            self.timings["gap"] = now - max(self.silent_since, self.wanted_at)
        previous, self.fallback = self.fallback, None
        return LoadReport(
            model=self.spec.id,
            previous_model=None if previous is None else previous.spec.id,
            load_time_s=now - self.meter.started,
            already_loaded=False,
            timings=dict(self.timings),
            memory=self.memory,
            config_applied=_applied(self.spec),
        )

    def tell(self, result: str, *, failed: bool = False) -> None:
        """The log's line on what came of it."""
        audit.tell(
            Change(
                cause=self.cause,
                left=self.left,
                came=self.spec.id,
                result=result,
                failed=failed,
                seconds=self.timings,
                weights_bytes=self.spec.facts.weights_bytes,
                memory=self.memory,
            )
        )


def already_loaded(spec: ModelSpec) -> LoadReport:
    """Of a load that had nothing to do."""
    return LoadReport(
        model=spec.id,
        previous_model=None,
        load_time_s=0.0,
        already_loaded=True,
        timings={},
        config_applied=_applied(spec),
    )


def _applied(spec: ModelSpec) -> Mapping[str, Mapping[str, object]]:
    """See `LoadReport.config_applied`."""
    return {
        key: {"value": setting.value, "source": setting.source}
        for key, setting in spec.applied.items()
    }
