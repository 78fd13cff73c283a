"""One line in the log for each change of what is on the device: who wanted it and why, from which
model to which, what it took and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from hotswap.contracts.reports import MemoryReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cause:
    """Who wanted a change, and why."""

    by: str
    """"request ID", "operator", "start-up", "idle time", "engine", "watchdog" or "shutdown"."""
    why: str


BY_HAND = Cause("operator", "asked for by hand")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A model left the device, came there, or both; or was to."""

    cause: Cause
    left: str | None
    """The model that was there; None: there was none."""
    came: str | None
    """The one that was to come; None: the device was to be empty."""
    result: str
    """"loaded", "restored", "unloaded", "called off", or why it failed."""
    failed: bool = False
    seconds: Mapping[str, float]
    """By phase, as in `SwapSnapshot.timings`."""
    weights_bytes: int = 0
    """Of the model that came."""
    memory: MemoryReport | None = None
    """Around the teardown of the model that left."""


def tell(change: Change) -> None:
    """Write the line; for machines its parts are fields."""
    memory = change.memory
    freed = None if memory is None else memory.before_bytes - memory.after_bytes
    leaked = None if memory is None else memory.leaked_bytes
    fields = {
        "event": "swap",
        "by": change.cause.by,
        "from": change.left,
        "to": change.came,
        "why": change.cause.why,
        "result": change.result,
        "failed": change.failed,
        "seconds": {phase: round(seconds, 4) for phase, seconds in change.seconds.items()},
        "weights_bytes": change.weights_bytes,
        "freed_bytes": freed,
        "leaked_bytes": leaked,
    }
    logger.log(
        logging.WARNING if change.failed else logging.INFO,
        "swap %s -> %s by %s (%s): %s [%s]",
        _shown(change.left),
        _shown(change.came),
        change.cause.by,
        " ".join(change.cause.why.split()),
        " ".join(change.result.split()),
        ", ".join(_costs(change, freed, leaked)),
        extra=fields,
    )


def _shown(model: str | None) -> str:
    return "nothing" if model is None else repr(model[:200])


def _costs(change: Change, freed: int | None, leaked: int | None) -> list[str]:
    costs = [f"{phase} {seconds:.3f} s" for phase, seconds in change.seconds.items()]
    if change.weights_bytes:
        costs.append(f"{change.weights_bytes} bytes of weights")
    if freed is not None:
        costs.append(f"{freed} bytes freed, {leaked} leaked")
    return costs
