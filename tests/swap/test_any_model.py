"""Requests that take any model: `current`, no name, and names of background models."""

from __future__ import annotations

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.errors import (
    ContextLengthExceeded,
    DownloadFailed,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    ModelUnloaded,
    Overloaded,
    ShuttingDown,
)
from hotswap.scripted import Script
from tests.swap.house import House, play, spec, text

TASKS = ModelSpec(id="tasks", path=None, aliases=("titles",), background=True)
HELPER = spec("helper", background=True)
MODELS = (spec("A"), spec("B"), spec("C"), TASKS, HELPER)
ANY = [None, "", "default", "current", "tasks", "titles", "helper"]


@pytest.mark.parametrize("name", ANY)
def test_the_resident_model_answers_under_its_own_name(name: str | None) -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        answer = await house.ask(name)
        assert (answer.model, answer.text) == ("B", text("B"))

    assert play(scenario, models=MODELS, startup="A").registry.started == ["B"]


@pytest.mark.parametrize("name", ANY)
def test_an_empty_device_gets_the_startup_model(name: str | None) -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask(name)).model == "B"

    assert play(scenario, models=MODELS, startup="B").registry.started == ["B"]


def test_without_a_startup_model_the_last_one_comes_back() -> None:
    async def scenario(house: House) -> None:
        assert isinstance((await house.ask("tasks")).error, ModelNotFound)
        await house.ask("B", keep_alive_s=0.0)
        await house.until(lambda: house.phase == "empty")
        assert (await house.ask("tasks")).model == "B"

    assert play(scenario, models=MODELS).registry.started == ["B", "B"]


@pytest.mark.parametrize("asked_after_s", [0.0, 0.5, 0.99, 1.0, 1.2, 1.4, 1.49, 1.5, 1.6])
@pytest.mark.parametrize("name", ["current", "tasks"])
def test_asked_at_any_moment_of_a_swap_it_brings_nothing_back(
    asked_after_s: float, name: str
) -> None:
    """Rendering takes a while, so the model may be another one than it was rendered for."""

    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(asked_after_s)
            answer = await house.ask(name)
        assert answer.finished
        assert answer.text == text(answer.model)
        assert house.resident == "B"

    house = play(
        scenario,
        script=Script(render_s=0.3, start_s=0.1, stop_s=0.2),
        models=MODELS,
        startup="A",
    )
    assert house.registry.started == ["A", "B"]


def test_a_prompt_is_rendered_again_for_the_model_that_lets_it_in() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        script = house.registry.script
        script.render_errors["B"] = ContextLengthExceeded("too long for B")
        script.render_s = 0.5  # it is rendered for A, which leaves meanwhile
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.load, "B", {}, "request")
            await trio.sleep(0.8)
            assert isinstance((await house.ask("current")).error, ContextLengthExceeded)
        assert house.controller.snapshot().leases == 0

    assert play(scenario).registry.started == ["A", "B"]


def test_the_next_model_suits_also_when_another_one_was_to_come_back() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A", keep_alive_s=0.0)
        house.registry.script.stop_s = 5.0
        await house.until(lambda: house.phase == "draining")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")  # the older one, and it would bring A
            await trio.sleep(0.1)
            nursery.start_soon(house.ask, "B")
        assert [answer.model for answer in house.answers] == ["A", "B", "B"]

    assert play(scenario, startup="A").registry.started == ["A", "B"]


def test_a_load_that_began_for_them_is_not_given_up_for_a_later_name() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")
            await trio.sleep(0.5)
            nursery.start_soon(house.ask, "B")
        assert [answer.model for answer in house.answers] == ["A", "B"]

    assert play(scenario, startup="A").registry.prepared == ["A", "B"]


def test_a_load_goes_on_for_them_when_whoever_named_it_leaves() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            named = await nursery.start(leaving_after, house, 0.5)
            assert (await house.ask("current")).model == "B"
            assert named.cancel_called

    async def leaving_after(
        house: House, seconds: float, task_status: trio.TaskStatus[trio.CancelScope]
    ) -> None:
        with trio.move_on_after(seconds) as scope:
            task_status.started(scope)
            await house.ask("B")

    assert play(scenario, startup="A").registry.prepared == ["B"]


