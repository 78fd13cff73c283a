"""The log has a line for each change of what is on the device, for people and for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from hotswap.audit import Cause
from hotswap.config import SwapRules
from hotswap.errors import EngineFailed, ModelLoadFailed
from hotswap.logs import JsonFormatter
from hotswap.scripted import MODEL_BYTES
from tests.swap.house import House, play, spec


class Told(logging.Handler):
    """What was told, as machines read it and as people do."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(JsonFormatter().format(record)))
        self.texts.append(record.getMessage())

    def shown(self) -> list[tuple[str, str | None, str | None, str]]:
        return [(line["by"], line["from"], line["to"], line["result"]) for line in self.lines]


@pytest.fixture
def told() -> Iterator[Told]:
    handler, logger = Told(), logging.getLogger("hotswap.audit")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_swap_is_one_line_with_who_why_how_long_and_what_it_cost(told: Told) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A", request_id="first")
        await house.ask("B", request_id="second")

    play(scenario, models=(spec("A"), spec("B")))
    first, second, last = told.lines
    assert first["event"] == second["event"] == "swap"
    assert (first["by"], first["from"], first["to"]) == ("request first", None, "A")
    assert (second["by"], second["from"], second["to"]) == ("request second", "A", "B")
    assert second["why"] == "a request waits for it"
    assert (second["result"], second["failed"], second["level"]) == ("loaded", False, "info")
    assert second["seconds"]["prepare"] == pytest.approx(1.0, abs=0.01)
    assert second["seconds"]["start"] == pytest.approx(0.1, abs=0.01)
    assert {"queued", "drain", "teardown", "gap"} <= second["seconds"].keys()
    assert (second["freed_bytes"], second["leaked_bytes"]) == (MODEL_BYTES, 0)
    assert (first["freed_bytes"], first["leaked_bytes"]) == (None, None)
    assert (last["by"], last["from"], last["to"]) == ("shutdown", "B", None)
    assert told.texts[1].startswith(
        "swap 'A' -> 'B' by request second (a request waits for it): loaded [queued 0.000 s, "
    )
    assert told.texts[1].endswith(f"{MODEL_BYTES} bytes freed, 0 leaked]")


def test_a_model_that_does_not_start_and_the_one_that_comes_back_are_two_lines(told: Told) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_errors["B"] = ModelLoadFailed("no B")
        await house.ask("B", request_id="b")
        await house.until(lambda: house.resident == "A")

    play(scenario)
    assert told.shown()[1:3] == [
        ("request b", "A", "B", "no B"),
        ("request b", None, "A", "restored"),
    ]
    assert [line["level"] for line in told.lines[1:3]] == ["warning", "info"]
    assert told.lines[2]["why"] == "'B' did not come"


def test_a_model_that_cannot_be_prepared_is_told_with_the_one_that_stays(told: Told) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.prepare_errors["B"] = ModelLoadFailed("broken:\nin two lines")
        await house.ask("B")
        assert (await house.ask("A")).finished

    play(scenario)
    assert told.shown()[1] == ("request", "A", "B", "broken:\nin two lines")
    assert "broken: in two lines" in told.texts[1], "one line for people"
    assert told.lines[1]["failed"] is True


@pytest.mark.parametrize(
    ("how", "by"), [("by hand", "operator"), ("idle", "idle time"), ("failure", "engine")]
)
def test_who_made_a_model_leave_is_told(told: Told, how: str, by: str) -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {}, "request")
        if how == "by hand":
            await house.service.unload()
        elif how == "failure":
            house.registry.engines[-1].fail(EngineFailed("a step raised"))
            await house.until(lambda: len(house.registry.started) == 2)
        await house.until(lambda: how == "failure" or house.phase == "empty")

    play(scenario, SwapRules(on_demand=True, idle_timeout_s=5.0))
    assert told.shown()[:2] == [("operator", None, "A", "loaded"), (by, "A", None, "unloaded")]
    whys = {"by hand": "asked for by hand", "idle": "nobody has used it for 5 s"}
    assert told.lines[1]["why"] == whys.get(how, "a step raised")


def test_a_load_that_is_called_off_while_the_old_model_leaves_is_told(told: Told) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_s = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading" and house.resident is None)
            await house.service.unload("B")
        await house.until(lambda: house.resident == "A")

    play(scenario)
    assert told.shown()[1:3] == [
        ("request", "A", "B", "called off"),
        ("request", None, "A", "restored"),
    ]


def test_the_cause_of_a_load_that_goes_on_is_the_request_that_gave_up(told: Told) -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_s = 10.0
        await house.ask("A", request_id="slow")
        await house.until(lambda: house.resident == "A")
        await house.controller.orders.load(spec("B"), Cause("watchdog", "the device was lost"))

    play(scenario, SwapRules(on_demand=True, swap_timeout_s=2.0))
    assert told.shown()[:2] == [
        ("request slow", None, "A", "loaded"),
        ("watchdog", "A", "B", "loaded"),
    ]
