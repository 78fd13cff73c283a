"""What may be told of the models that a request can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hotswap.contracts.models import ChatFacts, ModelFacts, Task
from hotswap.contracts.progress import Progress
from hotswap.contracts.requests import SamplingParams

ModelStatus = Literal["loaded", "loading", "sleeping", "unloaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListing:
    """One line of ``GET /v1/models``."""

    id: str
    aliases: tuple[str, ...]
    created_unix: int
    owned_by: str
    status: ModelStatus
    max_model_len: int | None
    """Less than it is set to be where its last start had memory for fewer tokens."""
    task: Task = "generate"
    progress: Progress | None = None
    error: str | None = None
    """Why it cannot be loaded, or why its last load failed."""
    facts: ModelFacts = ModelFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """All that may be told of one model."""

    listing: ModelListing
    sampling: SamplingParams
    """Defaults for what a request leaves unset."""
    chat: ChatFacts
    """Nothing is known of a model that is still to be downloaded."""
