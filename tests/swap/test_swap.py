"""The swap controller's promises, in virtual time."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.errors import (
    CheckpointRefused,
    ContextLengthExceeded,
    DeviceLost,
    DownloadFailed,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    ModelUnloaded,
    NotLoaded,
    Overloaded,
    ShuttingDown,
    SwapInProgress,
)
from hotswap.scripted import Script, ScriptedCatalog, ScriptedModel, ScriptedRegistry
from hotswap.service import SwapService
from hotswap.swap import SwapController
from tests.swap.house import ON_DEMAND, House, play, restless_clock, spec, text


def test_the_first_request_brings_its_model() -> None:
    async def scenario(house: House) -> None:
        answer = await house.ask("A")
        assert answer.text == text("A")
        assert answer.finished
        assert house.resident == "A"

    play(scenario)


def test_a_request_that_names_another_model_swaps_it_in() -> None:
    async def scenario(house: House) -> None:
        for model in "ABA":
            assert (await house.ask(model)).text == text(model)

    house = play(scenario)
    assert house.registry.started == ["A", "B", "A"]
    assert house.controller.snapshot().swaps == 2


def test_a_running_answer_is_not_cut_by_a_swap() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "B", 3)
        _, long, other = house.answers
        assert long.text == text("A", 50)
        assert other.text == text("B")
        assert long.ended <= other.began

    play(scenario)


def test_the_old_model_serves_while_the_next_one_is_prepared() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_s = 30.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.controller.snapshot().progress is not None)
            begun = trio.current_time()
            meanwhile = await house.ask("A")
            assert meanwhile.finished
            assert trio.current_time() - begun < 1.0
            assert house.registry.prepared == ["A"]
        assert house.answers[1].text == text("B")

    play(scenario)


def test_ten_requests_for_a_model_share_one_load() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(house.ask, "A")
        assert [answer.text for answer in house.answers] == [text("A")] * 10
        began = [answer.began for answer in house.answers]
        assert max(began) - min(began) < 0.001, "admitted as one batch"

    assert play(scenario).registry.prepared == ["A"]


def test_a_busy_model_takes_requests_until_patience_runs_out() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 100)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "B")
            await trio.sleep(4.9)
            early = await house.ask("A")
            await trio.sleep(0.2)
            nursery.start_soon(house.ask, "A", 3)
        _, long, other, _, late = house.answers
        assert early.began < long.ended
        assert late.began > other.ended, "came after patience had run out"

    play(scenario, SwapRules(on_demand=True, patience_s=5.0))


def test_an_idle_model_is_left_without_patience() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        begun = trio.current_time()
        answer = await house.ask("B")
        assert answer.began - begun < 1.2

    play(scenario, SwapRules(on_demand=True, patience_s=60.0))


def test_a_client_that_leaves_the_queue_starts_no_load() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        with trio.move_on_after(0.5):
            await house.ask("B")
        await house.until(lambda: house.controller.snapshot().progress is None)
        assert house.resident == "A"
        assert not house.controller.snapshot().waiting

    house = play(scenario)
    assert house.registry.started == ["A"]
    assert house.registry.prepared == ["A"]


def test_a_load_goes_on_for_those_who_still_wait() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            with trio.move_on_after(0.5):
                await house.ask("A")
        assert sum(answer.finished for answer in house.answers) == 1

    assert play(scenario).registry.prepared == ["A"]


def test_what_was_prepared_for_a_client_that_left_is_let_go_of() -> None:
    """Its weights may be on the device already, beside those of the model that answers."""
    made: dict[str, weakref.ref[ScriptedModel]] = {}

    class Noting(ScriptedRegistry):
        async def prepare(self, spec: ModelSpec, report: Report) -> ScriptedModel:
            prepared = await super().prepare(spec, report)
            made[spec.id] = weakref.ref(prepared)
            return prepared

    def is_prepared() -> bool:
        return "left alone" in made and made["left alone"]() is not None

    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 500)
            await house.until(lambda: house.resident == "A")
            with trio.CancelScope() as client:
                nursery.start_soon(_cancel_once, is_prepared, client)
                await house.ask("left alone")
            assert client.cancelled_caught
            await trio.sleep(1)
            gc.collect()
            assert not is_prepared()

    play(scenario, models=(spec("A"), spec("left alone")), registry=Noting())


async def _cancel_once(condition: Callable[[], bool], scope: trio.CancelScope) -> None:
    with trio.fail_after(3600):
        while not condition():
            await trio.sleep(0.01)
    scope.cancel()


def test_a_model_that_cannot_be_prepared_leaves_the_resident_one_alone() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        answer = await house.ask("B")
        assert isinstance(answer.error, CheckpointRefused)
        assert house.resident == "A"
        begun = trio.current_time()
        again = await house.ask("B")
        assert isinstance(again.error, ModelLoadFailed)
        assert not isinstance(again.error, CheckpointRefused)
        assert answer.error.message == "a shard is truncated"
        told = "'B' failed to load and is not tried again before 10 s have passed, "
        told += "unless it is loaded by hand: "
        assert again.error.message == told + answer.error.message
        assert again.error.retry_after_s == pytest.approx(10.0)
        assert trio.current_time() - begun < 0.001, "refused at once while it cools down"
        assert (await house.ask("A")).finished

    refusal = CheckpointRefused("a shard is truncated")
    house = play(scenario, script=Script(prepare_errors={"B": refusal}))
    assert house.registry.started == ["A"]


def test_the_cooldown_doubles_and_success_ends_it() -> None:
    async def scenario(house: House) -> None:
        pauses = []
        for _ in range(7):
            await house.ask("A")
            pauses.append(house.controller.snapshot().failures["A"].retry_at - trio.current_time())
            await trio.sleep(pauses[-1])
        assert pauses == pytest.approx([10, 20, 40, 80, 160, 300, 300])
        house.registry.script.prepare_errors.clear()
        assert (await house.ask("A")).finished
        assert not house.controller.snapshot().failures

    play(scenario, script=Script(prepare_errors={"A": ModelLoadFailed("no")}))


@pytest.mark.parametrize("error", [ModelLoadFailed("bad"), InsufficientMemory("too big")])
def test_a_model_that_fails_to_start_brings_the_old_one_back(error: ModelLoadFailed) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.resident is None)
            nursery.start_soon(house.ask, "A")
        _, refused, served = house.answers
        assert type(refused.error) is type(error)
        assert served.finished
        assert house.resident == "A"

    house = play(scenario, script=Script(start_errors={"B": error}))
    assert house.registry.started == ["A", "A"]
    assert house.registry.prepared == ["A", "B"], "A came back from its host copy"


def test_when_the_old_one_does_not_come_back_either_it_is_tried_again_on_demand() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_errors = {"A": ModelLoadFailed("a"), "B": ModelLoadFailed("b")}
        await house.ask("B")
        await house.until(lambda: house.phase == "empty")
        refused = await house.ask("A")
        assert refused.error is not None
        assert refused.error.retry_after_s == pytest.approx(1.0)
        house.registry.script.start_errors.clear()
        await trio.sleep(1.0)
        assert (await house.ask("A")).finished

    play(scenario)


def test_when_neither_comes_the_server_is_not_ready_and_a_load_by_hand_ends_that() -> None:
    """Where no request may load anything."""

    async def scenario(house: House) -> None:
        script = house.registry.script
        await house.service.load("A", {}, "request")
        script.start_errors = {"A": ModelLoadFailed("a"), "B": ModelLoadFailed("b")}
        with pytest.raises(ModelLoadFailed):
            await house.service.load("B", {}, "request")
        await house.until(lambda: house.phase == "empty")
        snapshot = house.controller.snapshot()
        assert not snapshot.serviceable
        assert snapshot.unserviceable_reason == "the model failed to load"
        script.start_errors.clear()
        await house.service.load("B", {}, "request")
        assert house.controller.snapshot().serviceable

    play(scenario, SwapRules())


def test_a_load_goes_on_when_the_operator_who_asked_for_it_leaves() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        with trio.move_on_after(0.1) as leaving:
            await house.service.load("B", {}, "request")
        assert leaving.cancelled_caught
        await house.until(lambda: (house.phase, house.resident) == ("ready", "B"))

    play(scenario)


def test_an_unexpected_error_of_the_engine_floor_is_a_failed_load() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_errors["B"] = ValueError("a bug")  # type: ignore[assignment]
        answer = await house.ask("B")
        assert isinstance(answer.error, ModelLoadFailed)
        assert "a bug" not in str(answer.error)
        assert (await house.ask("A")).finished

    play(scenario)


def test_a_request_that_cannot_succeed_never_costs_a_swap() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        answer = await house.ask("B")
        assert isinstance(answer.error, ContextLengthExceeded)

    house = play(scenario, script=Script(render_errors={"B": ContextLengthExceeded("too long")}))
    assert house.registry.prepared == ["A"]


def test_the_queue_is_bounded() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(house.ask, "A")
        errors = [answer.error for answer in house.answers]
        assert sum(isinstance(error, Overloaded) for error in errors) == 2

    play(scenario, SwapRules(on_demand=True, max_queue=3))


def test_a_drain_that_takes_too_long_keeps_the_old_model_and_refuses_the_waiters() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 200)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            refused = await house.ask("B")
            assert isinstance(refused.error, SwapInProgress)
            assert house.phase == "ready"
            assert (await house.ask("A")).finished
        assert house.answers[1].text == text("A", 200)

    play(scenario, SwapRules(on_demand=True, patience_s=0.0, drain_timeout_s=5.0))


def test_a_request_that_waited_too_long_gets_503_and_its_load_goes_on() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_s = 60.0
        refused = await house.ask("B")
        assert isinstance(refused.error, ModelLoading)
        assert "still loading" in str(refused.error)
        await house.until(lambda: house.resident == "B")

    play(scenario, SwapRules(on_demand=True, swap_timeout_s=10.0))


def test_who_waited_too_long_for_another_models_answers_is_told_so() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 200)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            refused = await house.ask("B")
        assert isinstance(refused.error, ModelLoading)
        assert "'B' waits for 'A' to end its answers" in str(refused.error)
        await house.until(lambda: house.resident == "B")

    play(scenario, SwapRules(on_demand=True, patience_s=0.0, swap_timeout_s=10.0))


def test_current_means_the_resident_model_and_never_swaps() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        for name in (None, "", "default", "current"):
            assert (await house.ask(name)).model == "B"

    assert play(scenario, startup="A").registry.started == ["A", "B"]


def test_current_during_a_swap_means_the_model_that_is_coming() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading")
            assert (await house.ask("current")).model == "B"

    assert play(scenario).registry.started == ["A", "B"]


def test_current_on_an_empty_device_is_the_startup_model() -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask(None)).model == "B"

    play(scenario, startup="B")


def test_current_without_any_model_is_an_error() -> None:
    async def scenario(house: House) -> None:
        assert isinstance((await house.ask(None)).error, ModelNotFound)

    play(scenario)


def test_without_on_demand_loading_other_names_are_not_found_at_once() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        assert isinstance((await house.ask("B")).error, ModelNotFound)
        assert (await house.ask("A")).finished
        assert [listing.id for listing in await house.service.models()] == ["A"]

    assert play(scenario, SwapRules(), startup="A").registry.prepared == ["A"]


def test_unloading_frees_the_device_and_says_so_once() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        report = await house.service.unload()
        assert report.model == "A"
        assert report.shutdown_time_s == pytest.approx(0.01)
        assert report.memory is not None
        assert report.memory.leaked_bytes == 0
        assert house.phase == "empty"
        assert (await house.service.unload()).model is None

    play(scenario)


def test_unloading_waits_for_the_running_answers_and_refuses_the_queued_ones() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 20)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            report = await house.service.unload()
            assert report.drain_time_s == pytest.approx(2.0, abs=0.2)
        assert house.answers[1].text == text("A", 20)

    play(scenario)


def test_aborting_ends_the_running_answers_with_an_error() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 1000)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            report = await house.service.unload(mode="abort")
            assert report.total_time_s < 1.0
        assert isinstance(house.answers[1].error, ModelUnloaded)
        assert not house.answers[1].finished

    play(scenario)


def test_an_unload_that_cannot_drain_in_time_keeps_the_model() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 100)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            with pytest.raises(SwapInProgress):
                await house.service.unload(drain_timeout_s=1.0)
            assert house.phase == "ready"
            assert (await house.ask("A")).finished
        assert house.answers[1].finished

    play(scenario)


def test_two_unloads_at_once_end_as_one() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        reports: list[str | None] = []

        async def unload() -> None:
            reports.append((await house.service.unload()).model)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unload)
            nursery.start_soon(unload)
        assert sorted(reports, key=str) == ["A", None]

    play(scenario)


def test_a_loading_model_can_be_called_off_and_the_resident_one_stays() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.controller.snapshot().progress is not None)
            await house.service.unload("B")
        assert isinstance(house.answers[1].error, ModelUnloaded)
        assert house.resident == "A"

    assert play(scenario).registry.started == ["A"]


def test_a_model_called_off_while_it_starts_gives_way_to_the_old_one() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_s = 5.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading")
            await house.service.unload("B")
        await house.until(lambda: house.resident == "A")

    play(scenario)


def test_unloading_what_is_not_loaded_is_refused() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        with pytest.raises(NotLoaded):
            await house.service.unload("B")
        with pytest.raises(ModelNotFound):
            await house.service.unload("nonsense")

    play(scenario)


def test_without_on_demand_loading_an_unloaded_model_stays_away_until_it_is_loaded() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        await house.service.unload()
        assert isinstance((await house.ask("A")).error, ModelUnloaded)
        assert not house.controller.snapshot().serviceable
        await house.service.load(None, {}, "request")
        assert (await house.ask("A")).finished

    play(scenario, SwapRules(), startup="A")


def test_loading_says_what_it_did() -> None:
    async def scenario(house: House) -> None:
        first = await house.service.load("A", {}, "request")
        assert (first.model, first.previous_model, first.already_loaded) == ("A", None, False)
        assert first.load_time_s == pytest.approx(1.1)
        again = await house.service.load("A", {}, "request")
        assert again.already_loaded
        other = await house.service.load("B", {"max_model_len": 64}, "uploaded")
        assert other.previous_model == "A"
        assert other.config_applied == {"max_model_len": {"value": 64, "source": "uploaded"}}
        assert other.timings.keys() >= {"prepare", "drain", "teardown", "start"}

    play(scenario)


def test_settings_do_not_leak_from_one_load_into_the_next() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {"max_model_len": 64}, "request")
        report = await house.service.load("A", {}, "request")
        assert not report.already_loaded
        assert report.config_applied == {}
        resident = house.controller.snapshot().resident
        assert resident is not None
        assert resident.engine.max_model_len is None

    play(scenario)


def test_a_load_with_a_bad_setting_changes_nothing() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        with pytest.raises(InvalidRequest) as caught:
            await house.service.load("B", {"colour": "red"}, "request")
        assert caught.value.param == "colour"
        assert house.resident == "A"

    assert play(scenario).registry.prepared == ["A"]


def test_a_failed_load_with_new_settings_brings_back_the_old_ones() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {}, "request")
        house.registry.script.start_errors["A"] = ModelLoadFailed("no")
        async with trio.open_nursery() as nursery:

            async def reload() -> None:
                with pytest.raises(ModelLoadFailed):
                    await house.service.load("A", {"max_model_len": 64}, "request")
                house.registry.script.start_errors.clear()

            nursery.start_soon(reload)
            await house.until(lambda: house.phase == "loading")
            assert (await house.ask("A")).finished
        resident = house.controller.snapshot().resident
        assert resident is not None
        assert resident.engine.max_model_len is None

    play(scenario)


def test_an_idle_model_is_let_go_and_comes_back_when_asked() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        idle_from = trio.current_time()
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - idle_from == pytest.approx(60.0, abs=0.1)
        assert (await house.ask("A")).finished

    play(scenario, SwapRules(idle_timeout_s=60.0), startup="A")


def test_idle_time_counts_from_the_end_of_the_last_answer() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        long = await house.ask("A", 700)
        assert long.finished
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - long.ended == pytest.approx(60.0, abs=0.1)

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=60.0))


@pytest.mark.parametrize(("keep_alive_s", "stays_s"), [(0.0, 0.0), (5.0, 5.0)])
def test_a_request_may_say_how_long_its_model_stays(keep_alive_s: float, stays_s: float) -> None:
    async def scenario(house: House) -> None:
        answer = await house.ask("A", keep_alive_s=keep_alive_s)
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - answer.ended == pytest.approx(stays_s, abs=0.1)

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=3600.0))


@pytest.mark.parametrize("first_s", [0.5, 1000.0, -1.0])
@pytest.mark.parametrize(("ttl_s", "stays_s"), [(None, 60.0), (5.0, 5.0)])
def test_what_one_request_said_does_not_bind_the_next(
    first_s: float, ttl_s: float | None, stays_s: float
) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A", keep_alive_s=first_s)
        answer = await house.ask("A")
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - answer.ended == pytest.approx(stays_s, abs=0.1)

    rules = SwapRules(on_demand=True, idle_timeout_s=60.0)
    play(scenario, rules, models=(spec("A", ttl_s=ttl_s),))


@pytest.mark.parametrize(("last_s", "stays_s"), [(None, 60.0), (5.0, 5.0)])
def test_of_requests_that_run_together_the_last_one_to_end_says_how_long_the_model_stays(
    last_s: float | None, stays_s: float
) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(house.ask, "A", 50, keep_alive_s=last_s))
            await house.until(lambda: house.controller.snapshot().leases == 1)
            await house.ask("A", keep_alive_s=1000.0)
        ended = max(answer.ended for answer in house.answers)
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - ended == pytest.approx(stays_s, abs=0.1)

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=60.0), models=(spec("A"),))


def test_while_it_runs_a_request_is_seen_to_say_how_long_its_model_stays() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(house.ask, "A", 50, keep_alive_s=1000.0))
            await house.until(lambda: house.controller.snapshot().leases == 1)
            await trio.sleep(1.0)
            assert house.controller.snapshot().expires_in_s == 1000.0

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=60.0))


def test_a_models_own_idle_time_goes_before_the_servers() -> None:
    async def scenario(house: House) -> None:
        answer = await house.ask("A")
        await house.until(lambda: house.phase == "empty")
        assert trio.current_time() - answer.ended == pytest.approx(5.0, abs=0.1)

    play(
        scenario,
        SwapRules(on_demand=True, idle_timeout_s=60.0),
        models=(spec("A", ttl_s=5.0),),
    )


def test_a_failed_engine_ends_its_answers_and_is_built_again() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 100)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            house.registry.engines[-1].fail(EngineFailed("a step raised"))
        assert isinstance(house.answers[1].error, EngineFailed)
        await house.until(lambda: house.phase == "ready")
        assert (await house.ask("A")).finished

    house = play(scenario)
    assert house.registry.started == ["A", "A"]
    assert house.registry.prepared == ["A"]


async def _fail(house: House) -> None:
    """Have the engine fail, and wait for what becomes of it."""
    house.registry.engines[-1].fail(EngineFailed("a step raised"))
    await house.until(lambda: house.phase in ("ready", "empty") and not _failed(house))


def test_the_third_failure_in_a_minute_is_the_last_that_is_mended() -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            assert (await house.ask("A")).finished
            await _fail(house)
            assert house.phase == "ready"
            assert house.controller.snapshot().serviceable
        await _fail(house)
        snapshot = house.controller.snapshot()
        assert snapshot.phase == "empty"
        assert not snapshot.serviceable, "also where requests may load models"
        assert snapshot.unserviceable_reason == "the engine failed again and again"
        assert isinstance((await house.ask("A")).error, EngineFailed)
        # It may be asked for again later, and any model that comes ends it.
        assert (await house.ask("B")).finished
        assert house.controller.snapshot().serviceable

    assert play(scenario).registry.started == ["A"] * 4 + ["B"]


def test_failures_that_are_far_apart_are_mended_each_time() -> None:
    async def scenario(house: House) -> None:
        for _ in range(6):
            assert (await house.ask("A")).finished
            await _fail(house)
            await trio.sleep(21.0)
            assert house.phase == "ready"

    play(scenario)


def test_what_is_given_up_ends_its_answers_and_refuses_all_others() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 100)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: bool(house.controller.desk.queue))
            began = trio.current_time()
            house.controller.give_up(DeviceLost("it hangs"))
        assert trio.current_time() - began < 0.1
        errors = [answer.error for answer in house.answers[1:]]
        assert [str(error) for error in errors] == ["it hangs"] * 2
        assert all(isinstance(error, DeviceLost) for error in errors)
        assert str((await house.ask("A")).error) == "it hangs"
        assert house.phase == "failed"
        assert house.controller.occupancy.last_good == spec("A")
        await house.until(lambda: house.resident is None)
        assert (house.phase, house.controller.occupancy.last_good) == ("failed", spec("A"))

    assert play(scenario).registry.started == ["A"]


@pytest.mark.parametrize("after_s", [0.5, 1.05])
def test_what_is_given_up_during_a_load_is_not_loaded(after_s: float) -> None:
    """Neither while it is prepared nor while it starts."""

    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await trio.sleep(after_s)
            house.controller.give_up(DeviceLost("it hangs"))
        assert isinstance(house.answers[0].error, DeviceLost)
        await trio.sleep(10.0)
        assert (house.phase, house.resident) == ("failed", None)

    play(scenario)


def _going_on_with(house: House) -> ModelSpec | None:
    return house.controller.occupancy.last_good


def test_the_model_to_go_on_with_is_the_one_that_worked() -> None:
    async def scenario(house: House) -> None:
        assert _going_on_with(house) is None
        await house.service.load("A", {"max_model_len": 7}, "request")
        good = house.controller.occupancy.last_good
        assert good is not None
        assert (good.id, good.engine.max_model_len) == ("A", 7)
        house.registry.script.start_errors["B"] = DeviceLost("gone")
        assert isinstance((await house.ask("B")).error, DeviceLost)
        assert house.phase == "failed"
        assert _going_on_with(house) == good

    play(scenario)


@pytest.mark.parametrize("idle", [False, True])
def test_there_is_none_to_go_on_with_once_the_device_is_meant_to_be_empty(idle: bool) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        if not idle:
            await house.service.unload()
        await house.until(lambda: house.phase == "empty")
        assert house.controller.occupancy.last_good is None

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=5.0))


def _failed(house: House) -> bool:
    engine = house.registry.current
    return engine is not None and engine.failure is not None


def test_a_lost_device_refuses_everything() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.engines[-1].fail(DeviceLost("gone"))
        await house.until(lambda: house.phase == "failed")
        assert isinstance((await house.ask("A")).error, DeviceLost)
        assert not house.controller.snapshot().serviceable

    play(scenario)


def test_shutting_down_refuses_the_queue_and_lets_the_running_answers_end() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 20)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: bool(house.controller.desk.queue))
            house.controller.stop_admitting()
        _, running, queued = house.answers
        assert running.text == text("A", 20)
        assert isinstance(queued.error, ShuttingDown)
        assert isinstance((await house.ask("A")).error, ShuttingDown)
        with pytest.raises(ShuttingDown):
            await house.service.load("A", {}, "request")

    play(scenario)


def test_answers_longer_than_the_drain_time_are_aborted_at_shutdown() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 1000)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            house.controller.stop_admitting()
            begun = trio.current_time()
        assert isinstance(house.answers[1].error, ShuttingDown)
        assert trio.current_time() - begun == pytest.approx(5.0, abs=0.2)

    play(scenario, SwapRules(on_demand=True, drain_timeout_s=5.0))


def test_the_drain_time_is_counted_from_the_first_time_that_it_is_told_to_stop() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 1000)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            begun = trio.current_time()
            for _ in range(4):
                house.controller.stop_admitting()
                await trio.sleep(1.0)
        assert isinstance(house.answers[1].error, ShuttingDown)
        assert trio.current_time() - begun == pytest.approx(5.0, abs=0.2)

    play(scenario, SwapRules(on_demand=True, drain_timeout_s=5.0))


def test_shutting_down_during_a_load_ends_the_load() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_s = 1000.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await house.until(lambda: house.phase == "loading")
            house.controller.stop_admitting()
        assert isinstance(house.answers[0].error, ShuttingDown)
        await house.until(lambda: house.phase == "closed")
        assert trio.current_time() < 10.0

    play(scenario)


def test_a_model_to_be_downloaded_is_fetched_once_for_all() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(house.ask, "remote")
        assert all(answer.finished for answer in house.answers)

    remote = ModelSpec(id="remote", path=None)
    assert play(scenario, models=(remote,)).catalog.fetched == ["remote"]


def test_the_startup_model_is_downloaded_by_its_load() -> None:
    async def scenario(house: House) -> None:
        report = await house.service.load(None, {}, "request")
        assert report.model == "remote"
        assert (await house.ask("remote")).finished

    remote = ModelSpec(id="remote", path=None)
    house = play(scenario, SwapRules(), models=(remote,), startup="remote")
    assert house.catalog.fetched == ["remote"]


def test_a_load_is_not_measured_from_the_download_that_failed_before_it() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_errors["remote"] = DownloadFailed("The connection broke off.")
        assert isinstance((await house.ask("remote")).error, DownloadFailed)
        await trio.sleep(1000)
        house.catalog._specs["remote"] = spec("remote")  # put there by hand
        assert (await house.service.load("remote", {}, "request")).load_time_s < 10

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def test_progress_never_goes_back() -> None:
    async def scenario(house: House) -> None:
        seen: list[float] = []

        async def watch() -> None:
            snapshot = house.controller.snapshot()
            while snapshot.resident is None:
                snapshot = await house.service.changed(snapshot.version)
                if snapshot.progress is not None:
                    seen.append(snapshot.progress.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(house.ask, "remote")
        assert len(set(seen)) > 5
        assert seen == sorted(seen)

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def test_the_listing_tells_the_truth_throughout_a_swap() -> None:
    async def scenario(house: House) -> None:
        async def statuses() -> dict[str, str]:
            return {listing.id: listing.status for listing in await house.service.models()}

        assert await statuses() == {"A": "unloaded", "B": "unloaded", "C": "unloaded"}
        await house.ask("A")
        assert await statuses() == {"A": "loaded", "B": "unloaded", "C": "unloaded"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.controller.snapshot().progress is not None)
            assert await statuses() == {"A": "loaded", "B": "loading", "C": "unloaded"}
        assert await statuses() == {"A": "sleeping", "B": "loaded", "C": "unloaded"}

    play(scenario)


@pytest.mark.parametrize("leaves_after_s", [round(0.05 * step, 2) for step in range(1, 50)])
def test_a_client_may_leave_at_any_moment(leaves_after_s: float) -> None:
    """Cancelled at every await of a swap, nothing is left behind and the next one is served."""

    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 8)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            with trio.move_on_after(leaves_after_s):
                await house.ask("B", 5)
            assert (await house.ask("C")).text == text("C")
        assert house.answers[1].text == text("A", 8)

    play(scenario, ON_DEMAND, Script(render_s=0.05))


@pytest.mark.parametrize("stops_after_s", [round(0.1 * step, 2) for step in range(40)])
def test_the_server_may_stop_at_any_moment(stops_after_s: float) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 5)
            nursery.start_soon(house.ask, "B", 5)
            await trio.sleep(stops_after_s)
            house.controller.stop_admitting()
        for answer in house.answers:
            assert answer.finished or isinstance(answer.error, ShuttingDown)

    play(scenario)


@pytest.mark.parametrize("cancelled_after_s", [round(0.1 * step, 2) for step in range(1, 40)])
def test_cancelling_the_whole_house_leaves_the_device_empty(cancelled_after_s: float) -> None:
    registry, catalog = ScriptedRegistry(), ScriptedCatalog(spec("A"), spec("B"))
    controller = SwapController(registry, catalog.fetch, ON_DEMAND)
    house = House(registry, catalog, controller, SwapService(controller, registry, catalog))

    async def main() -> None:
        with trio.move_on_after(cancelled_after_s):
            async with controller.running(), trio.open_nursery() as nursery:
                nursery.start_soon(house.ask, "A", 5)
                nursery.start_soon(house.ask, "B", 5)
        assert controller.occupancy.phase == "closed"
        assert registry.current is None
        assert all(engine.running == 0 for engine in registry.engines)

    trio.run(main, clock=restless_clock())


def test_the_resident_model_admits_for_as_long_as_the_next_one_is_prepared() -> None:
    """However long that takes: refusing its requests would gain nobody anything."""

    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_s = 250.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.controller.snapshot().progress is not None)
            await trio.sleep(70)
            begun = trio.current_time()
            assert (await house.ask("A")).finished
            assert trio.current_time() - begun < 1.0

    play(scenario)


def test_the_model_before_is_let_go_once_the_next_one_runs() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert house.controller.occupancy.stay is not None
        before = weakref.ref(house.controller.occupancy.stay.prepared)
        await house.ask("B")
        gc.collect()
        assert before() is None, "its weights would take host memory for nothing"

    play(scenario)


def test_a_model_that_cannot_be_taken_off_the_device_loses_the_device() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.stop_errors["A"] = DeviceLost("cannot synchronize")
        with pytest.raises(DeviceLost):
            await house.service.unload()
        assert house.phase == "failed"
        with pytest.raises(DeviceLost):
            await house.service.load("B", {}, "request")
        assert isinstance((await house.ask("B")).error, DeviceLost)

    play(scenario)


def test_a_device_lost_during_a_load_is_lost() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert isinstance((await house.ask("B")).error, DeviceLost)
        assert house.phase == "failed"
        assert not house.controller.snapshot().serviceable

    play(scenario, script=Script(start_errors={"B": DeviceLost("gone")}))


def test_a_request_that_comes_while_an_idle_model_leaves_brings_it_back() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A", keep_alive_s=0.0)
        await house.until(lambda: house.phase == "draining")
        assert (await house.ask("A")).finished

    house = play(scenario, script=Script(stop_s=5.0))
    assert house.registry.started == ["A", "A"]


def test_an_unload_during_a_swap_is_for_the_model_that_leaves() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.stop_s = 5.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "draining")
            await trio.sleep(1)
            assert (await house.service.unload("A")).model == "A"
        assert house.answers[-1].finished
        assert house.resident == "B"

    assert play(scenario).registry.started == ["A", "B"]


def test_a_load_called_off_while_the_old_model_leaves_does_not_happen() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.stop_s = 5.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "draining")
            await trio.sleep(1)
            await house.service.unload("B")
        await house.until(lambda: house.resident == "A" and house.phase == "ready")

    assert play(scenario).registry.started == ["A", "A"]


def test_an_unload_is_answered_even_when_the_server_stops_meanwhile() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 30)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            reports: list[str | None] = []

            async def unload() -> None:
                reports.append((await house.service.unload()).model)

            nursery.start_soon(unload)
            await trio.sleep(0.5)
            house.controller.stop_admitting()
        assert reports == ["A"]
        assert house.answers[1].finished

    play(scenario)


def test_a_request_for_an_idle_resident_model_needs_no_room_in_the_queue() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_s = 50.0
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(house.ask, "B")
            await house.until(lambda: len(house.controller.desk.queue) == 3)
            assert (await house.ask("A")).finished
            assert isinstance((await house.ask("B")).error, Overloaded)

    play(scenario, SwapRules(on_demand=True, max_queue=3))


def test_a_download_waits_no_longer_than_a_swap_and_goes_on() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_s = 600.0
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(house.ask, "remote")
        errors = [answer.error for answer in house.answers]
        assert sum(isinstance(error, ModelLoading) for error in errors) == 2
        assert sum(isinstance(error, Overloaded) for error in errors) == 3
        assert trio.current_time() < 300
        await house.until(lambda: house.resident == "remote")

    rules = SwapRules(on_demand=True, max_queue=2)
    house = play(scenario, rules, models=(ModelSpec(id="remote", path=None),))
    assert house.catalog.fetched == ["remote"]


def test_a_download_survives_the_client_that_began_it_and_delays_nobody_else() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_s = 100.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "remote")
            with trio.move_on_after(10):
                await house.ask("remote")
            begun = trio.current_time()
            assert (await house.ask("A")).finished
            assert trio.current_time() - begun < 5
            listed = {one.id: one.status for one in await house.service.models()}
            assert listed == {"A": "loaded", "remote": "loading"}

    models = (spec("A"), ModelSpec(id="remote", path=None))
    assert play(scenario, models=models).catalog.fetched == ["remote"]


def test_a_download_that_nobody_waits_for_any_more_stops() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_s = 100.0
        with trio.move_on_after(10):
            await house.ask("remote")
        await trio.sleep(200)
        assert house.catalog.fetched == []
        house.catalog.fetch_s = 1.0
        assert (await house.ask("remote")).finished

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def test_each_load_of_a_model_to_be_downloaded_keeps_its_own_settings() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:

            async def load(settings: dict[str, int]) -> None:
                report = await house.service.load("remote", settings, "request")
                assert {key: one["value"] for key, one in report.config_applied.items()} == settings

            nursery.start_soon(load, {})
            nursery.start_soon(load, {"max_model_len": 64})

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def test_broken_settings_of_a_running_model_do_not_make_it_a_failed_one() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("no such dtype")
        with pytest.raises(ModelLoadFailed):
            await house.service.load("A", {"max_model_len": 64}, "request")
        assert not house.controller.snapshot().failures
        house.registry.script.prepare_errors.clear()
        await house.ask("B")
        assert (await house.ask("A")).finished

    play(scenario)


def test_a_load_with_settings_of_its_own_fails_alone() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_errors["B"] = InsufficientMemory("max_model_len is too much")
        with pytest.raises(InsufficientMemory):
            await house.service.load("B", {"max_model_len": 10**6}, "request")
        assert not house.controller.snapshot().failures
        house.registry.script.start_errors.clear()
        assert (await house.ask("B")).finished

    play(scenario)


def test_an_engine_that_fails_while_it_is_unloaded_stays_unloaded() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.service.unload)
            await trio.sleep(0.5)
            house.registry.engines[-1].fail(EngineFailed("a step raised"))
        await house.until(lambda: house.phase == "empty")

    assert play(scenario).registry.started == ["A"]


def test_a_load_reports_its_whole_time_also_when_only_settings_change() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_s = 30.0
        report = await house.service.load("A", {"max_model_len": 64}, "request")
        assert report.load_time_s == pytest.approx(30.1, abs=0.1)

    play(scenario)


def test_a_model_is_not_loaded_again_because_its_files_were_touched() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {}, "request")
        house.catalog._specs["A"] = spec("A", created_unix=99, aliases=("other",))
        assert (await house.service.load("A", {}, "request")).already_loaded
        await house.service.request_load("A")

    assert play(scenario).registry.started == ["A"]


def test_another_models_failure_does_not_make_the_server_unready() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        house.registry.script.prepare_errors["B"] = ModelLoadFailed("broken")
        with pytest.raises(ModelLoadFailed):
            await house.service.load("B", {}, "request")
        await house.until(lambda: house.phase == "empty")
        assert house.controller.snapshot().serviceable
        assert (await house.ask("A")).finished

    play(scenario, SwapRules(idle_timeout_s=5.0), startup="A")


def test_sixteen_clients_over_two_models_need_few_loads_and_none_waits_long() -> None:
    """Grouping at work: 500 requests, each client asks for either model at random."""
    chance = random.Random(7)
    rules = SwapRules(on_demand=True, patience_s=1.0, max_wait_s=10.0)
    asked: list[str] = []
    waits: list[float] = []

    async def scenario(house: House) -> None:
        async def client() -> None:
            while len(asked) < 500:
                asked.append(chance.choice("AB"))
                begun = trio.current_time()
                answer = await house.ask(asked[-1], chance.randint(1, 10))
                assert answer.text.startswith(answer.model)
                waits.append(answer.began - begun)

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(client)

    house = play(scenario, rules, Script(prepare_s=0.2, start_s=0.1))
    alternations = sum(one != other for one, other in itertools.pairwise(asked))
    assert len(house.registry.started) < alternations / 5
    answer_s, swap_s = 1.0, 0.4
    assert max(waits) < rules.max_wait_s + 2 * (answer_s + swap_s)
