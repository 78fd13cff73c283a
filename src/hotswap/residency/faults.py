"""What goes wrong with loads and with the device: told to those who wait, and kept for those who
come later."""

from __future__ import annotations

import logging

from hotswap.contracts.models import ModelSpec
from hotswap.errors import DeviceLost, HotswapError, ModelLoadFailed, ShuttingDown
from hotswap.residency.desk import Desk, anyone, is_same_load
from hotswap.residency.history import History
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy

logger = logging.getLogger(__name__)


class Faults:
    """Of one device."""

    def __init__(self, desk: Desk, occupancy: Occupancy, history: History) -> None:
        self._desk = desk
        self._occupancy = occupancy
        self._history = history

    def download_failed(self, spec: ModelSpec, error: Exception) -> None:
        """As `load_failed`, of a load that has not been begun."""
        self.load_failed(Load(spec, self._history.meter(spec), self._desk.cause_of(spec)), error)

    def load_failed(self, load: Load, error: Exception) -> None:
        """Tell those who waited for the model, and have later ones wait for its cooldown."""
        model = load.spec.id
        known = self._told(error, f"{model!r} could not be loaded: internal error.")
        load.tell(known.message, failed=not isinstance(known, ShuttingDown))
        waits = self._occupancy.waits_for(model)
        self._desk.refuse(lambda one: waits(one) and is_same_load(one.spec, load.spec), known)
        staying = load.fallback.spec.id if load.fallback else None
        if load.is_special or self._occupancy.is_resident(model) or staying == model:
            return  # only these settings failed: with those that a request gets it may well load
        self._desk.note_failure(model, known, restoring=load.restoring)

    def lose_device(self, error: Exception) -> None:
        """Nothing can be loaded in this process any more."""
        known = self._told(error, "A model could not be taken off the device.")
        lost = known if isinstance(known, DeviceLost) else DeviceLost(known.message)
        occupancy = self._occupancy
        if occupancy.lost is None:
            logger.critical("the device is lost: %s", lost)
        wish, self._desk.unload_wish = self._desk.unload_wish, None
        if wish is not None:
            occupancy.mean_empty()
            wish.verdict.refuse(lost)
        occupancy.lose(lost)
        self._desk.refuse(anyone, lost)

    def _told(self, error: Exception, otherwise: str) -> HotswapError:
        """An error as clients may see it, without what it holds on to."""
        if not isinstance(error, HotswapError):
            logger.error("unexpected error", exc_info=error)
            error = ModelLoadFailed(otherwise)
        # The frames of a traceback hold tensors, that is, memory of the device.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._occupancy.note_error(error.message)
        return error
