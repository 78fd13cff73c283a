"""Models that left the device and stay in host memory, the least recently used one going first.

Weights are not copied for it: they never change, so what is kept is what was read, or the image
that was made of that. With them are kept the keys and values of ended answers, as they lie on the
CPU, copied from another device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread

from hotswap.contracts.engines import ParkedModel
from hotswap.engine import device as devices
from hotswap.engine.fit import Need, missing_bytes, no_host_memory
from hotswap.engine.prepared import LoadKey, TorchPrepared
from hotswap.engine.rested import Rested
from hotswap.errors import InsufficientMemory

_SHARE = 0.5
"""Of the host memory that is available. Weights that are mapped are counted too, although the
system takes their pages back when it needs them."""


@dataclass(frozen=True, slots=True)
class Parked:
    prepared: TorchPrepared
    rested: Rested | None

    @property
    def bytes(self) -> int:
        return self.prepared.weights.bytes + self._rested_bytes

    @property
    def private_bytes(self) -> int:
        """What comes back when it goes: mapped files are the system's to take anyway."""
        weights = self.prepared.weights
        is_shared = weights.mapped and not weights.are_copied
        return self._rested_bytes + (0 if is_shared else weights.bytes)

    @property
    def _rested_bytes(self) -> int:
        return 0 if self.rested is None else self.rested.bytes

    def let_go(self) -> None:
        """From any thread; giving memory back may take a tenth of a second."""
        if self.rested is not None:
            self.rested.close()
        self.prepared.weights.close()


def let_go(models: Sequence[Parked]) -> None:
    """Their memory comes back in a moment, and nobody waits for it."""
    for parked in models:
        threading.Thread(target=parked.let_go, name="letting-go").start()


class Park:
    """Belongs to the event loop. Who takes a model out, or is handed one that goes, uses it or
    lets go of it."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        """
        Args:
            budget_bytes: of host memory; None: a share of what is available when it is first asked
                for.
        """
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[str, Parked] = OrderedDict()
        self._expected: str | None = None

    @property
    def budget_bytes(self) -> int:
        if self._budget_bytes is None:
            self._budget_bytes = int(devices.free_host_bytes() * _SHARE)
        return self._budget_bytes

    @property
    def bytes(self) -> int:
        return sum(parked.bytes for parked in self._models.values())

    @property
    def pinned_bytes(self) -> int:
        """Of models that stay."""
        return sum(parked.bytes for parked in self._models.values() if parked.prepared.spec.pin)

    def readings(self) -> Sequence[ParkedModel]:
        return tuple(
            ParkedModel(model=model, bytes=parked.bytes) for model, parked in self._models.items()
        )

    def find(self, model: str, key: LoadKey) -> Parked | None:
        """It stays where it is."""
        parked = self._models.get(model)
        return parked if parked is not None and parked.prepared.key == key else None

    def expect(self, model: str) -> None:
        """Its turn on the device comes: until then it stays, and its room is free."""
        self._expected = model

    async def as_parked(self, prepared: TorchPrepared) -> tuple[TorchPrepared, Rested | None]:
        """The model and what it left behind, if it is parked still: else that has been used since,
        or is gone. It stays where it is."""
        spec = prepared.spec
        parked = self.find(spec.id, prepared.key)
        if parked is None:
            return prepared, None
        rested = parked.rested
        if rested is not None and rested.engine != spec.engine:  # good for other settings only
            self._models[spec.id] = replace(parked, rested=None)
            await to_thread.run_sync(rested.close)
            rested = None
        return replace(prepared, weights=parked.prepared.weights), rested

    def take(self, model: str) -> Parked | None:
        return self._models.pop(model, None)

    def claim(self, model: str, key: LoadKey) -> None:
        """What was found there is the caller's from now on: its turn has come."""
        if self.find(model, key) is not None:
            del self._models[model]
        if self._expected == model:
            self._expected = None

    def room_beside(self, own_bytes: int) -> int | None:
        """For what a model with weights of ``own_bytes`` leaves behind; None: nothing is parked."""
        if self.budget_bytes <= 0:
            return None
        return self.budget_bytes - self.pinned_bytes - own_bytes

    def put(self, parked: Parked) -> list[Parked]:
        """Park a model, if it fits into the budget beside those that are pinned.

        Returns:
            Those that go: a former state of it, those it needs the room of, or the model itself.
        """
        spec, expected = parked.prepared.spec, self._expected
        former = self.take(spec.id)
        gone = [] if former is None else [former]
        on_its_way = self._models.pop(expected, None) if expected is not None else None
        if self.pinned_bytes + parked.bytes > self.budget_bytes:
            gone.append(parked)
        else:
            self._models[spec.id] = parked
            while self.bytes > self.budget_bytes:
                gone.append(self._models.pop(next(self._unpinned(but=spec.id))))
        if expected is not None and on_its_way is not None:
            self._models[expected] = on_its_way
        return gone

    def empty(self) -> list[Parked]:
        """All of them go."""
        gone = list(self._models.values())
        self._models.clear()
        return gone

    async def make_way(self, need: Need) -> None:
        """Parked models go for one that somebody wants.

        Raises:
            InsufficientMemory
        """
        missing = missing_bytes(need, devices.free_host_bytes())
        if missing:
            for parked in self._make_room(missing):
                await to_thread.run_sync(parked.let_go)
        free = devices.free_host_bytes()
        if missing_bytes(need, free):
            raise InsufficientMemory(no_host_memory(need, free))

    def _make_room(self, missing: int) -> list[Parked]:
        """Those that go so that ``missing`` bytes come back; nobody if all were not enough."""
        gone, names = 0, []
        for name in self._unpinned():
            if gone >= missing:
                break
            names.append(name)
            gone += self._models[name].private_bytes
        return [self._models.pop(name) for name in names] if gone >= missing else []

    def _unpinned(self, but: str | None = None) -> Iterator[str]:
        """In the order in which they go."""
        for name, parked in self._models.items():
            if not parked.prepared.spec.pin and name != but:
                yield name