@pytest.mark.parametrize("phase", ["draining", "loading"])
def test_when_the_next_model_cannot_start_the_old_one_answers(phase: str) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_errors["B"] = InsufficientMemory("too big")
        house.registry.script.stop_s = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == phase)
            assert (await house.ask("tasks")).model == "A"

    assert play(scenario, models=MODELS, startup="B").registry.started == ["A", "A"]


def test_when_another_model_fails_on_an_empty_device_they_get_their_own() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["B"] = ModelLoadFailed("broken")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(0.5)
            assert (await house.ask("current")).model == "A"
        assert house.answers[0].error is not None

    assert play(scenario, startup="A").registry.started == ["A"]


def test_when_their_own_model_fails_they_are_told_and_it_cools_down() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("broken")
        assert isinstance((await house.ask("current")).error, ModelLoadFailed)
        begun = trio.current_time()
        assert isinstance((await house.ask("current")).error, ModelLoadFailed)
        assert trio.current_time() - begun < 0.1
        await house.ask("B")
        assert (await house.ask("current")).model == "B", "it is not A that must cool down"

    assert play(scenario, startup="A").registry.started == ["B"]


def test_their_own_model_is_not_tried_before_it_has_cooled_down() -> None:
    async def scenario(house: House) -> None:
        script = house.registry.script
        script.prepare_errors["A"] = script.prepare_errors["B"] = ModelLoadFailed("broken")
        assert (await house.ask("A")).error is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(0.5)
            script.prepare_errors.pop("A")
            assert isinstance((await house.ask("current")).error, ModelLoadFailed)

    assert play(scenario, startup="A").registry.prepared == []


def test_what_is_on_its_way_suits_them_while_their_own_model_cools_down() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("broken")
        assert (await house.ask("A")).error is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(0.5)
            assert (await house.ask("current")).model == "B"

    play(scenario, startup="A")


def test_what_is_on_its_way_suits_them_also_when_the_startup_model_is_gone() -> None:
    async def scenario(house: House) -> None:
        del house.catalog._specs["A"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(0.5)
            assert (await house.ask("current")).model == "B"
        await house.service.unload()
        assert isinstance((await house.ask("current")).error, ModelNotFound)

    play(scenario, startup="A")


def test_a_called_off_load_is_not_begun_again_by_them() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")
            await trio.sleep(0.5)
            await house.service.unload("A")
        assert isinstance(house.answers[0].error, ModelUnloaded)
        await house.until(lambda: house.phase == "empty")

    assert play(scenario, startup="A").registry.prepared == []


def test_a_startup_model_that_is_to_be_downloaded_comes_for_them() -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask("tasks")).model == "remote"

    models = (ModelSpec(id="remote", path=None), TASKS)
    house = play(scenario, models=models, startup="remote")
    assert house.catalog.fetched == ["remote"]


def test_nothing_is_downloaded_while_another_model_is_on_its_way() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_s = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await trio.sleep(0.5)
            assert (await house.ask("current")).model == "A"

    models = (spec("A"), ModelSpec(id="remote", path=None))
    assert play(scenario, models=models, startup="remote").catalog.fetched == []


def test_a_download_begins_when_what_they_waited_for_fails() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("broken")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await trio.sleep(0.5)
            assert (await house.ask("current")).model == "remote"

    play(scenario, models=(spec("A"), ModelSpec(id="remote", path=None)), startup="remote")


def test_a_failed_download_is_told() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_errors["remote"] = DownloadFailed("the Hub is away")
        assert isinstance((await house.ask("current")).error, DownloadFailed)

    play(scenario, models=(ModelSpec(id="remote", path=None),), startup="remote")


def test_a_rebuilt_engine_answers_them() -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        house.registry.script.stop_s = 1.0
        house.registry.engines[-1].fail(EngineFailed("a step raised"))
        assert (await house.ask("current")).model == "B"

    assert play(scenario, startup="A").registry.started == ["B", "B"]


