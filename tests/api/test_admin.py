from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import anyio
import pytest
from trio.testing import MockClock

from hotswap.api import uploads
from hotswap.config import parse_yaml
from hotswap.contracts.engines import EngineStats, ParkedModel
from hotswap.contracts.progress import Progress
from hotswap.contracts.reports import Estimate, LoadForecast, LoadReport, MemoryReport, UnloadReport
from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import (
    CheckpointRefused,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    NotLoaded,
    SwapInProgress,
)
from tests.api.stage import SUMS, TALES, Exchange, ScriptedService, app_of, ask, service_with

T = TypeVar("T")

LOAD = "/v1/load_model"
UNLOAD = "/v1/unload_model"
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=xx"}
ENGINE = EngineStats(
    generation=1,
    model="m",
    running=0,
    waiting=0,
    steps=0,
    tokens=0,
    last_progress=0.0,
    alive=True,
    details={"device": "cuda:0"},
)
SMALL = Estimate(
    weights_bytes=7, kv_bytes=2, device_free_bytes=1, host_free_bytes=9, fits=False, reason="no"
)


def field(name: str, value: str, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return (
        f'--xx\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{value}\r\n'
    ).encode(errors="surrogateescape")


def form(*fields: bytes) -> bytes:
    return b"".join(fields) + b"--xx--\r\n"


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (b"", (None, {}, "request")),
        (b" \n", (None, {}, "request")),
        ({}, (None, {}, "request")),
        ({"model": None}, (None, {}, "request")),
        ({"model": ""}, (None, {}, "request")),
        ({"model": "m"}, ("m", {}, "request")),
        ({"model": "m", "config": {"dtype": "float32"}}, ("m", {"dtype": "float32"}, "request")),
        ({"model": "m", "config": None}, ("m", {}, "request")),
        ({"config": {"max_model_len": 64}}, (None, {"max_model_len": 64}, "request")),
        ({"model": "m", "max_model_len": 4096}, ("m", {"max_model_len": 4096}, "request")),
        ({"max_model_len": 4096}, (None, {"max_model_len": 4096}, "request")),
    ],
)
def test_load_model_takes_nothing_nested_and_flat(body: Any, order: tuple[Any, ...]) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", LOAD, body)
    assert exchange.status == 200
    assert service.orders == [("load", *order)]


@pytest.mark.parametrize(
    ("parts", "order"),
    [
        ([field("config", "max_model_len: 64\n", "c.yaml")], (None, {"max_model_len": 64})),
        (
            [field("model", "m"), field("config", "dtype: float32\n", "c.yaml")],
            ("m", {"dtype": "float32"}),
        ),
        ([field("config", "model: m\ndtype: auto\n", "c.yaml")], ("m", {"dtype": "auto"})),
        ([field("config", "model: m\n", "c.yaml"), field("model", "m")], ("m", {})),
        ([field("config", "dtype: auto")], (None, {"dtype": "auto"})),
        ([field("config", "", "c.yaml")], (None, {})),
        ([field("model", "m")], ("m", {})),
    ],
)
def test_load_model_takes_an_uploaded_file(parts: list[bytes], order: tuple[Any, ...]) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", LOAD, form(*parts), BOUNDARY)
    assert exchange.status == 200, exchange.body
    assert service.orders == [("load", *order, "uploaded")]


def test_load_model_answers_as_its_clients_expect() -> None:
    assert ask(app_of(), "POST", LOAD).json == {
        "status": "success",
        "message": "Model loaded successfully in 44.03s.",
        "load_time_s": 44.031,
        "model": "hotswap/sums",
        "already_loaded": False,
        "config_applied": {"max_model_len": {"value": 64, "source": "request"}},
        "previous_model": "hotswap/tales",
        "timings": {"prepare": 44.0},
        "memory": None,
    }


