"""What is known of models from their loads so far: how long one takes, what there is room for, and
which came last."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.models import ModelSpec, Task
from hotswap.policy import Meter


class History:
    """Of one registry, whose parked models take less time."""

    def __init__(self, registry: EngineRegistry) -> None:
        self._registry = registry
        self._load_seconds: dict[tuple[str, bool], float] = {}
        """By model, and whether it was parked."""
        self._room: dict[str, tuple[ModelSpec, int]] = {}
        self._last_for: dict[Task, str] = {}
        self.last_resident: str | None = None
        """Id of the model that is or was the last one on the device."""

    def note(
        self,
        spec: ModelSpec,
        *,
        usual_s: float,
        start_s: float,
        was_parked: bool,
        room_tokens: int | None,
    ) -> None:
        """A model has come.

        Args:
            usual_s: what reading and starting it took, without what is only done once.
            start_s: what starting it took of that.
            room_tokens: for prompt and answer together; None: its engine does not tell.
        """
        self._load_seconds[spec.id, was_parked] = usual_s
        self._load_seconds.setdefault((spec.id, True), start_s)
        if room_tokens is not None:
            self._room[spec.id] = spec, room_tokens
        self.last_resident = self._last_for[spec.task] = spec.id

    def last_for(self, task: Task) -> str | None:
        """As `last_resident`, of the models for a task."""
        return self._last_for.get(task)

    def room(self) -> Mapping[str, tuple[ModelSpec, int]]:
        """By model: with which settings it was started last, and for how many tokens of prompt and
        answer together there was memory then; that may be fewer than it was to have."""
        return dict(self._room)

    def expected_load_s(self, model: str) -> float | None:
        """As long as reading and starting it took the last time, from where it is now, parked or
        not; None: it has not been loaded yet. What is only done once is left out, and so is all
        waiting for others: see `hotswap.policy.Meter`. As long as it has not come from the park,
        that is what starting it took: there is nothing to be read."""
        return self._load_seconds.get((model, self.is_parked(model)))

    def is_parked(self, model: str) -> bool:
        return any(parked.model == model for parked in self._registry.parked())

    def meter(self, spec: ModelSpec) -> Meter:
        """For a load that begins now."""
        return Meter(
            spec.id,
            download=spec.path is None,
            started=anyio.current_time(),
            expected_s=self.expected_load_s(spec.id),
        )
