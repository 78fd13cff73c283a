"""What the listing says, that it is only made again when it would say something else, and what
a load would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from hotswap.config import SwapRules
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import GenerationRequest, TextPrompt
from hotswap.errors import (
    CheckpointRefused,
    DeviceLost,
    HotswapError,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ModelUnloaded,
    ModelUnusable,
    NotLoaded,
    ShuttingDown,
)
from hotswap.scripted import MODEL_BYTES, Script, ScriptedRegistry
from tests.swap.house import House, play, spec


def statuses(listings: tuple[ModelListing, ...]) -> dict[str, str]:
    return {listing.id: listing.status for listing in listings}


def test_an_answer_is_kept_while_it_holds() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        first = await house.service.models()
        await house.ask("A")
        assert await house.service.models() is first

    play(scenario)


def test_a_swap_is_seen_at_once() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert statuses(await house.service.models())["A"] == "loaded"
        await house.ask("B")
        seen = statuses(await house.service.models())
        assert (seen["A"], seen["B"]) == ("sleeping", "loaded")
        await house.service.unload(park=False)
        seen = statuses(await house.service.models())
        assert (seen["A"], seen["B"]) == ("sleeping", "unloaded")

    play(scenario)


def test_each_step_of_a_load_is_seen() -> None:
    async def scenario(house: House) -> None:
        seen = []
        await house.service.request_load("A")
        while house.resident is None:
            version = house.controller.snapshot().version
            listing = (await house.service.models())[0]
            if listing.progress is not None:
                assert listing.status == "loading"
                seen.append(listing.progress.value)
            await house.service.changed(version)
        assert len(set(seen)) > 1
        assert seen == sorted(seen)

    play(scenario)


def test_a_failure_is_seen_and_forgotten_when_the_model_loads() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("broke")
        assert (await house.ask("A")).error is not None
        assert (await house.service.models())[0].error == "broke"
        del house.registry.script.prepare_errors["A"]
        await house.service.load("A", {}, "request")
        assert (await house.service.models())[0].error is None

    play(scenario)


def test_a_prompt_that_shows_a_model_to_be_broken_is_a_change_that_is_told() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.render_errors["A"] = ModelLoadFailed("broke")
        await house.ask("B")
        version = house.controller.snapshot().version
        with pytest.raises(ModelLoadFailed):
            await house.service.tokenize(GenerationRequest(prompts=(TextPrompt("x"),), model="A"))
        with anyio.fail_after(1):
            assert "A" in (await house.service.changed(version)).failures

    play(scenario)


WRONG = "'W' has wrong settings in hotswap_config.yaml: There is no setting 'max_len'."
BROKEN = "'X' cannot be served: config.json is not JSON."
UNUSABLE = (
    spec("A"),
    spec("W", fault=WRONG, aliases=("w",)),
    ModelSpec(id="X", path=None, fault=BROKEN),
)
"""A model, one whose settings are wrong, and a directory without one."""


@pytest.mark.parametrize("name", ["B", "second", "far", "away"])
def test_what_is_on_its_way_is_called_off_though_the_disk_does_not_answer(name: str) -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_s = house.catalog.fetch_s = 1e6
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.ask, "B")
            tasks.start_soon(house.ask, "far")
            await house.until(lambda: {*house.controller.snapshot().waiting} == {"B", "far"})
            await house.until(lambda: house.controller.occupancy.coming is not None)

            async def hanging(name: str) -> ModelSpec:
                await anyio.sleep_forever()
                raise AssertionError

            house.catalog.resolve = hanging  # type: ignore[method-assign]
            with anyio.fail_after(1):
                report = await house.service.unload(name)
            assert report.called_off == ("B" if name in ("B", "second") else "far")
            tasks.cancel_scope.cancel()

    models = (spec("B", aliases=("second",)), ModelSpec(id="far", path=None, aliases=("away",)))
    play(scenario, models=models)


def test_a_model_with_wrong_settings_is_listed_as_failed_and_a_directory_without_one_not() -> None:
    async def scenario(house: House) -> None:
        listed = {one.id: (one.status, one.error) for one in await house.service.models()}
        assert listed == {"A": ("unloaded", None), "W": ("unloaded", WRONG)}
        for name in ("W", "w"):
            one = await house.service.model(name)
            assert (one.id, one.status, one.error) == ("W", "unloaded", WRONG)
        with pytest.raises(ModelUnusable, match=r"config\.json"):
            await house.service.model("X")
        assert house.service.unusable() == {"W": WRONG, "X": BROKEN}

    play(scenario, models=UNUSABLE)


@pytest.mark.parametrize(("name", "fault"), [("W", WRONG), ("w", WRONG), ("X", BROKEN)])
@pytest.mark.parametrize("any_name", [False, True])
def test_what_is_unusable_is_refused_each_time_with_the_reason_and_answered_by_no_other_model(
    name: str, fault: str, any_name: bool
) -> None:
    async def scenario(house: House) -> None:
        async def error() -> HotswapError:
            answer = await house.ask(name, any_name=any_name)
            assert answer.error is not None, f"{answer.model} answered"
            assert answer.error.message == fault
            return answer.error

        await house.ask("A")
        for _ in range(3):
            assert isinstance(await error(), ModelUnusable)
            with pytest.raises(ModelUnusable):
                await house.service.load(name, {}, "request")
        assert not house.controller.snapshot().failures
        assert house.registry.started == ["A"]
        model = name.upper()
        house.catalog._specs[model] = spec(model, aliases=("w",) * (model == "W"))
        assert (await house.ask(name, any_name=any_name)).model == model, "mended, it is served"

    play(scenario, models=UNUSABLE)


def test_what_is_unusable_once_it_is_downloaded_is_served_as_soon_as_it_is_mended() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_errors["far"] = ModelUnusable(WRONG, model="far")
        for _ in range(2):
            assert isinstance((await house.ask("far")).error, ModelUnusable)
        del house.catalog.fetch_errors["far"]
        assert (await house.ask("far")).finished

    play(scenario, models=(ModelSpec(id="far", path=None),))


def test_the_start_up_model_is_refused_as_unusable_to_whom_any_would_suit() -> None:
    async def scenario(house: House) -> None:
        for _ in range(2):
            assert isinstance((await house.ask(None)).error, ModelUnusable)

    play(scenario, models=UNUSABLE, startup="W")


def test_what_is_mended_is_not_listed_as_failed() -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask("W")).error is not None
        house.catalog._specs["W"] = spec("W")
        assert [one.error for one in await house.service.models()] == [None, None]

    play(scenario, models=UNUSABLE)


def test_a_model_that_is_loaded_serves_on_when_its_settings_are_spoilt() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.catalog._specs["A"] = spec("A", fault="spoilt", aliases=("first",))
        assert (await house.ask("first")).model == "A"
        assert [(one.status, one.error) for one in await house.service.models()] == [
            ("loaded", None)
        ]
        assert (await house.service.unload("first")).model == "A"
        assert [(one.status, one.error) for one in await house.service.models()] == [
            ("sleeping", "spoilt")
        ]
        assert (await house.service.unload("first")).model == "A"
        assert parked(house) == []
        with pytest.raises(NotLoaded):
            await house.service.unload("first")

    play(scenario, models=(spec("A"),))


def test_without_loading_on_demand_what_is_unusable_is_just_not_served() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        for name in "WX":
            for any_name in (False, True):
                error = (await house.ask(name, any_name=any_name)).error
                assert isinstance(error, ModelNotFound)
                assert "--enable-on-demand-loading" in error.message
            with pytest.raises(ModelNotFound):
                await house.service.model(name)
            with pytest.raises(ModelNotFound):
                await house.service.describe(name)
            with pytest.raises(ModelUnusable):
                await house.service.request_load(name)

    play(scenario, models=UNUSABLE, rules=SwapRules(on_demand=False), startup="A")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (None, "no name"),
        ("", "no name"),
        ("current", "'current'"),
        ("default", "'default'"),
        ("claude-3", "'claude-3'"),
        ("tasks", "'tasks'"),
    ],
)
def test_where_no_model_is_loaded_a_refusal_says_what_was_named(
    name: str | None, told: str
) -> None:
    async def scenario(house: House) -> None:
        error = (await house.ask(name, any_name=True)).error
        assert isinstance(error, ModelNotFound)
        assert error.message == (
            f"No model is loaded. A request for {told} is answered by whichever is loaded: name "
            "one, or load one."
        )

    play(scenario, models=(spec("A"), ModelSpec(id="tasks", path=None, background=True)))


def test_who_would_wake_what_never_was_is_told_so() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(ModelNotFound, match="nothing to wake up"):
            await house.service.wake_up()

    play(scenario)


def test_a_load_without_a_model_is_told_of_the_setting_that_is_none() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(InvalidRequest) as raised:
            await house.service.load(None, {"modell": "A"}, "request")
        assert raised.value.param == "modell"
        with pytest.raises(ModelNotFound, match="started without a model"):
            await house.service.load(None, {"max_model_len": 5}, "request")

    play(scenario)


def test_a_model_that_comes_to_the_catalogue_is_seen() -> None:
    async def scenario(house: House) -> None:
        before = await house.service.models()
        house.catalog._specs["D"] = spec("D")
        after = await house.service.models()
        assert after[:-1] == before
        assert after[-1].id == "D"

    play(scenario)


def parked(house: House) -> list[str]:
    return [model.model for model in house.registry.parked()]


@pytest.mark.parametrize("how", ["listing", "load", "request_load"])
def test_a_parked_model_that_the_catalogue_has_no_more_is_let_go(how: str) -> None:
    async def scenario(house: House) -> None:
        for model in "ABC":
            await house.ask(model)
        del house.catalog._specs["A"]
        assert parked(house) == ["A", "B"]
        if how == "listing":
            assert statuses(await house.service.models()) == {"B": "sleeping", "C": "loaded"}
        elif how == "load":
            await house.service.load("C", {}, "request")
        else:
            await house.service.request_load("C")
        assert parked(house) == ["B"]

    play(scenario)


def test_a_parked_model_that_is_here_but_not_listed_stays() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        resolve = house.catalog.resolve

        async def models() -> tuple[ModelSpec, ...]:
            return (spec("B"),)

        house.catalog.models = models  # type: ignore[method-assign]
        await house.service.models()
        assert parked(house) == ["A"]

        async def only_to_download(name: str) -> ModelSpec:
            return replace(await resolve(name), path=None)

        house.catalog.resolve = only_to_download  # type: ignore[method-assign]
        await house.service.models()
        assert parked(house) == []

    play(scenario)


def test_a_parked_start_up_model_whose_files_are_gone_is_let_go() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        assert statuses(await house.service.models())["A"] == "sleeping"

        async def gone(name: str) -> ModelSpec:
            raise CheckpointRefused(f"{name} cannot be served: there is no such directory.")

        house.catalog.resolve = gone  # type: ignore[method-assign]
        assert statuses(await house.service.models())["A"] == "unloaded"
        assert parked(house) == []

    play(scenario, startup="A")


async def answers(house: House) -> dict[str, str]:
    """What the listing says of a model, and what a request for it gets."""
    listed, got = statuses(await house.service.models()), {}
    for model in "ABC":
        answer = await house.ask(model)
        got[model] = f"{listed.get(model)}: {answer.error.code if answer.error else answer.model}"
    return got


def test_without_loading_on_demand_what_is_listed_is_found() -> None:
    async def scenario(house: House) -> None:
        missing, asleep = "None: model_not_found", "sleeping: model_unloaded"
        await house.service.load("A", {}, "request")
        assert await answers(house) == {"A": "loaded: A", "B": missing, "C": missing}
        await house.service.load("B", {}, "request")
        assert await answers(house) == {"A": asleep, "B": "loaded: B", "C": missing}
        await house.service.unload()
        assert await answers(house) == {"A": asleep, "B": asleep, "C": missing}
        await house.service.load("A", {}, "request")
        await house.service.unload(park=False)
        unloaded = {"A": "unloaded: model_unloaded", "B": missing, "C": missing}
        assert await answers(house) == unloaded

    play(scenario, rules=SwapRules(on_demand=False), startup="A")


def test_without_loading_on_demand_a_refusal_says_what_brings_the_model() -> None:
    async def scenario(house: House) -> None:
        async def told(name: str) -> str:
            error = (await house.ask(name)).error
            assert isinstance(error, ModelUnloaded)
            return error.message

        await house.service.load("B", {}, "request")
        assert "another model; load it with POST /v1/load_model" in await told("A")
        await house.service.sleep(park=True)
        assert "put to sleep; POST /wake_up wakes it" in await told("B")
        await house.service.wake_up()
        await house.service.unload()
        assert "was unloaded; load it with POST /v1/load_model" in await told("B")

    play(scenario, rules=SwapRules(on_demand=False), startup="A")


def test_a_context_that_memory_cut_is_listed_as_it_was_cut_also_while_the_model_sleeps() -> None:
    async def scenario(house: House) -> None:
        async def lengths() -> dict[str, int | None]:
            return {one.id: one.max_model_len for one in await house.service.models()}

        assert await lengths() == {"A": 4096, "B": 4096}
        await house.ask("A")
        assert await lengths() == {"A": 100, "B": 4096}
        await house.ask("B")
        assert await lengths() == {"A": 100, "B": 4096}
        house.registry.script.room_tokens["A"] = 64
        await house.service.load("A", {"max_model_len": 64}, "request")
        assert (await lengths())["A"] == 64
        house.registry.script.room_tokens["A"] = 100
        await house.ask("B")
        assert (await lengths())["A"] == 4096, "of these settings nothing is known any more"
        await house.service.load("A", {}, "request")
        house.catalog._specs["A"] = spec("A", max_position_embeddings=2048)
        await house.service.unload()
        assert (await lengths())["A"] == 2048, "other files"

    models = tuple(spec(name, max_position_embeddings=4096) for name in "AB")
    play(scenario, script=Script(room_tokens={"A": 100}), models=models)


def test_a_forecast_says_what_would_go_and_changes_nothing() -> None:
    async def scenario(house: House) -> None:
        first = await house.service.forecast("B", {}, "request")
        assert (first.leaves, first.expected_s, first.already_loaded) == (None, None, False)
        assert (first.model, first.estimate.fits) == ("B", True)
        await house.ask("A")
        await house.ask("B")
        version = house.controller.desk.version
        again = await house.service.forecast("A", {}, "request")
        assert (again.leaves, again.already_loaded) == ("B", False)
        assert again.expected_s == pytest.approx(0.1, abs=0.01), "parked, it needs not be read"
        there = await house.service.forecast("B", {}, "request")
        assert (there.leaves, there.already_loaded) == (None, True)
        anew = await house.service.forecast("B", {"max_model_len": 64}, "request")
        assert (anew.leaves, anew.already_loaded) == ("B", False)
        assert house.controller.desk.version == version

    assert play(scenario).registry.started == ["A", "B"]


def test_a_forecast_without_a_name_is_of_the_startup_model() -> None:
    async def scenario(house: House) -> None:
        assert (await house.service.forecast(None, {}, "request")).model == "C"

    play(scenario, startup="C")


def test_a_model_that_would_not_fit_is_foreseen() -> None:
    async def scenario(house: House) -> None:
        estimate = (await house.service.forecast("A", {}, "request")).estimate
        assert (estimate.fits, estimate.reason) == (False, "The device is too small.")

    play(scenario, script=Script(device_bytes=MODEL_BYTES))


def test_a_forecast_fails_as_the_load_would() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(ModelNotFound):
            await house.service.forecast("nonsense", {}, "request")
        with pytest.raises(ModelNotFound, match="started without a model"):
            await house.service.forecast(None, {}, "request")
        with pytest.raises(InvalidRequest):
            await house.service.forecast("A", {"max_len": 1}, "request")
        house.registry.script.prepare_errors["A"] = CheckpointRefused("a shard is missing")
        with pytest.raises(CheckpointRefused):
            await house.service.forecast("A", {}, "request")
        house.controller.stop_admitting()
        with pytest.raises(ShuttingDown):
            await house.service.forecast("B", {}, "request")

    play(scenario)


def test_nothing_is_foreseen_for_a_lost_device() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.start_errors["A"] = DeviceLost("gone")
        assert (await house.ask("A")).error is not None
        with pytest.raises(DeviceLost):
            await house.service.forecast("B", {}, "request")

    play(scenario)


def test_what_a_model_takes_is_not_known_before_it_is_downloaded() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(InvalidRequest, match="downloaded"):
            await house.service.forecast("remote", {}, "request")

    assert play(scenario, models=(ModelSpec(id="remote", path=None),)).catalog.fetched == []


def test_the_resident_model_is_known_though_its_files_are_gone() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        del house.catalog._specs["A"]
        for name in ("A", "first"):
            assert (await house.service.model(name)).status == "loaded"
            assert (await house.service.describe(name)).listing.id == "A"
        with pytest.raises(ModelNotFound):
            await house.service.describe("nonsense")
        assert (await house.service.unload("first")).model == "A"

    play(scenario, models=(spec("A", aliases=("first",)), spec("B")))


def test_a_name_that_means_nothing_may_mean_the_resident_model() -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        for name, model in (("claude-3", "B"), ("A", "A")):
            request = GenerationRequest(prompts=(TextPrompt("x"),), model=name, any_name=True)
            async with house.service.generate(request) as generation:
                assert generation.model == model
        assert isinstance((await house.ask("claude-3")).error, ModelNotFound)

    play(scenario)


def test_a_setting_of_the_model_that_is_meant_has_its_loading_shown() -> None:
    shown: dict[str | None, bool] = {}

    async def scenario(house: House) -> None:
        await house.ask("A")
        for name in ("A", "B", "b", None, "claude-3", "A/x"):
            shown[name] = await house.service.shows_loading(name)

    models = (spec("A"), spec("B", aliases=("b",), show_loading=True))
    play(scenario, models=models)
    assert [name for name, told in shown.items() if told] == ["B", "b"]


@pytest.mark.parametrize("name", ["Ax", "claude-3", "gpt-4o", "far/away"])
def test_whichever_model_is_resident_answers_for_a_foreign_name_under_its_own(name: str) -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        answer = await house.ask(name, any_name=True)
        assert (answer.model, answer.error) == ("B", None)

    house = play(scenario, models=(spec("A"), spec("B"), ModelSpec(id="far/away", path=None)))
    assert house.catalog.fetched == [], "what could be downloaded is not here"


def test_tokens_are_told_without_loading_anything() -> None:
    async def scenario(house: House) -> None:
        request = GenerationRequest(prompts=(TextPrompt("x"),), model="B")
        tokenized = await house.service.tokenize(request)
        assert (tokenized.model, len(tokenized.ids), tokenized.texts) == ("B", 1, ())
        [texts] = (await house.service.tokenize(request, texts=True)).texts
        assert len(texts) == len(tokenized.ids[0])
        assert await house.service.detokenize("A", [4, 5]) == ("A", "A: 4 5")
        assert house.registry.prepared == []

    play(scenario)


def test_a_prompt_whose_tokens_are_asked_for_is_only_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []

    async def noted(self: Any, spec: ModelSpec, request: Any) -> Any:
        seen.append(request.counted)
        return await render(self, spec, request)

    render = ScriptedRegistry.render
    monkeypatch.setattr(ScriptedRegistry, "render", noted)

    async def scenario(house: House) -> None:
        request = GenerationRequest(prompts=(TextPrompt("x"),), model="B")
        await house.service.tokenize(request)
        await house.ask("B")

    play(scenario)
    assert seen == [True, False]


def test_unloading_a_sleeping_model_lets_go_of_it() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        version = house.controller.snapshot().version
        report = await house.service.unload("A")
        assert (report.model, report.was_parked, report.parked) == ("A", True, False)
        seen = statuses(await house.service.models())
        assert (seen["A"], seen["B"]) == ("unloaded", "loaded")
        assert house.controller.snapshot().version > version
        with pytest.raises(NotLoaded):
            await house.service.unload("A")

    play(scenario)


@pytest.mark.parametrize("render_s", [0.0, 5.0])
def test_a_request_that_lets_go_of_a_sleeping_model_leaves_it_to_those_who_want_it(
    render_s: float,
) -> None:
    async def scenario(house: House) -> None:
        for model in "ABC":
            await house.ask(model)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.ask, "B", 100)
            await house.until(lambda: house.controller.occupancy.coming is not None)
            house.registry.script.render_s = render_s
            tasks.start_soon(house.ask, "A")
            desk = house.controller.desk
            await house.until(lambda: bool(desk.arriving) if render_s else len(desk.queue) == 2)
            assert await house.service.let_go("A") == "A"
            assert "A" in parked(house)
        assert house.answers[-1].model == "A"
        await house.ask("B")
        await house.service.let_go("A")
        assert "A" not in parked(house)

    play(scenario)


def test_tokens_of_a_model_that_is_still_to_be_downloaded_are_not_known() -> None:
    async def scenario(house: House) -> None:
        request = GenerationRequest(prompts=(TextPrompt("x"),), model="far")
        with pytest.raises(ModelNotFound):
            await house.service.tokenize(request)
        assert (await house.ask("far")).error is None

    play(scenario, models=(ModelSpec(id="far", path=None),))
