"""What is counted over all models that were on the device: none of it ever goes back."""

from __future__ import annotations

from collections.abc import Mapping

from hotswap.contracts.reports import MemoryReport
from hotswap.contracts.snapshot import UnloadReason
from hotswap.residency.stay import Residency


class Totals:
    """Of stays that have ended; what the resident model has so far comes on top."""

    def __init__(self) -> None:
        self.loads = 0
        self.swaps = 0
        """Loads that brought another model than the one before."""
        self.rebuilds = 0
        """Engines that failed and were built again."""
        self.leaked_bytes = 0
        self._unloads = dict.fromkeys(UnloadReason, 0)
        self._tokens = 0
        self._seconds: Mapping[str, float] = {}
        self._timings: Mapping[str, float] = {}
        self._last_memory: MemoryReport | None = None

    def loaded(self, timings: Mapping[str, float], *, swapped: bool, rebuilt: bool) -> None:
        self.loads += 1
        self.swaps += swapped
        self.rebuilds += rebuilt
        self._timings = timings

    def ended(self, stay: Residency) -> None:
        """Keep what it has counted."""
        self._timings = self.timings(stay)
        self._seconds = _added(self._seconds, self._timings)
        self._tokens += stay.engine.stats().tokens

    def torn_down(self, memory: MemoryReport | None) -> None:
        """Count each teardown once, that of a model which did not get as far as to serve too.

        Args:
            memory: around the last one that was measured.
        """
        if memory is not None and memory is not self._last_memory:
            self.leaked_bytes += memory.leaked_bytes
        self._last_memory = memory

    def unloaded(self, reason: UnloadReason) -> None:
        self._unloads[reason] += 1

    def unloads(self) -> Mapping[UnloadReason, int]:
        return dict(self._unloads)

    def timings(self, stay: Residency | None) -> Mapping[str, float]:
        """Of the last load.

        Args:
            stay: What it brought, if that is there still.
        """
        return {**self._timings, **(stay.first_token_s() if stay is not None else {})}

    def phase_seconds(self, so_far: Mapping[str, float]) -> Mapping[str, float]:
        """Of all loads.

        Args:
            so_far: The timings of a stay that goes on; empty: none does.
        """
        return _added(self._seconds, so_far)

    def tokens(self, so_far: int) -> int:
        """That all engines have drawn, with those of a stay that goes on."""
        return self._tokens + so_far


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: one.get(key, 0.0) + other.get(key, 0.0) for key in {**one, **other}}
