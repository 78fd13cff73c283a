"""Which model should have the device next, and when the resident one takes no more requests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hotswap.contracts.models import ModelSpec
from hotswap.policy import successor
from hotswap.residency.desk import Desk, is_same_load
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy


@dataclass(frozen=True)
class Next:
    """What should be on the device instead of what is there."""

    spec: ModelSpec
    leave_at: float


class Succession:
    """As things stand: `hotswap.policy.successor`, with the operators before the requests and those
    whom any model suits behind them. Changes nothing."""

    def __init__(self, desk: Desk, occupancy: Occupancy) -> None:
        self._desk = desk
        self._occupancy = occupancy

    def next(self) -> Next | None:
        """None: what is there stays."""
        for wish in self._desk.load_wishes:
            if wish.spec.path is not None:
                return Next(wish.spec, leave_at=-math.inf)
        stay = self._occupancy.stay
        resident, leases = (stay.spec.id, stay.leases) if stay else (None, 0)
        waiting_for_any = [] if stay else self._desk.takers_of_any()
        coming = self._occupancy.coming
        if coming is not None and any(one.takes(coming) for one in waiting_for_any):
            return Next(coming, leave_at=-math.inf)  # what is on its way suits them
        local = [waiter for waiter in self._desk.queue if waiter.spec.path is not None]
        choice = successor(local, resident, leases, self._desk.rules)
        if choice is not None:
            spec = next(waiter.spec for waiter in local if waiter.model == choice.model)
            return Next(spec, choice.leave_at)
        own = [waiter.spec for waiter in waiting_for_any if waiter.spec.path is not None]
        return Next(own[0], leave_at=-math.inf) if own else None

    def leave_at(self) -> float:
        """From when on the resident model takes no more requests."""
        wanted = self.next()
        return wanted.leave_at if wanted is not None else math.inf

    def is_due(self, load: Load) -> bool:
        """It is still the one whose turn it is."""
        wanted, stay = self.next(), self._occupancy.stay
        leaving = self._occupancy.closing if stay is None else self._occupancy.must_leave(stay)
        return (
            wanted is not None
            and is_same_load(wanted.spec, load.spec)
            and not leaving
            and not load.is_cancelled()
        )
