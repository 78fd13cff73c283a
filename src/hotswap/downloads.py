"""Models that must be fetched first: one download for all who wait, beside whatever happens on
the device, for as long as anybody waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from anyio.abc import TaskGroup

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.desk import Desk
from hotswap.policy import Meter

Fetch = Callable[[ModelSpec, Report], Awaitable[ModelSpec]]
"""Downloads a model that is not on disk; see `ModelCatalog.fetch`."""


class Downloads:
    """Of one controller; ``failed`` is told when one does not succeed."""

    def __init__(
        self, desk: Desk, fetch: Fetch, failed: Callable[[ModelSpec, Exception], None]
    ) -> None:
        self._desk = desk
        self._fetch = fetch
        self._failed = failed
        self._running: list[ModelSpec] = []
        self._meters: dict[str, Meter] = {}

    def begin(self, spec: ModelSpec, meter: Meter, tasks: TaskGroup) -> None:
        """Fetch what somebody has begun to wait for; nothing if that is under way already."""
        if spec not in self._running:
            self._running.append(spec)
            self._meters[spec.id] = meter
            tasks.start_soon(self._run, spec, meter)

    def models(self) -> list[str]:
        """Ids of what is being fetched."""
        return [spec.id for spec in self._running]

    def meter(self, model: str) -> Meter | None:
        """Of a download that somebody waits for, also when it has just ended."""
        wanted = any(spec.id == model for spec in self._desk.wanted())
        return self._meters.get(model) if wanted else None

    def take_meter(self, model: str) -> Meter | None:
        """For the load that follows, so that progress goes on where the download ended."""
        return self._meters.pop(model, None)

    async def _run(self, spec: ModelSpec, meter: Meter) -> None:
        fetch = partial(self._fetch, spec, self._desk.report_to(meter))
        try:
            # Again, if somebody came while it was being stopped because the last one had left.
            while self._desk.awaits(spec):
                local = await self._desk.during(lambda: self._desk.awaits(spec), fetch)
                if local is not None:
                    self._desk.adopt(spec, local)
        except Exception as error:
            self._failed(spec, error)
        finally:
            self._running.remove(spec)
            self._desk.ring()
