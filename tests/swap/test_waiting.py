"""Who is seen to wait, and for which model, in virtual time."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import EmbeddingRequest, TextPrompt
from hotswap.errors import CheckpointRefused, ModelLoading, ModelUnloaded
from hotswap.residency.desk import Desk, Target
from hotswap.scripted import Script
from tests.swap.house import House, play, spec


def slow_to_read() -> Script:
    """As where the engines are still being imported."""
    return Script(render_s=3.0)


def waiting(house: House) -> dict[str, int]:
    return dict(house.controller.snapshot().waiting)


@pytest.mark.parametrize(("name", "shown"), [("A", "A"), ("B", "B"), (None, "current")])
def test_a_request_is_seen_from_the_moment_it_is_accepted(name: str | None, shown: str) -> None:
    async def scenario(house: House) -> None:
        await trio.sleep(1.0)  # whatever the house itself has to tell has been told
        asked = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, name)
            await house.until(lambda: waiting(house) == {shown: 1})
            assert (house.phase, trio.current_time() - asked < 0.1) == ("empty", True)
            await trio.sleep(2.5)
            assert (house.phase, waiting(house)) == ("empty", {shown: 1})
            await house.until(lambda: house.phase == "loading")
            assert waiting(house) == {shown: 1}, "once, though it queues now"
        assert house.answers[0].finished

    play(scenario, script=slow_to_read(), startup="A")


def test_texts_to_be_embedded_are_seen_too() -> None:
    async def scenario(house: House) -> None:
        request = EmbeddingRequest(prompts=(TextPrompt("a"),), model="E")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.embed, request)
            await trio.sleep(1.0)
            assert (house.phase, waiting(house)) == ("empty", {"E": 1})

    play(scenario, script=slow_to_read(), models=(spec("E", task="embed"),))


def test_who_is_read_beside_its_resident_model_waits_for_no_model() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            for name in ("A", None, "B"):
                nursery.start_soon(house.ask, name)
            await trio.sleep(1.0)
            assert (house.resident, waiting(house)) == ("A", {"B": 1})

    play(scenario, script=slow_to_read())


def test_who_leaves_or_is_refused_while_it_is_read_waits_no_more() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.render_errors["B"] = CheckpointRefused("no tokenizer")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            nursery.start_soon(house.ask, "B")
            await trio.sleep(1.0)
            assert waiting(house) == {"A": 1, "B": 1}
            version = house.controller.snapshot().version
            nursery.cancel_scope.cancel()
        assert waiting(house) == {}
        assert house.controller.snapshot().version > version
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: waiting(house) == {"B": 1})
            await house.until(lambda: waiting(house) == {})
        assert isinstance(house.answers[-1].error, CheckpointRefused)

    assert play(scenario, script=slow_to_read()).registry.prepared == []


@pytest.mark.parametrize("resident", [False, True])
def test_a_sleep_calls_off_requests_that_are_being_read_and_none_that_come_later(
    resident: bool,
) -> None:
    async def scenario(house: House) -> None:
        if resident:
            await house.ask("A")
        async with trio.open_nursery() as nursery:
            for name in ("A", "B", None):
                nursery.start_soon(house.ask, name)
            await trio.sleep(1.0)
            await house.service.sleep(park=True)
        for answer in house.answers[-3:]:
            assert isinstance(answer.error, ModelUnloaded)
        assert house.phase == "empty"
        assert (await house.ask("A")).finished

    play(scenario, script=slow_to_read(), startup="A")


def test_a_request_that_has_been_read_is_told_from_others_like_it() -> None:
    desk, first, second = Desk(SwapRules()), Target(spec("A")), Target(spec("A"))
    with desk.seen(first):
        with desk.seen(second):
            assert [id(one) for one in desk.arriving] == [id(first), id(second)]
        assert desk.arriving == [first]
        assert desk.arriving != [second], "nothing but identity is compared"
    assert desk.arriving == []


def test_a_load_by_hand_is_seen_to_wait_until_its_turn_comes() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for model in ("A", "B", "B", "C"):
                nursery.start_soon(partial(house.service.load, model, {}, "request"))
                await trio.sleep(0.1)
            nursery.start_soon(house.ask, "C")
            await trio.sleep(0.1)
            snapshot = house.controller.snapshot()
            assert snapshot.progress is not None
            assert snapshot.progress.model == "A"
            assert snapshot.waiting == {"B": 2, "C": 2}
            await house.until(lambda: house.resident == "B")
            assert waiting(house) == {"C": 1}, "the request: the load's turn has come"
        assert waiting(house) == {}

    play(scenario)


def test_a_load_by_hand_that_is_called_off_waits_no_more() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:

            async def load(model: str) -> None:
                with pytest.raises(ModelUnloaded):
                    await house.service.load(model, {}, "request")

            nursery.start_soon(load, "A")
            await trio.sleep(0.1)
            nursery.start_soon(load, "B")
            await trio.sleep(0.1)
            assert waiting(house) == {"B": 1}
            await house.service.sleep(park=True)
            assert waiting(house) == {}

    play(scenario)


def test_who_was_sent_away_waits_no_more_though_the_load_goes_on() -> None:
    async def scenario(house: House) -> None:
        assert isinstance((await house.ask("remote")).error, ModelLoading)
        assert house.controller.overview.progress_of("remote") is not None
        assert waiting(house) == {}
        await house.until(lambda: house.resident == "remote")

    rules = SwapRules(on_demand=True, swap_timeout_s=0.5)
    play(scenario, rules, models=(ModelSpec(id="remote", path=None),))


def test_a_load_that_is_only_asked_for_is_awaited_by_nobody_and_wished_for_once() -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            await house.service.request_load("remote")
            await trio.sleep(0.1)
            assert (len(house.controller.desk.load_wishes), waiting(house)) == (1, {})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.load, "remote", {}, "request")
            await house.until(lambda: waiting(house) == {"remote": 1})
            version = house.controller.snapshot().version
            nursery.cancel_scope.cancel()
        assert waiting(house) == {}
        assert house.controller.snapshot().version > version, "who leaves is told of"
        await house.until(lambda: house.resident == "remote")
        assert house.controller.desk.load_wishes == []

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def test_a_load_that_is_asked_for_again_with_other_settings_is_another_one() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.load, "A", {}, "request")
            await trio.sleep(0.1)
            nursery.start_soon(house.service.load, "B", {"max_model_len": 64}, "request")
            await trio.sleep(0.1)
            await house.service.request_load("B")
            assert len(house.controller.desk.load_wishes) == 3

    play(scenario)