@pytest.mark.parametrize(
    ("leaked_bytes", "told"),
    [(0, ""), (5, " 5 bytes of the memory of the model before it are still held.")],
)
def test_load_model_tells_what_the_model_before_it_gave_back(leaked_bytes: int, told: str) -> None:
    service = ScriptedService()
    assert isinstance(service.load_result, LoadReport)
    memory = MemoryReport(
        before_bytes=100, after_bytes=leaked_bytes, baseline_bytes=0, leaked_bytes=leaked_bytes
    )
    service.load_result = replace(service.load_result, memory=memory)
    answer = ask(app_of(service), "POST", LOAD).json
    assert answer["message"] == f"Model loaded successfully in 44.03s.{told}"
    assert answer["memory"] == asdict(memory)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'"m"', None),
        ({"model": 5}, "model"),
        ({"model": ["m"]}, "model"),
        ({"model": "m", "config": []}, "config"),
        ({"model": "m", "config": "x"}, "config"),
        ({"model": "m", "config": {}, "dtype": "auto"}, "dtype"),
        (b'{"model": "a", "model": "b"}', None),
    ],
)
def test_a_malformed_order_loads_nothing(body: Any, param: str | None) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", LOAD, body)
    assert exchange.status == 400
    assert exchange.error["param"] == param
    assert service.orders == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage",
        form(),
        field("model", "m") + field("config", "max_model_len: 64", "c.yaml")[:-10],
        form(field("config", "a: [", "c.yaml")),
        form(field("config", "- a\n", "c.yaml")),
        form(field("config", "just text", "c.yaml")),
        form(field("config", "model: 5", "c.yaml")),
        form(field("config", "model: a", "c.yaml"), field("model", "b")),
        form(field("config", "", "a.yaml"), field("config", "", "b.yaml")),
        form(field("model", "a"), field("model", "b")),
        form(field("other", "a")),
        form(field("config", "a\udcff", "c.yaml")),
        form(field("config", "a: &x 1\nb: *x", "c.yaml")),
        form(field("a", "1"), field("b", "2"), field("c", "3")),
        form(field("config", "x: 1 #" + "x" * (64 << 10), "c.yaml")),
        form(field("config", "x: 1 #" + "x" * (64 << 10))),
        form(field("config", "x: 1"), field("model", "x" * (65 << 10))),
        b"--xx\r\n\r\nno name\r\n--xx--\r\n",
        b"--xx\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xx--\r\n",
        b"--xx\r\nBad Header\r\n\r\nx\r\n--xx--\r\n",
    ],
)
def test_a_malformed_upload_loads_nothing(raw: bytes) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", LOAD, raw, BOUNDARY)
    assert exchange.status == 400
    assert exchange.error["code"] == "invalid_request"
    assert service.orders == []


def test_a_name_that_is_no_text_is_an_unknown_name() -> None:
    service = ScriptedService()
    raw = form(field("config", ""), field("model", "\udcff", "model.txt"))
    assert ask(app_of(service), "POST", LOAD, raw, BOUNDARY).status == 200
    assert service.orders == [("load", "\ufffd", {}, "uploaded")]


@pytest.mark.parametrize("charset", ["rot13", "idna", "undefined", "zlib_codec", "none"])
def test_an_odd_charset_breaks_nothing(charset: str) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary=xx; charset={charset}"}
    raw = form(field("config", ""), field("model", "m\udcff" + "x" * 99))
    assert ask(app_of(), "POST", LOAD, raw, kind).status in (200, 400)


def test_a_file_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def parse(text: bytes, what: str) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return parse_yaml(text, what)

    monkeypatch.setattr(uploads, "parse_yaml", parse)
    raw = form(field("config", "dtype: auto", "c.yaml"))
    assert ask(app_of(), "POST", LOAD, raw, BOUNDARY).status == 200
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_an_upload_too_large_is_refused() -> None:
    raw = form(field("config", "x" * (600 << 10), "c.yaml"))
    assert ask(app_of(), "POST", LOAD, raw, BOUNDARY).status == 413


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary="])
def test_an_upload_without_a_boundary_is_refused(kind: str) -> None:
    raw = form(field("config", "a: 1", "c.yaml"))
    assert ask(app_of(), "POST", LOAD, raw, {"Content-Type": kind}).status == 400


