"""Models that left the device and stay in host memory, the least recently used one going first.

Nothing is copied for it: weights never change, so what is kept is what was read, and on the CPU the
keys and values of ended answers with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from hotswap.contracts import ParkedModel
from hotswap.engine.stage import LoadKey, TorchPrepared


class Park:
    """Runs on the event loop."""

    def __init__(self, budget: Callable[[], int], let_go: Callable[[TorchPrepared], None]) -> None:
        """
        Args:
            budget: bytes that may be parked.
            let_go: called with each model that is not parked any more, unless it was taken.
        """
        self._budget = budget
        self._let_go = let_go
        self._parked: OrderedDict[LoadKey, TorchPrepared] = OrderedDict()

    @property
    def bytes(self) -> int:
        return sum(_bytes(model) for model in self._parked.values())

    def models(self) -> Sequence[ParkedModel]:
        return tuple(
            ParkedModel(model=model.spec.id, bytes=_bytes(model)) for model in self._parked.values()
        )

    def find(self, key: LoadKey) -> TorchPrepared | None:
        return self._parked.get(key)

    def take(self, key: LoadKey) -> TorchPrepared | None:
        """No longer parked: it is about to be used."""
        return self._parked.pop(key, None)

    def put(self, model: TorchPrepared) -> None:
        """Park a model, if it fits beside those that are pinned; a former state of it goes."""
        for key, other in list(self._parked.items()):
            if other.spec.id == model.spec.id:
                self._remove(key)
        self._parked[model.key] = model
        self._make_room(self._budget())

    def forget(self, model: str) -> None:
        for key, other in list(self._parked.items()):
            if other.spec.id == model:
                self._remove(key)

    def give_up_oldest(self) -> bool:
        """For the sake of something more important. False: there is none, or all are pinned."""
        oldest = next((key for key, model in self._parked.items() if not model.spec.pin), None)
        if oldest is None:
            return False
        self._remove(oldest)
        return True

    def _make_room(self, budget: int) -> None:
        while self.bytes > budget and self.give_up_oldest():
            pass
        if self.bytes > budget and self._parked:  # too many are pinned
            self._remove(next(reversed(self._parked)))

    def _remove(self, key: LoadKey) -> None:
        self._let_go(self._parked.pop(key))


def _bytes(model: TorchPrepared) -> int:
    return model.weights.bytes + (0 if model.rested is None else model.rested.bytes)
