"""Models that are wanted without a prompt, let go of, described, or only fetched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.models import ChatFacts, EngineConfig
from hotswap.contracts.snapshot import UnloadReason
from hotswap.errors import (
    CheckpointRefused,
    DownloadFailed,
    ModelLoadFailed,
    ModelNotFound,
    NotPermitted,
)
from hotswap.scripted import Script
from tests.swap.house import ON_DEMAND, House, play, spec


def parked(house: House) -> list[str]:
    return [model.model for model in house.controller.snapshot().parked]


ABSENT = replace(spec("far/away"), path=None)


def test_a_model_is_warmed_as_a_request_would_bring_it() -> None:
    async def scenario(house: House) -> None:
        assert await house.service.warm("A") == "A"
        assert house.resident == "A"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            assert await house.service.warm("B") == "B"
        assert house.answers[0].finished, "nobody's running answer is cut"
        assert house.resident == "B"
        assert await house.service.warm(None) == "B"
        assert house.controller.snapshot().loads == 2

    play(scenario)


def test_a_warmed_model_is_kept_for_as_long_as_it_was_asked() -> None:
    async def scenario(house: House) -> None:
        await house.service.warm("A", keep_alive_s=60)
        left_s = house.controller.snapshot().expires_in_s
        assert left_s == pytest.approx(60, abs=0.01)
        await trio.sleep(59)
        assert house.resident == "A"
        await house.until(lambda: house.resident is None)
        await house.service.warm("A", keep_alive_s=-1)
        assert house.controller.snapshot().expires_in_s is None

    play(scenario, rules=replace(ON_DEMAND, idle_timeout_s=5.0))


def test_while_answers_run_a_model_has_all_its_time_before_it() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            await trio.sleep(3)
            assert house.controller.snapshot().expires_in_s == 60
        assert (house.controller.snapshot().expires_in_s or 0) <= 60

    play(scenario, rules=replace(ON_DEMAND, idle_timeout_s=60.0))


def test_a_model_that_cannot_be_warmed_says_why() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(ModelLoadFailed):
            await house.service.warm("B")
        with pytest.raises(ModelNotFound):
            await house.service.warm("nobody")

    play(scenario, script=Script(prepare_errors={"B": ModelLoadFailed("broken")}))


def test_an_idle_model_is_gone_when_it_was_let_go_of() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert await house.service.let_go("A") == "A"
        assert house.resident is None
        assert house.controller.snapshot().unloads_by_reason[UnloadReason.IDLE] == 1
        assert (await house.ask("A")).finished, "it may be asked for again"

    play(scenario)


def test_letting_go_waits_for_no_answer_and_cuts_none() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            with trio.fail_after(0.01):
                await house.service.let_go("A")
            assert house.resident == "A"
        assert house.answers[0].finished
        await house.until(lambda: house.resident is None)

    play(scenario)


def test_who_comes_after_a_model_was_let_go_of_keeps_it() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            await house.service.let_go("A")
            assert (await house.ask("A", 1)).finished
        await trio.sleep(59)
        assert house.resident == "A"
        await house.until(lambda: house.resident is None)

    play(scenario, rules=replace(ON_DEMAND, idle_timeout_s=60.0))


def test_a_parked_model_that_is_let_go_of_leaves_the_host_too_unless_it_is_pinned() -> None:
    async def scenario(house: House) -> None:
        for model in ("A", "P"):
            assert (await house.ask(model)).finished
            assert await house.service.let_go(model) == model
        assert parked(house) == ["A", "P"], "it leaves the device first"
        for model in ("A", "P"):
            assert await house.service.let_go(model) == model
        assert parked(house) == ["P"]
        assert (await house.ask("A")).finished
        assert await house.service.let_go(None) == "A"
        assert parked(house) == ["P", "A"], "nobody named it"
        assert await house.service.let_go(None) == "A"
        assert parked(house) == ["P", "A"]

    play(scenario, models=(spec("A"), spec("P", pin=True)))


def test_a_parked_model_that_is_on_its_way_back_is_not_let_go_of() -> None:
    async def scenario(house: House) -> None:
        for model in ("A", "B"):
            assert (await house.ask(model)).finished
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await house.until(lambda: house.controller.occupancy.coming is not None)
            await house.service.let_go("A")
            assert parked(house) == ["A"]
        assert house.answers[-1].finished

    play(scenario)


def test_letting_go_of_a_model_that_is_not_there_changes_nothing() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert await house.service.let_go("B") == "B"
        assert house.resident == "A"
        assert house.controller.snapshot().loads == 1
        with pytest.raises(ModelNotFound):
            await house.service.let_go("nobody")

    play(scenario)


def test_letting_go_waits_for_no_other_model() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.controller.occupancy.coming is not None)
            with trio.fail_after(0.01):
                await house.service.let_go("A")
        assert house.resident == "B"

    play(scenario)


def test_who_may_not_swap_may_not_let_go() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {}, "request")
        with pytest.raises(NotPermitted):
            await house.service.let_go("A")
        assert house.resident == "A"

    play(scenario, rules=SwapRules(), startup="A")


def test_a_model_is_pulled_to_the_disk_and_no_further() -> None:
    async def scenario(house: House) -> None:
        told: list[float] = []
        id = await house.service.pull("far/away", lambda _, value: told.append(value))
        assert (id, house.catalog.fetched) == ("far/away", ["far/away"])
        assert told == sorted(told)
        assert len(told) == 10
        assert (house.resident, house.controller.snapshot().loads) == (None, 0)
        told.clear()
        assert await house.service.pull("far/away", lambda _, value: told.append(value)) == id
        assert told == [], "it is here already"

    play(scenario, models=(spec("A"), ABSENT))


def test_a_pull_that_fails_or_is_not_permitted_says_which() -> None:
    async def scenario(house: House) -> None:
        house.catalog.fetch_errors["far/away"] = DownloadFailed("interrupted")
        with pytest.raises(DownloadFailed):
            await house.service.pull("far/away", lambda _, __: None)
        with pytest.raises(NotPermitted, match="--allow-download"):
            await house.service.pull("far/other", lambda _, __: None)

    play(scenario, models=(ABSENT,))


def test_a_model_is_described_as_the_engine_floor_knows_it() -> None:
    engine = EngineConfig(chat_template="{{ tools }}")
    models = (spec("A", engine=engine), spec("B"), spec("E", engine=engine, task="embed"), ABSENT)

    async def scenario(house: House) -> None:
        described = await house.service.describe("A")
        assert described.listing.id == "A"
        assert described.chat == ChatFacts(template="{{ tools }}", tools=True)
        for other in ("B", "E", "far/away"):
            assert (await house.service.describe(other)).chat == ChatFacts()
        with pytest.raises(ModelNotFound):
            await house.service.describe("nobody")
        house.registry.script.render_errors["B"] = CheckpointRefused("no tokenizer")
        with pytest.raises(CheckpointRefused):
            await house.service.describe("B")

    play(scenario, models=models)
