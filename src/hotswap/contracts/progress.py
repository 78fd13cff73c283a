"""How far a load is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str, float], None]
"""Takes a stage ("downloading", "checking", "reading", "starting") and how much of it is done,
0 to 1. Called on the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a load is. ``value`` runs from 0 to 1 over the whole load and never goes back."""

    model: str
    stage: str
    value: float
    eta_s: float | None = None
