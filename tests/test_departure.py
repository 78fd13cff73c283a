"""When the process begins again, with what, and when it ends instead."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

from hotswap import departure
from hotswap.config import ServerConfig
from hotswap.contracts.models import ModelSpec
from hotswap.departure import RESTART_WINDOW_S, RESTARTS_TOLERATED, Departure, too_often
from hotswap.handover import Image, Note
from hotswap.model_settings import apply_overrides
from hotswap.watchdog import Fault, Problem

HUNG = Problem("the engine hangs", Fault.HANG)
A = ModelSpec(id="A", path=Path("models/A"), max_position_embeddings=100)


class Left(BaseException):
    """In the place of what never returns."""


@dataclass
class Exit(Left):
    code: int


@dataclass
class Again(Left):
    note: Note
    environment: Mapping[str, str]


PLACES = {"org/m": "/models/org/m"}


@pytest.fixture(autouse=True)
def ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(listener: socket.socket, note: Note, environment: Mapping[str, str]) -> NoReturn:
        raise Again(note, environment)

    def leave(code: int) -> NoReturn:
        raise Exit(code)

    monkeypatch.setattr(departure, "hand_over", hand_over)
    monkeypatch.setattr(os, "_exit", leave)


def leaving(
    note: Note | None = None,
    model: ModelSpec | None = A,
    rules: ServerConfig | None = None,
    problem: Problem = HUNG,
    *,
    for_good: bool = False,
) -> Left:
    with socket.socket() as listener:
        way_out = Departure(
            image=Image(environment={"HOME": "/home/me"}, note=note),
            listener=listener,
            rules=lambda: rules or ServerConfig(),
            resident=lambda: model,
            engine=lambda: None,
            startup_places=lambda: PLACES,
            for_good=for_good,
        )
        with pytest.raises(Left) as left:
            way_out.leave(problem)
    return left.value


def test_it_begins_again_with_the_model_and_the_settings_that_its_load_brought() -> None:
    spec = apply_overrides(A, {"max_num_seqs": 5}, "config_file")
    spec = apply_overrides(spec, {"max_model_len": 7, "sampling": {"top_k": 3}}, "request")
    left = leaving(model=spec)
    assert isinstance(left, Again)
    assert (left.note.model, left.note.reason) == ("A", "the engine hangs")
    assert left.note.settings == {"request": {"max_model_len": 7, "sampling": {"top_k": 3}}}
    assert time.monotonic() - left.note.restarts[0] < 60.0
    assert left.environment == {"HOME": "/home/me"}


def test_an_empty_device_stays_empty() -> None:
    left = leaving(model=None)
    assert isinstance(left, Again)
    assert left.note.model is None


@pytest.mark.parametrize(
    ("fault", "code"), [(Fault.DEVICE_LOST, 70), (Fault.HANG, 71)], ids=["lost", "hang"]
)
def test_without_self_restart_the_exit_code_tells_the_fault(fault: Fault, code: int) -> None:
    rules = ServerConfig(no_self_restart=True)
    left = leaving(rules=rules, problem=replace(HUNG, fault=fault))
    assert isinstance(left, Exit)
    assert left.code == code


def test_a_server_that_was_told_to_stop_does_not_begin_again() -> None:
    left = leaving(for_good=True)
    assert isinstance(left, Exit)


def test_where_the_start_up_model_came_from_is_known_to_the_next_image() -> None:
    left = leaving()
    assert isinstance(left, Again)
    assert left.note.startup_places == PLACES


def test_restarts_are_counted_from_image_to_image_until_there_are_too_many() -> None:
    note: Note | None = None
    for number in range(1, RESTARTS_TOLERATED + 1):
        left = leaving(note)
        assert isinstance(left, Again), f"restart {number}"
        note = left.note
        assert len(note.restarts) == note.restarted == number
    last = leaving(note)
    assert isinstance(last, Exit)
    assert last.code == Fault.HANG


def test_restarts_that_are_long_past_do_not_count() -> None:
    past = time.monotonic() - 2 * RESTART_WINDOW_S
    left = leaving(Note(restarts=(past,) * RESTARTS_TOLERATED, restarted=9))
    assert isinstance(left, Again)
    assert len(left.note.restarts) == RESTARTS_TOLERATED
    assert left.note.restarted == 10, "all of them are counted"


@pytest.mark.parametrize(
    ("ages_s", "hang_s", "verdict"),
    [
        ((), 60.0, False),
        ((1.0, 2.0), 60.0, False),
        ((1.0, 2.0, 3.0), 60.0, True),
        ((1.0, 2.0, RESTART_WINDOW_S + 181.0), 60.0, False),
        ((1.0, 500.0, 1000.0), 600.0, True),  # each hang alone took 600 s to be noticed
    ],
)
def test_too_often(ages_s: tuple[float, ...], hang_s: float, verdict: bool) -> None:
    assert too_often([10_000.0 - age_s for age_s in ages_s], 10_000.0, hang_s) is verdict


def test_an_interpreter_that_is_gone_is_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(*_: object) -> NoReturn:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(departure, "hand_over", hand_over)
    left = leaving()
    assert isinstance(left, Exit)
    assert left.code == Fault.HANG