@pytest.mark.parametrize("written", ["true", "True", "1"])
def test_a_dry_run_says_what_a_load_would_do(written: str) -> None:
    service = ScriptedService()
    body = {"model": "m", "config": {"max_model_len": 64}}
    exchange = ask(app_of(service), "POST", f"{LOAD}?dry_run={written}", body)
    assert exchange.status == 200
    assert exchange.json == {
        "status": "info",
        "message": "Model would fit; hotswap/tales would go.",
        "dry_run": True,
        "model": "hotswap/sums",
        "already_loaded": False,
        "fits": True,
        "reason": None,
        "leaves": "hotswap/tales",
        "expected_s": 1.5,
        "weights_bytes": 700,
        "kv_bytes": 200,
        "device_free_bytes": 1000,
        "host_free_bytes": 5000,
        "spread": None,
    }
    assert service.orders == [("forecast", "m", {"max_model_len": 64}, "request")]


def test_a_dry_run_says_where_a_model_would_be_spread() -> None:
    service = ScriptedService()
    assert isinstance(service.forecast_result, LoadForecast)
    places = {"cuda:0": 5, "cuda:1": 1, "cpu": 1}
    spread = replace(service.forecast_result.estimate, spread=places)
    service.forecast_result = replace(service.forecast_result, estimate=spread)
    assert ask(app_of(service), "POST", f"{LOAD}?dry_run=true").json["spread"] == places


def test_a_dry_run_takes_an_uploaded_file() -> None:
    service = ScriptedService()
    raw = form(field("config", "max_model_len: 64\n", "c.yaml"))
    assert ask(app_of(service), "POST", f"{LOAD}?dry_run=true", raw, BOUNDARY).status == 200
    assert service.orders == [("forecast", None, {"max_model_len": 64}, "uploaded")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"already_loaded": True}, "Model is already loaded."),
        ({"leaves": None}, "Model would fit."),
        ({"estimate": SMALL}, "Model would not fit."),
    ],
)
def test_a_dry_run_says_it_in_words(changes: dict[str, Any], message: str) -> None:
    service = ScriptedService()
    assert isinstance(service.forecast_result, LoadForecast)
    service.forecast_result = replace(service.forecast_result, **changes)
    answer = ask(app_of(service), "POST", f"{LOAD}?dry_run=true").json
    assert answer["message"] == message
    assert answer["fits"] == service.forecast_result.estimate.fits


def test_what_is_no_dry_run_loads_and_what_is_neither_is_refused() -> None:
    for written in ("false", "0"):
        service = ScriptedService()
        assert ask(app_of(service), "POST", f"{LOAD}?dry_run={written}").status == 200
        assert [order[0] for order in service.orders] == ["load"]
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", f"{LOAD}?dry_run=maybe")
    assert (exchange.status, exchange.error["param"]) == (400, "dry_run")
    assert service.orders == []


def test_a_dry_run_fails_as_the_load_would() -> None:
    service = ScriptedService(forecast_result=ModelNotFound("none"))
    exchange = ask(app_of(service), "POST", f"{LOAD}?dry_run=true", {"model": "x"})
    assert (exchange.status, exchange.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("", (True, "drain")),
        ("?level=1", (True, "drain")),
        ("?level=2", (False, "drain")),
        ("?level=2&mode=abort", (False, "abort")),
        ("?mode=wait", (True, "drain")),
    ],
)
def test_sleep_answers_as_vllms_does(query: str, order: tuple[bool, str]) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", f"/sleep{query}")
    assert exchange.status == 200
    assert service.orders == [("sleep", *order)]


@pytest.mark.parametrize(
    ("query", "body", "order"),
    [
        ("", b" ", (True, "drain")),
        ("", {}, (True, "drain")),
        ("", {"level": None, "mode": None}, (True, "drain")),
        ("", {"level": 2}, (False, "drain")),
        ("", {"level": 1, "mode": "abort"}, (True, "abort")),
        ("?level=2", {"mode": "abort"}, (False, "abort")),
        ("?level=2", {"level": 2}, (False, "drain")),
    ],
)
def test_sleep_takes_in_its_body_what_it_takes_in_its_query(
    query: str, body: Any, order: tuple[bool, str]
) -> None:
    service = ScriptedService()
    assert ask(app_of(service), "POST", f"/sleep{query}", body).status == 200
    assert service.orders == [("sleep", *order)]


