"""What loads so far tell of the next one."""

from __future__ import annotations

import trio

from hotswap.contracts.models import ModelSpec
from hotswap.residency.history import History
from hotswap.scripted import ScriptedRegistry
from tests.swap.house import restless_clock, spec


def come(history: History, model: ModelSpec, load_time_s: float, *, was_parked: bool) -> None:
    start_s = load_time_s if was_parked else load_time_s / 2
    history.note(
        model, usual_s=load_time_s, start_s=start_s, was_parked=was_parked, room_tokens=None
    )


def test_a_load_is_expected_to_take_as_long_as_the_last_one_from_where_the_model_is() -> None:
    async def main() -> None:
        registry = ScriptedRegistry()
        history = History(registry)
        assert history.expected_load_s("A") is None
        come(history, spec("A"), 9.0, was_parked=False)
        come(history, spec("A"), 0.5, was_parked=True)
        assert history.expected_load_s("A") == 9.0, "it is not parked now"
        prepared = await registry.prepare(spec("A"), lambda _stage, _done: None)
        async with registry.start(prepared, lambda _stage, _done: None, lambda: None):
            assert not history.is_parked("A")
        assert history.is_parked("A")
        assert history.expected_load_s("A") == history.meter(spec("A")).expected_s == 0.5

    trio.run(main, clock=restless_clock())


def test_from_the_park_a_model_is_expected_to_take_what_starting_it_took() -> None:
    async def main() -> None:
        registry = ScriptedRegistry()
        history = History(registry)
        come(history, spec("A"), 9.0, was_parked=False)
        prepared = await registry.prepare(spec("A"), lambda _stage, _done: None)
        async with registry.start(prepared, lambda _stage, _done: None, lambda: None):
            pass
        assert history.expected_load_s("A") == 4.5

    trio.run(main, clock=restless_clock())


def test_the_last_model_is_known_and_the_last_one_for_each_task() -> None:
    history = History(ScriptedRegistry())
    assert (history.last_resident, history.last_for("embed")) == (None, None)
    come(history, spec("vectors", task="embed"), 1.0, was_parked=False)
    come(history, spec("A"), 1.0, was_parked=False)
    assert history.last_resident == "A"
    assert (history.last_for("embed"), history.last_for("generate")) == ("vectors", "A")


def test_the_room_is_that_of_the_last_start_that_told_of_it() -> None:
    history = History(ScriptedRegistry())
    for one, room_tokens in ((spec("A"), 4096), (spec("A", ttl_s=5.0), None)):
        history.note(one, usual_s=1.0, start_s=1.0, was_parked=False, room_tokens=room_tokens)
    assert history.room() == {"A": (spec("A"), 4096)}
