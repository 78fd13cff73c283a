"""Whose turn it is, as things stand: operators, requests for a model, requests for any."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from hotswap.audit import BY_HAND, Cause
from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.errors import EngineFailed
from hotswap.policy import Meter
from hotswap.residency.desk import Desk, Target
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.stay import Residency
from hotswap.residency.succession import Next, Succession
from hotswap.scripted import Script, ScriptedEngine, ScriptedModel
from tests.swap.house import restless_clock, spec

ASKED = Cause("request", "a request waits for it")


@dataclass
class Scene:
    desk: Desk
    occupancy: Occupancy
    succession: Succession

    def ask(self, model: ModelSpec, *, is_any: bool = False) -> float:
        """Since when it waits."""
        return self.desk.join(Target(model, is_any), ASKED).since

    def put_on_the_device(self, model: ModelSpec, leases: int = 0) -> ScriptedEngine:
        engine = ScriptedEngine(1, model.id, Script(), lambda: None)
        stay = Residency(ScriptedModel(model), engine, 0.0, 0.0, None, leases=leases)
        self.occupancy.arrive(stay)
        return engine


def look(at: Callable[[Scene], None]) -> None:
    async def main() -> None:
        desk = Desk(SwapRules(patience_s=5.0))
        occupancy = Occupancy(desk)
        at(Scene(desk, occupancy, Succession(desk, occupancy)))

    trio.run(main, clock=restless_clock())


def load_of(model: ModelSpec) -> Load:
    return Load(model, Meter(model.id, download=False, started=0.0, expected_s=None), ASKED)


def test_with_nobody_there_nothing_changes() -> None:
    def scene(here: Scene) -> None:
        assert here.succession.next() is None
        assert here.succession.leave_at() == math.inf
        assert not here.succession.is_due(load_of(spec("A")))

    look(scene)


def test_an_operator_comes_before_requests_and_is_not_patient() -> None:
    def scene(here: Scene) -> None:
        here.put_on_the_device(spec("A"), leases=1)
        since = here.ask(spec("B"))
        assert here.succession.next() == Next(spec("B"), leave_at=since + 5.0)
        here.desk.wish_load(spec("C"), BY_HAND)
        assert here.succession.next() == Next(spec("C"), leave_at=-math.inf)

    look(scene)


def test_what_is_still_to_be_downloaded_is_nobodys_turn() -> None:
    def scene(here: Scene) -> None:
        remote = ModelSpec(id="remote", path=None)
        here.ask(remote)
        here.ask(remote, is_any=True)
        here.desk.wish_load(remote, BY_HAND)
        assert here.succession.next() is None

    look(scene)


def test_whom_any_model_suits_brings_his_own_only_if_nothing_is_there_or_coming() -> None:
    def scene(here: Scene) -> None:
        here.ask(spec("A"), is_any=True)
        assert here.succession.next() == Next(spec("A"), leave_at=-math.inf)
        load = load_of(spec("B"))
        here.occupancy.expect(load)
        assert here.succession.next() == Next(spec("B"), leave_at=-math.inf)
        load.cancel()
        assert here.succession.next() == Next(spec("A"), leave_at=-math.inf)
        here.occupancy.drop_load()
        here.put_on_the_device(spec("C"))
        assert here.succession.next() is None

    look(scene)


def test_a_load_is_due_for_as_long_as_just_it_is_wanted() -> None:
    def scene(here: Scene) -> None:
        load = load_of(spec("B"))
        here.ask(spec("B"))
        assert here.succession.is_due(load)
        assert not here.succession.is_due(load_of(spec("B", ttl_s=5.0))), "other settings"
        load.cancel()
        assert not here.succession.is_due(load)

    look(scene)


def test_no_load_is_due_while_the_model_before_it_has_to_leave_anyway() -> None:
    def scene(here: Scene) -> None:
        engine = here.put_on_the_device(spec("A"))
        here.ask(spec("B"))
        load = load_of(spec("B"))
        assert here.succession.is_due(load)
        engine.fail(EngineFailed("a step raised"))
        assert not here.succession.is_due(load)

    look(scene)


def test_no_load_is_due_once_the_server_stops() -> None:
    def scene(here: Scene) -> None:
        here.ask(spec("B"))
        here.occupancy.close()
        assert not here.succession.is_due(load_of(spec("B")))

    look(scene)