@pytest.mark.parametrize(
    ("query", "parked", "let_go"),
    [("", True, False), ("", False, True), ("?level=2", False, False)],
)
def test_sleep_answers_as_an_unload_does_and_says_where_a_model_was_not_parked(
    query: str, parked: bool, let_go: bool
) -> None:
    report = UnloadReport(model="m", total_time_s=1.284, parked=parked)
    service = ScriptedService(unload_result=report)
    unloaded = ask(app_of(service), "POST", UNLOAD).json
    slept = ask(app_of(service), "POST", f"/sleep{query}").json
    assert slept["parked"] is parked
    assert ("let go of" in slept["message"]) is let_go
    assert slept["message"].startswith(unloaded["message"])
    assert {**slept, "message": unloaded["message"]} == unloaded


def test_where_nothing_is_there_to_sleep_that_is_said() -> None:
    service = ScriptedService(unload_result=UnloadReport(model=None))
    assert ask(app_of(service), "POST", "/sleep").json == {
        "status": "info",
        "message": "No model is loaded.",
    }


@pytest.mark.parametrize(
    "query", ["", "?tags=weights", "?tags=kv_cache", "?tags=weights&tags=kv_cache"]
)
def test_wake_up_answers_when_the_model_serves_whatever_part_is_asked_for(query: str) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", f"/wake_up{query}")
    assert (exchange.status, exchange.body) == (200, b"")
    assert service.orders == [("wake_up",)]
    service = ScriptedService()
    for body in ({"tags": ["weights"]}, {"tags": ["kv_cache", "weights"]}, {"tags": None}, {}):
        assert ask(app_of(service), "POST", "/wake_up", body).status == 200
    assert service.orders == [("wake_up",)] * 4


@pytest.mark.parametrize(
    ("target", "body", "param"),
    [
        ("/sleep?level=3", b"", "level"),
        ("/sleep?level=x", b"", "level"),
        ("/sleep?level=", b"", "level"),
        ("/sleep?mode=keep", b"", "mode"),
        ("/sleep?model=m", b"", "model"),
        ("/sleep", {"level": 3}, "level"),
        ("/sleep", {"level": "1"}, "level"),
        ("/sleep", {"mode": "keep"}, "mode"),
        ("/sleep", {"model": "m"}, "model"),
        ("/sleep?level=1", {"level": 2}, "level"),
        ("/sleep", b"level=2", None),
        ("/sleep", b"[]", None),
        ("/wake_up?tags=lora", b"", "tags"),
        ("/wake_up?tags=weights&tags=lora", b"", "tags"),
        ("/wake_up?level=1", b"", "level"),
        ("/wake_up", {"tags": ["lora"]}, "tags[0]"),
        ("/wake_up", {"tags": "weights"}, "tags"),
        ("/wake_up", {"model": "m"}, "model"),
        ("/wake_up", b"{", None),
    ],
)
def test_what_they_cannot_do_is_refused_by_name(target: str, body: Any, param: str | None) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", target, body)
    assert (exchange.status, exchange.error["param"]) == (400, param)
    assert service.orders == []


def test_sleep_and_wake_up_fail_as_unload_and_load_do() -> None:
    service = ScriptedService(
        unload_result=SwapInProgress("busy"), load_result=ModelLoadFailed("broke")
    )
    assert ask(app_of(service), "POST", "/sleep").error["code"] == "swap_in_progress"
    assert ask(app_of(service), "POST", "/wake_up").error["code"] == "model_load_failed"


def test_a_sleep_that_calls_a_load_off_unloads_nothing_and_says_so() -> None:
    report = UnloadReport(model="a", total_time_s=1.234, parked=True, called_off="b")
    service = ScriptedService(unload_result=report)
    answer = ask(app_of(service), "POST", "/sleep").json
    assert answer["message"] == "Loading 'b' was called off in 1.23s. 'a' sleeps."
    assert (answer["model"], answer["total_time_s"]) == ("a", 1.234)


