from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.api.status import describe
from hotswap.contracts.engines import EngineStats, ParkedModel
from hotswap.contracts.models import AppliedSetting, ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.contracts.reports import MemoryReport
from hotswap.contracts.snapshot import LoadFailure, SwapPhase
from tests.api.stage import READY, Problems, app_of, ask, service_with

BUSY: dict[str, Any] = {
    "resident": ModelSpec(
        id="hotswap/sums",
        path=Path("/secret/place"),
        applied={"dtype": AppliedSetting("float32", "request")},
    ),
    "progress": Progress(model="b", stage="reading", value=0.5, eta_s=2.0),
    "waiting": {"b": 2, "c": 1},
    "leases": 4,
    "parked": (ParkedModel(model="d", bytes=100),),
    "failures": {"e": LoadFailure(model="e", message="broke", code="x", retry_at=50.0)},
    "last_error": "e: broke",
    "engine": EngineStats(
        generation=3,
        model="hotswap/sums",
        running=4,
        waiting=0,
        steps=10,
        tokens=40,
        last_progress=40.0,
        alive=True,
        details={"device": "cpu"},
    ),
    "timings": {"prepare": 1.0},
    "memory": MemoryReport(before_bytes=1, after_bytes=0, baseline_bytes=0, leaked_bytes=0),
}


def test_the_process_lives() -> None:
    app = app_of(service_with(phase=SwapPhase.FAILED, serviceable=False))
    assert ask(app, "GET", "/livez").status == 200


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_health_tells_what_is_going_on(path: str) -> None:
    exchange = ask(app_of(service_with(**BUSY)), "GET", path)
    assert exchange.status == 200
    assert exchange.json == {
        "status": "ok",
        "phase": "ready",
        "model": "hotswap/sums",
        "progress": {"model": "b", "stage": "reading", "value": 0.5, "eta_s": 2.0},
        "leases": 4,
        "queue": 3,
        "last_error": "e: broke",
        "problems": [],
    }


@pytest.mark.parametrize("path", ["/readyz", "/health"])
@pytest.mark.parametrize(
    ("fields", "problems", "code"),
    [
        ({}, ("the engine hangs",), "engine_failed"),
        ({"serviceable": False, "phase": SwapPhase.EMPTY}, (), "model_unloaded"),
        ({"serviceable": False, "phase": SwapPhase.CLOSED}, (), "shutting_down"),
        ({"serviceable": False, "phase": SwapPhase.FAILED}, (), "engine_failed"),
        (
            {
                "serviceable": False,
                "phase": SwapPhase.LOADING,
                "progress": BUSY["progress"],
            },
            (),
            "model_loading",
        ),
    ],
)
def test_who_cannot_serve_says_why(
    path: str, fields: dict[str, Any], problems: tuple[str, ...], code: str
) -> None:
    exchange = ask(app_of(service_with(**fields), Problems(problems)), "GET", path)
    assert exchange.status == 503
    assert exchange.json["status"] == "unavailable"
    assert exchange.json["problems"] == list(problems)
    assert exchange.error["code"] == code
    assert 1 <= int(exchange.headers["retry-after"]) <= 60


FAILED_ENGINE = replace(BUSY["engine"], alive=False)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"phase": SwapPhase.DRAINING, "resident": BUSY["resident"]}, "shutting_down"),
        (
            {
                "phase": SwapPhase.DRAINING,
                "resident": BUSY["resident"],
                "engine": BUSY["engine"],
                "progress": BUSY["progress"],
            },
            "shutting_down",
        ),
        (
            {
                "phase": SwapPhase.READY,
                "resident": BUSY["resident"],
                "engine": FAILED_ENGINE,
            },
            "engine_failed",
        ),
        ({"phase": SwapPhase.EMPTY}, "model_unloaded"),
    ],
)
def test_the_reason_is_the_swap_floors_own(fields: dict[str, Any], code: str) -> None:
    service = service_with(serviceable=False, unserviceable_reason="So it is.", **fields)
    exchange = ask(app_of(service), "GET", "/readyz")
    assert exchange.status == 503
    assert (exchange.error["code"], exchange.error["message"]) == (code, "So it is.")


def test_status_has_all_of_the_snapshot_but_paths() -> None:
    exchange = ask(app_of(service_with(**BUSY), Problems(("slow",))), "GET", "/status")
    assert exchange.status == 200
    status = exchange.json
    assert status["problems"] == ["slow"]
    assert status["version"] == hotswap.__version__
    assert status["resident"]["id"] == "hotswap/sums"
    assert status["resident"]["applied"] == {"dtype": {"value": "float32", "source": "request"}}
    assert status["engine"]["tokens"] == 40
    assert status["parked"] == [{"model": "d", "bytes": 100}]
    assert b"secret" not in exchange.body
    assert status["unusable"] == {"broken": "'broken' cannot be served: config.json is not JSON."}
    missing = set(READY.__dataclass_fields__) - set(status) - {"version"}
    assert missing == set()


def test_moments_are_told_as_durations() -> None:
    snapshot = service_with(**BUSY).snapshot()
    described = describe(snapshot, now=42.0)
    assert described["failures"]["e"] == {"message": "broke", "code": "x", "retry_in_s": 8.0}
    assert described["engine"]["progress_age_s"] == 2.0


def test_an_empty_status_is_whole_too() -> None:
    assert ask(app_of(), "GET", "/status").json["resident"] is None


def test_version_and_the_front_door() -> None:
    assert ask(app_of(), "GET", "/version").json == {"version": hotswap.__version__}
    about = ask(app_of(), "GET", "/").json
    assert about["name"] == "hotswap"
    assert about["links"]["models"] == "/v1/models"


def test_head_is_answered() -> None:
    assert ask(app_of(), "HEAD", "/health").status == 200
