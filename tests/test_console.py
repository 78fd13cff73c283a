from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hotswap.config import ServerConfig, Settings, SwapRules
from hotswap.console import LoadProgress, banner, print_error, print_warning
from hotswap.contracts.engines import EngineStats
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot
from tests.api.stage import READY

URL = "http://127.0.0.1:8000"


def listing(id: str) -> ModelListing:
    return ModelListing(
        id=id, aliases=(), created_unix=0, owned_by="x", status="unloaded", max_model_len=None
    )


def snapshot(resident: str | None = None) -> SwapSnapshot:
    engine = EngineStats(
        generation=1,
        model=resident or "",
        running=0,
        waiting=0,
        steps=0,
        tokens=0,
        last_progress=0.0,
        alive=True,
        details={"device": "cuda:0", "dtype": "bfloat16"},
    )
    return replace(
        READY,
        phase=SwapPhase.READY if resident else SwapPhase.EMPTY,
        resident=ModelSpec(id=resident, path=None) if resident else None,
        engine=engine if resident else None,
    )


@pytest.mark.parametrize("say", [print_error, print_warning])
def test_what_is_said_at_start_is_one_line(
    say: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    say("one\ntwo\r\nthree")
    assert capsys.readouterr().err.endswith(": one two three\n")


NASTY = "bad\nname\x1b[31m\u202e\udcff"


@pytest.mark.parametrize("say", [print_error, print_warning])
def test_no_name_steers_the_terminal(
    say: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"no model {NASTY}")
    assert capsys.readouterr().err.endswith("no model bad name\\x1b[31m\\u202e\\udcff\n")


class TestBanner:
    @pytest.mark.parametrize("loaded", [NASTY, None])
    def test_no_name_steers_the_terminal(self, loaded: str | None) -> None:
        text = banner(Settings(), URL, snapshot(loaded), [listing(NASTY), listing("x" * 300)])
        assert all(line.isprintable() for line in text.splitlines())
        assert f"models    bad\\nname\\x1b[31m\\u202e\\udcff, {'x' * 200}\n" in text

    def test_it_says_what_is_served_where_and_how_to_ask(self) -> None:
        text = banner(Settings(), URL, snapshot("org/m"), [listing("org/m")])
        assert URL in text
        assert "cuda:0, bfloat16" in text
        assert f"curl {URL}/v1/chat/completions" in text
        assert '"model": "org/m"' in text
        assert "Authorization" not in text

    def test_an_empty_server_says_that_the_first_request_brings_its_model(self) -> None:
        settings = Settings(swap=SwapRules(on_demand=True))
        text = banner(settings, URL, snapshot(), [listing("a"), listing("b")])
        assert "a, b" in text
        assert "the first request brings its model" in text
        assert '"model": "a"' in text

    def test_a_long_list_is_cut(self) -> None:
        text = banner(Settings(), URL, snapshot(), [listing(f"m{n}") for n in range(50)])
        assert "and 42 more" in text

    def test_keys_are_asked_for_and_never_shown(self) -> None:
        server = ServerConfig(api_keys=("sesame",), admin_key="abracadabra")
        text = banner(Settings(server=server), URL, snapshot("m"), [listing("m")])
        assert "Authorization: Bearer" in text
        assert "sesame" not in text
        assert "abracadabra" not in text


def shown(readings: list[tuple[str, str, float]], **options: Any) -> str:
    stream = io.StringIO()
    with LoadProgress(stream, **options) as progress:
        for model, stage, value in readings:
            progress.show(Progress(model=model, stage=stage, value=value))
    return stream.getvalue()


class TestLoadProgress:
    def test_elsewhere_than_on_a_terminal_each_tenth_and_each_stage_is_a_line(self) -> None:
        readings = [("m", "reading", n / 100) for n in range(25)]
        readings += [("m", "starting", 0.25), ("m", "starting", 0.26), ("b", "reading", 0.0)]
        assert shown(readings).splitlines() == [
            "loading m: reading 0%",
            "loading m: reading 10%",
            "loading m: reading 20%",
            "loading m: starting 25%",
            "loading b: reading 0%",
        ]

    def test_on_a_terminal_it_is_one_bar_that_goes_away(self) -> None:
        readings = [("m", "reading", 0.1), ("m", "starting", 0.99), ("m", "starting", 1.0)]
        text = shown(readings, on_terminal=True)
        assert "\rloading m: reading  10%" in text
        assert "\rloading m: starting 100%" in text
        assert "\n" not in text
        assert text.rstrip(" \r").endswith("00:00")

    @pytest.mark.parametrize("on_terminal", [False, True])
    def test_no_name_steers_the_terminal(self, on_terminal: bool) -> None:
        text = shown([(NASTY, "reading", 0.5)], on_terminal=on_terminal)
        assert "loading bad\\nname\\x1b[31m\\u202e\\udcff: reading" in text
        assert not {"\x1b", "\u202e"} & set(text)

    def test_log_lines_do_not_run_into_the_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [logging.StreamHandler(stream)])
        with LoadProgress(stream, on_terminal=True) as progress:
            progress.show(Progress(model="m", stage="reading", value=0.1))
            logging.getLogger("hotswap").warning("something")
        assert "\rsomething\n" in stream.getvalue()

    def test_nothing_to_show_shows_nothing(self) -> None:
        assert shown([], on_terminal=True) == ""
