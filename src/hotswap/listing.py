"""What is told of the models that a request may name: a pure function of what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotswap.contracts.listing import ModelListing, ModelStatus
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.contracts.snapshot import LoadFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a listing is made from."""

    specs: tuple[ModelSpec, ...]
    resident: ModelSpec | None
    coming: ModelSpec | None
    served: frozenset[str | None] | None
    """Ids of the models that answer; None: any."""
    progress: Mapping[str, Progress]
    failures: Mapping[str, LoadFailure]
    sleeping: frozenset[str]
    room: Mapping[str, tuple[ModelSpec, int]]
    """See `History.room`."""

    def lists(self, spec: ModelSpec) -> bool:
        return self.served is None or spec.id in self.served or spec.background

    def shows(self, spec: ModelSpec) -> bool:
        """Clients offer for a chat whatever is listed; what is served alone hides nothing."""
        return spec.task == "generate" or self.served is not None


def listings(facts: Facts) -> tuple[ModelListing, ...]:
    known = {spec.id: spec for spec in facts.specs if facts.lists(spec)}
    # What is served is listed, even if its files are gone or it is an unlisted revision.
    for spec in (facts.resident, facts.coming):
        if spec is not None:
            known.setdefault(spec.id, spec)
    shown = (spec for spec in known.values() if facts.shows(spec))
    return tuple(listing(spec, facts) for spec in shown)


def listing(spec: ModelSpec, facts: Facts) -> ModelListing:
    failure, progress = facts.failures.get(spec.id), facts.progress.get(spec.id)
    error = spec.fault or (failure.message if failure else None)
    status: ModelStatus = "unloaded"
    if facts.resident is not None and facts.resident.id == spec.id:
        spec, status, progress, error = facts.resident, "loaded", None, None
    elif progress is not None:
        status = "loading"
    elif spec.id in facts.sleeping:
        status = "sleeping"
    return ModelListing(
        id=spec.id,
        aliases=spec.aliases,
        created_unix=spec.created_unix,
        owned_by=spec.id.rpartition("/")[0] or "hotswap",
        status=status,
        max_model_len=_max_model_len(spec, facts),
        task=spec.task,
        progress=progress,
        error=error,
        facts=spec.facts,
    )


def _max_model_len(spec: ModelSpec, facts: Facts) -> int | None:
    """What a request can count on: as many tokens as its last start had room for, if nothing that
    they depend on has changed since."""
    wanted = spec.engine.max_model_len or spec.max_position_embeddings
    started, tokens = facts.room.get(spec.id, (None, wanted))
    if started is None or started.engine != spec.engine:
        return wanted
    same = started.max_position_embeddings == spec.max_position_embeddings
    return tokens if same else wanted
