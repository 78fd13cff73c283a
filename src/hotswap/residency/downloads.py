"""Models that must be fetched first: one download for all who wait, beside whatever happens on
the device, for as long as anybody waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from anyio.abc import TaskGroup

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.policy import Meter
from hotswap.residency.desk import Desk
from hotswap.residency.history import History

Fetch = Callable[[ModelSpec, Report], Awaitable[ModelSpec]]
"""Downloads a model that is not on disk; see `ModelCatalog.fetch`."""


class Downloads:
    """Of one controller; ``failed`` is told when one does not succeed."""

    def __init__(
        self,
        desk: Desk,
        history: History,
        fetch: Fetch,
        failed: Callable[[ModelSpec, Exception], None],
    ) -> None:
        self._desk = desk
        self._history = history
        self._fetch = fetch
        self._failed = failed
        self._tasks: TaskGroup | None = None
        self._running: list[ModelSpec] = []
        self._meters: dict[str, Meter] = {}

    def run_in(self, tasks: TaskGroup) -> None:
        """Before the first one begins."""
        self._tasks = tasks

    def begin(self, spec: ModelSpec) -> None:
        """Fetch what somebody has begun to wait for, unless it is here or under way already."""
        if spec.path is None and spec not in self._running:
            assert self._tasks is not None, "the controller is not running"
            meter = self._meters[spec.id] = self._history.meter(spec)
            self._running.append(spec)
            self._tasks.start_soon(self._run, spec, meter)

    def models(self) -> tuple[ModelSpec, ...]:
        """What is being fetched."""
        return tuple(self._running)

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
            self._forget_meters()
            self._desk.ring()

    def _forget_meters(self) -> None:
        """But for those of downloads that go on, and of loads that are to follow one."""
        followed = {spec.id for spec in (*self._running, *self._desk.wanted())}
        self._meters = {model: self._meters[model] for model in self._meters if model in followed}