def test_of_a_first_load_that_a_sleep_calls_off_nothing_was_let_go_of() -> None:
    service = ScriptedService(unload_result=UnloadReport(model="b", called_off="b"))
    answer = ask(app_of(service), "POST", "/sleep").json
    assert answer["message"] == "Loading 'b' was called off. 'b' sleeps."


def test_an_unload_of_what_is_on_its_way_says_that_it_was_called_off() -> None:
    service = ScriptedService(unload_result=UnloadReport(model="b", called_off="b"))
    answer = ask(app_of(service), "POST", UNLOAD).json
    assert answer["message"] == "Loading 'b' was called off."


@pytest.mark.parametrize("phase", list(SwapPhase))
@pytest.mark.parametrize(
    ("fields", "there_is_one"),
    [
        ({}, False),
        ({"asleep": "m"}, True),
        ({"parked": (ParkedModel(model="m", bytes=1),), "last_resident": "m"}, True),
        ({"parked": (ParkedModel(model="m", bytes=1),), "last_resident": "n"}, False),
        ({"last_resident": "m"}, False),
    ],
)
def test_it_sleeps_while_there_is_a_model_to_wake_up_and_none_on_its_way(
    fields: dict[str, Any], there_is_one: bool, phase: SwapPhase
) -> None:
    answer = ask(app_of(service_with(phase=phase, **fields)), "GET", "/is_sleeping")
    sleeps = there_is_one and phase is SwapPhase.EMPTY
    assert (answer.status, answer.json) == (200, {"is_sleeping": sleeps})


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (f"{LOAD}?dry_run=true&dry_run=false", "dry_run"),
        (f"{LOAD}?dry_run=true&dry_run=true", "dry_run"),
        (f"{LOAD}?dry_run=perhaps", "dry_run"),
        (f"{LOAD}?dry_run=", "dry_run"),
        ("/sleep?level=1&level=2", "level"),
        ("/sleep?mode=abort&mode=wait", "mode"),
    ],
)
def test_a_query_that_says_two_things_or_nothing_known_is_refused(target: str, name: str) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", target)
    assert (exchange.status, exchange.error["param"]) == (400, name)
    assert exchange.error["message"].startswith(f"{name}: ")
    assert service.orders == []


@pytest.mark.parametrize("route", [LOAD, UNLOAD])
def test_an_order_in_the_query_is_refused_and_not_ignored(route: str) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", f"{route}?model=hotswap/tales")
    assert exchange.status == 400
    assert exchange.error["param"] == "model"
    assert "put it in the body" in exchange.error["message"]
    assert service.orders == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("max_model_len: too large", param="max_model_len"), 400, "invalid_request"),
        (ModelNotFound("none"), 404, "model_not_found"),
        (CheckpointRefused("a shard is missing"), 422, "model_load_failed"),
        (ModelLoadFailed("broke"), 503, "model_load_failed"),
        (InsufficientMemory("too big"), 503, "insufficient_memory"),
        (SwapInProgress("busy"), 503, "swap_in_progress"),
    ],
)
def test_a_load_that_fails_says_why(error: Exception, status: int, code: str) -> None:
    exchange = ask(app_of(ScriptedService(load_result=error)), "POST", LOAD)
    assert exchange.status == status
    assert exchange.error["code"] == code


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (b"", (None, None, "drain", True)),
        ({}, (None, None, "drain", True)),
        ({"drain_timeout_s": 1.5, "mode": "abort"}, (None, 1.5, "abort", True)),
        ({"model": "m", "mode": None, "park": None}, ("m", None, "drain", True)),
        ({"park": False}, (None, None, "drain", False)),
    ],
)
def test_unload_model_takes_its_options(body: Any, order: tuple[Any, ...]) -> None:
    service = ScriptedService()
    assert ask(app_of(service), "POST", UNLOAD, body).status == 200
    assert service.orders == [("unload", *order)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"drain_timeout_s": -1}, "drain_timeout_s"),
        ({"drain_timeout_s": "1"}, "drain_timeout_s"),
        ({"mode": "kill"}, "mode"),
        ({"park": "no"}, "park"),
        ({"model": 5}, "model"),
        ({"force": True}, "force"),
        (b"[]", None),
        (b"{", None),
    ],
)
def test_a_malformed_unload_unloads_nothing(body: Any, param: str | None) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", UNLOAD, body)
    assert exchange.status == 400
    assert exchange.error["param"] == param
    assert service.orders == []