def test_an_engine_is_rebuilt_also_for_those_who_would_have_brought_another_model() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.render_s = 3.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")  # it would bring A, which is there now
            await house.service.load("B", {}, "request")
            house.registry.script.stop_s = 5.0
            await trio.sleep(1)
            house.registry.engines[-1].fail(EngineFailed("a step raised"))
        assert house.answers[-1].model == "B"

    assert play(scenario).registry.started == ["A", "B", "B"]


def test_who_gave_up_waiting_for_a_model_to_leave_does_not_bring_it_back() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 300)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.service.unload)
            await trio.sleep(1)
            assert isinstance((await house.ask("current")).error, ModelLoading)
        await trio.sleep(10)
        assert house.phase == "empty"

    rules = SwapRules(on_demand=True, swap_timeout_s=10.0)
    assert play(scenario, rules, startup="A").registry.started == ["A"]


def test_they_wait_no_longer_than_others_and_their_load_goes_on() -> None:
    async def scenario(house: House) -> None:
        assert isinstance((await house.ask("current")).error, ModelLoading)
        await house.until(lambda: house.resident == "A")

    rules = SwapRules(on_demand=True, swap_timeout_s=10.0)
    play(scenario, rules, Script(prepare_s=30.0), startup="A")


def test_a_model_that_was_downloaded_meanwhile_goes_on_loading_after_the_wait() -> None:
    async def scenario(house: House) -> None:
        assert isinstance((await house.ask("remote")).error, ModelLoading)
        await house.until(lambda: house.resident == "remote")

    rules = SwapRules(on_demand=True, swap_timeout_s=10.0)
    models = (ModelSpec(id="remote", path=None),)
    assert play(scenario, rules, Script(prepare_s=30.0), models).registry.started == ["remote"]


def test_they_count_in_the_queue_and_are_shown_as_current() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")
            nursery.start_soon(house.ask, "tasks")
            await trio.sleep(0.5)
            assert house.controller.snapshot().waiting == {"current": 2}
            assert isinstance((await house.ask("current")).error, Overloaded)

    play(scenario, SwapRules(on_demand=True, max_queue=2), models=MODELS, startup="A")


def test_a_queued_one_is_refused_at_shutdown() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "current")
            await trio.sleep(0.5)
            house.controller.stop_admitting()
        assert isinstance(house.answers[0].error, ShuttingDown)

    play(scenario, startup="A")


def test_without_on_demand_loading_the_model_that_answers_is_the_one_that_was_loaded() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.load, "B", {}, "request")
            await house.until(lambda: house.phase == "draining")
            assert (await house.ask("tasks")).model == "B"
        listed = [listing.id for listing in await house.service.models()]
        assert listed == ["A", "B", "tasks", "helper"]

    play(scenario, SwapRules(idle_timeout_s=60.0), Script(stop_s=1.0), MODELS, startup="A")


def test_without_on_demand_loading_none_comes_back_after_an_unload() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        house.registry.script.stop_s = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.unload)
            await house.until(lambda: house.phase == "draining")
            for name in ("A", "current", "tasks"):
                nursery.start_soon(house.ask, name)
        assert all(isinstance(answer.error, ModelUnloaded) for answer in house.answers)
        assert house.phase == "empty"

    assert play(scenario, SwapRules(), models=MODELS, startup="A").registry.started == ["A"]


def test_a_mere_name_is_listed_and_nothing_to_load() -> None:
    async def scenario(house: House) -> None:
        listed = {listing.id: listing.status for listing in await house.service.models()}
        assert listed["tasks"] == "unloaded"
        assert (await house.service.model("titles")).id == "tasks"
        for attempt in (
            house.service.load("tasks", {}, "request"),
            house.service.forecast("tasks", {}, "request"),
            house.service.request_load("tasks"),
        ):
            with pytest.raises(InvalidRequest, match="only a name") as refused:
                await attempt
            assert refused.value.param == "model"

    assert play(scenario, models=MODELS).registry.prepared == []


def test_a_background_model_with_files_can_be_loaded_by_hand() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("helper", {}, "request")
        assert (await house.ask("helper")).model == "helper"
        await house.ask("A")
        assert (await house.ask("helper")).model == "A"

    assert play(scenario, models=MODELS).registry.started == ["helper", "A"]
