"""What is on the device, what is on its way there, and whether anything may come at all."""

from __future__ import annotations

from collections.abc import Callable

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import DeviceLost, ShuttingDown
from hotswap.residency.desk import Desk, LoadWish, Target, Waiter
from hotswap.residency.load import Load, already_loaded
from hotswap.residency.stay import Residency


class Occupancy:
    """The state of one device. It is changed by the methods below alone; everybody may look.

    The owner of the device (`hotswap.swap`) says what comes and leaves. A lost device, a load that
    failed and an order to sleep are told by those who see them.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.phase = SwapPhase.EMPTY
        self.stay: Residency | None = None
        self.load: Load | None = None
        """What is being prepared or started."""
        self.asleep: ModelSpec | None = None
        """The model that was put to sleep, until one is on the device again."""
        self.sleeps = 0
        """How often it was put to sleep."""
        self.unloaded_by_hand = False
        """So it stays empty until a model is asked for by hand, where requests may not load any."""
        self.last_good: ModelSpec | None = None
        """The model that is on the device, or was until something went wrong, with its settings;
        None: the device is meant to be empty. From any thread."""
        self.last_error: str | None = None
        self.closing = False
        self.lost: DeviceLost | None = None
        """Why nothing can be loaded in this process any more."""

    # -- what changes it

    def enter(self, phase: SwapPhase) -> None:
        if self.lost is None or phase is SwapPhase.CLOSED:  # there is no way back
            self.phase = phase
        self._desk.ring()

    def expect(self, load: Load) -> None:
        """Somebody prepares it, or starts it."""
        self.load = load
        self._desk.ring()

    def drop_load(self) -> None:
        self.load = None
        self._desk.ring()

    def arrive(self, stay: Residency) -> None:
        """A model can answer: the one that was expected."""
        self.stay = stay
        self.last_good = stay.spec
        self.asleep = None
        self.load = None
        self.enter(SwapPhase.READY)

    def leave(self) -> None:
        """The model is off the device."""
        self.stay = None
        self._desk.ring()

    def mean_empty(self) -> None:
        """No model has to come back."""
        self.last_good = None

    def keep_empty(self, *, kept: bool) -> None:
        """Whether it stays empty until a model is asked for by hand."""
        self.unloaded_by_hand = kept

    def call_off(self) -> None:
        """It is put to sleep: what is on its way will not come."""
        if self.load is not None:
            self.load.cancel()
        self.sleeps += 1

    def fall_asleep(self, spec: ModelSpec) -> None:
        """What is to be woken up."""
        self.asleep = spec

    def note_error(self, message: str) -> None:
        self.last_error = message
        self._desk.ring()

    def lose(self, error: DeviceLost) -> None:
        self.load = None
        self.enter(SwapPhase.FAILED)
        self.lost = error

    def close(self) -> None:
        """Nothing comes any more."""
        self.closing = True
        self._desk.ring()

    # -- what is there

    @property
    def resident(self) -> ModelSpec | None:
        return self.stay.spec if self.stay else None

    @property
    def coming(self) -> ModelSpec | None:
        """The model that is being brought in, unless that has been called off."""
        load = self.load
        return None if load is None or load.is_cancelled() else load.spec

    def is_resident(self, model: str) -> bool:
        return self.stay is not None and self.stay.spec.id == model

    def check_open(self) -> None:
        """Raises: ShuttingDown, DeviceLost: nothing is served or loaded any more."""
        if self.closing:
            raise ShuttingDown("The server is shutting down.")
        if self.lost is not None:
            raise DeviceLost(self.lost.message)

    # -- for a request

    def has_come(self, target: Target) -> bool:
        """Such a request would be let in at once."""
        stay = self.stay
        return stay is not None and self.is_open(stay) and target.takes(stay.spec)

    def is_near(self, target: Target) -> bool:
        """Whether the named model is on the device; or, where any will do, one that is also is
        while it is on its way."""
        if not target.is_any:
            return self.is_resident(target.spec.id)
        return any(spec is not None and target.takes(spec) for spec in (self.resident, self.coming))

    def waiting_before(self, target: Target) -> int:
        """Requests in front of a new one: in the engine if it would be let in at once."""
        if self.stay is not None and self.has_come(target):
            return self.stay.engine.stats().waiting
        return len(self._desk.queue)

    def waits_for(self, model: str) -> Callable[[Waiter | LoadWish], bool]:
        """Who waits for a model that will not come: also those whom any would suit, where no
        other one is there, on its way, or comes back."""
        coming = self.load
        others = coming is not None and (coming.spec.id != model or coming.fallback is not None)
        alone = self.stay is None and not others
        return lambda one: one.spec.id == model and (alone or one.model is not None)

    # -- for the resident model

    def must_leave(self, stay: Residency) -> bool:
        """Whoever comes after it."""
        over = self.closing or self.lost is not None
        return over or self._desk.unload_wish is not None or stay.engine.failure is not None

    def is_open(self, stay: Residency) -> bool:
        """It takes more requests."""
        return self.phase is SwapPhase.READY and not self.must_leave(stay)

    def admit(self) -> None:
        """Let in the requests, and grant the loads, that ask for what is on the device."""
        stay = self.stay
        if stay is not None and self.is_open(stay):
            self._desk.admit(stay)
            self._desk.grant_loads(stay.spec, already_loaded(stay.spec))