def unloaded(
    leaked_bytes: int, engine: EngineStats | None = None, *, parked: bool = False
) -> dict[str, Any]:
    memory = MemoryReport(
        before_bytes=100, after_bytes=leaked_bytes, baseline_bytes=0, leaked_bytes=leaked_bytes
    )
    report = UnloadReport(
        model="m",
        drain_time_s=0.0,
        shutdown_time_s=1.28,
        total_time_s=1.28,
        memory=memory,
        parked=parked,
    )
    service = service_with(engine=engine)
    service.unload_result = report
    return dict(ask(app_of(service), "POST", UNLOAD).json)


def test_unload_model_answers_as_its_clients_expect() -> None:
    assert unloaded(0, ENGINE) == {
        "status": "success",
        "message": "Model unloaded successfully in 1.28s. All GPU memory was freed.",
        "model": "m",
        "drain_time_s": 0.0,
        "shutdown_time_s": 1.28,
        "total_time_s": 1.28,
        "memory": {
            "before_bytes": 100,
            "after_bytes": 0,
            "baseline_bytes": 0,
            "leaked_bytes": 0,
        },
        "parked": False,
    }


def test_a_parked_model_is_not_said_to_have_left_the_host() -> None:
    on_cuda, elsewhere = unloaded(0, ENGINE, parked=True), unloaded(0, parked=True)
    assert on_cuda["message"].endswith("All GPU memory was freed. It is kept in host memory.")
    assert elsewhere["message"].endswith("in 1.28s. It is kept in memory.")
    assert on_cuda["parked"] is elsewhere["parked"] is True


def test_memory_counts_as_freed_only_when_it_was() -> None:
    assert unloaded(0)["message"].endswith("All of its memory was freed.")
    assert unloaded(5, ENGINE)["message"].endswith("5 bytes of its memory are still held.")


def test_unloading_nothing_is_no_error() -> None:
    service = ScriptedService(unload_result=UnloadReport(model=None))
    exchange = ask(app_of(service), "POST", UNLOAD)
    assert exchange.status == 200
    assert exchange.json == {"status": "info", "message": "No model is loaded."}


def test_unloading_nothing_says_what_else_there_is_to_let_go_of() -> None:
    service = service_with(
        parked=(ParkedModel(model="a", bytes=1), ParkedModel(model="b", bytes=1))
    )
    service.unload_result = UnloadReport(model=None)
    assert ask(app_of(service), "POST", UNLOAD).json["message"] == (
        "No model is loaded. Parked in host memory: 'a', 'b'; "
        "an unload that names one lets go of it."
    )


def test_a_parked_model_that_was_let_go_of_is_not_said_to_have_left_the_device() -> None:
    service = ScriptedService(unload_result=UnloadReport(model="m", was_parked=True))
    answer = ask(app_of(service), "POST", UNLOAD, {"model": "m"}).json
    assert answer["message"] == "'m' was parked in host memory, and has been let go of."
    assert (answer["status"], answer["model"], answer["parked"]) == ("success", "m", False)


def test_models_load_answers_at_once() -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", "/models/load", {"model": "sums", "extra": 1})
    assert exchange.json == {"success": True}
    assert service.orders == [("request_load", "sums")]


@pytest.mark.parametrize("route", ["/models/load", "/models/unload"])
@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"model": None}, 400), ({"model": ""}, 400), ({"model": 5}, 400), (b"", 400)],
)
def test_models_load_and_unload_need_a_name(route: str, body: Any, status: int) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", route, body)
    assert exchange.status == status
    assert service.orders == []
    if body != b"":
        assert exchange.error["param"] == "model"


def test_models_load_of_an_unknown_model_is_404() -> None:
    assert ask(app_of(), "POST", "/models/load", {"model": "none"}).status == 404


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (UnloadReport(model="m"), 200),
        (NotLoaded("not loaded"), 400),
        (ModelNotFound("none"), 404),
    ],
)
def test_models_unload(result: Any, status: int) -> None:
    service = ScriptedService(unload_result=result)
    exchange = ask(app_of(service), "POST", "/models/unload", {"model": "m"})
    assert exchange.status == status
    assert service.orders == [("unload", "m", None, "drain", True)]
    if status == 200:
        assert exchange.json == {"success": True}


def statuses(exchange: Exchange) -> list[tuple[str, Any]]:
    events = [event for event in exchange.events if isinstance(event, dict)]
    assert all(event["event"] == "model_status" for event in events)
    return [(event["model"], event["data"]) for event in events]


def in_virtual_time(main: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(
        main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)}
    )


def test_requests_that_come_and_go_cost_the_feed_no_look_at_the_disk() -> None:
    service = ScriptedService()

    async def main() -> None:
        exchange = Exchange("GET", "/models/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: len(exchange.bodies) == 1)
            for leases in range(3):
                await anyio.sleep(1)
                service.become(leases=leases)
            await anyio.wait_all_tasks_blocked()
            assert service.surveys == 1
            exchange.leave()

    in_virtual_time(main)


def test_the_feed_looks_at_the_disk_once_a_second_at_most() -> None:
    service = ScriptedService()

    async def main() -> Exchange:
        exchange = Exchange("GET", "/models/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: len(exchange.bodies) == 1)
            for tenth in range(20):
                progress = Progress(model=TALES.id, stage="reading", value=tenth / 20)
                service.relist(SUMS, replace(TALES, progress=progress), progress=progress)
                await anyio.sleep(0.1)
            await exchange.until(lambda: b"0.95" in exchange.body)
            assert service.surveys <= 4
            exchange.leave()
        return exchange

    in_virtual_time(main)


@pytest.mark.parametrize("over", [SwapPhase.CLOSED, SwapPhase.FAILED])
def test_the_feed_ends_at_once_with_the_server(over: SwapPhase) -> None:
    service = ScriptedService()

    async def main() -> float:
        exchange = Exchange("GET", "/models/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: len(exchange.bodies) == 1)
            service.become(phase=SwapPhase.DRAINING)
            await anyio.wait_all_tasks_blocked()
            service.become(phase=over)
        return anyio.current_time()

    assert in_virtual_time(main) < 0.5


def test_the_feed_tells_the_whole_and_then_each_change() -> None:
    service = ScriptedService()
    half = replace(
        TALES, status="loading", progress=Progress(model=TALES.id, stage="reading", value=0.5)
    )
    failed = replace(TALES, error="a shard is missing")

    async def main() -> Exchange:
        exchange = Exchange("GET", "/models/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: len(exchange.bodies) == 1)
            service.relist(SUMS, half, progress=half.progress)
            await exchange.until(lambda: len(exchange.bodies) == 2)
            service.relist(SUMS, failed, progress=None)
            await exchange.until(lambda: len(exchange.bodies) == 3)
            service.become(phase=SwapPhase.CLOSED)
        return exchange

    exchange = in_virtual_time(main)
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert statuses(exchange) == [
        ("hotswap/sums", {"status": "loaded"}),
        ("hotswap/tales", {"status": "unloaded"}),
        ("hotswap/tales", {"status": "loading", "progress": {"stage": "reading", "value": 0.5}}),
        (
            "hotswap/tales",
            {"status": "unloaded", "failed": True, "error": "a shard is missing"},
        ),
    ]
    assert exchange.complete


def test_the_feed_stays_alive_and_ends_with_its_reader() -> None:
    service = ScriptedService()

    async def main() -> Exchange:
        exchange = Exchange("GET", "/models/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service, keepalive_s=0.005))
            await exchange.until(lambda: len(exchange.bodies) >= 3)
            exchange.leave()
        return exchange

    assert anyio.run(main).bodies[1].startswith(b":")
