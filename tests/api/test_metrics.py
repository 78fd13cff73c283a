from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from hotswap.contracts.engines import EngineStats, ParkedModel
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.contracts.reports import MemoryReport
from hotswap.contracts.snapshot import SwapPhase, UnloadReason
from tests.api.stage import Exchange, ScriptedService, app_of, ask, service_with

FAMILIES = {
    "hotswap:num_requests_running": "gauge",
    "hotswap:num_requests_waiting": "gauge",
    "hotswap:generation_tokens_total": "counter",
    "hotswap:kv_cache_usage_perc": "gauge",
    "hotswap:loads_total": "counter",
    "hotswap:swaps_total": "counter",
    "hotswap:unloads_total": "counter",
    "hotswap:engine_rebuilds_total": "counter",
    "hotswap:self_restarts_total": "counter",
    "hotswap:load_seconds_total": "counter",
    "hotswap:gap_seconds_total": "counter",
    "hotswap:parked_bytes": "gauge",
    "hotswap:leaked_bytes": "gauge",
    "hotswap:teardown_leaked_bytes_total": "counter",
    "hotswap:model_info": "gauge",
}
"""By the names that are written, and asked for in queries."""
NASTY = 'org/"quoted"\nnext line\\back é'


def stats(details: Mapping[str, Any] | None = None) -> EngineStats:
    return EngineStats(
        generation=3,
        model="hotswap/sums",
        running=4,
        waiting=2,
        steps=10,
        tokens=40,
        last_progress=40.0,
        alive=True,
        details=details or {},
    )


def scrape(service: ScriptedService, headers: Mapping[str, str] | None = None) -> Exchange:
    exchange = ask(app_of(service), "GET", "/metrics", headers=headers)
    assert exchange.status == 200
    return exchange


def families(service: ScriptedService) -> dict[str, Metric]:
    found = text_string_to_metric_families(scrape(service).body.decode())
    return {f"{one.name}_total" if one.type == "counter" else one.name: one for one in found}


def samples(service: ScriptedService) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name and its labels' values, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(service).values()
        for sample in family.samples
    }


@pytest.mark.parametrize("engine", [None, stats(), stats({"kv_limit_bytes": 0})])
def test_every_metric_is_there_whatever_the_state(engine: EngineStats | None) -> None:
    found = families(service_with(engine=engine))
    assert {name: family.type for name, family in found.items()} == FAMILIES
    assert all(family.documentation for family in found.values())


def test_no_two_metrics_share_a_name_which_openmetrics_forbids() -> None:
    written = text_string_to_metric_families(scrape(ScriptedService()).body.decode())
    names = [family.name for family in written]
    assert sorted(names) == sorted(set(names))


def test_the_metrics_are_the_snapshot_s() -> None:
    service = service_with(
        resident=ModelSpec(id="hotswap/sums", path=Path("/secret/place")),
        waiting={"b": 2, "c": 1},
        parked=(ParkedModel(model="d", bytes=100), ParkedModel(model="e", bytes=1 << 40)),
        engine=stats({"kv_used_bytes": 25, "kv_limit_bytes": 100}),
        loads=7,
        swaps=5,
        unloads_by_reason={**dict.fromkeys(UnloadReason, 0), UnloadReason.IDLE: 2},
        tokens=1040,
        phase_seconds={"prepare": 1.5, "start": 0.25, "gap": 0.75},
        memory=MemoryReport(before_bytes=9, after_bytes=3, baseline_bytes=1, leaked_bytes=2),
        teardown_leaked_bytes=40,
        rebuilds=3,
        restarts=2,
    )
    assert samples(service) == {
        ("hotswap:num_requests_running",): 4,
        ("hotswap:num_requests_waiting",): 5,
        ("hotswap:generation_tokens_total",): 1040,
        ("hotswap:kv_cache_usage_perc",): 0.25,
        ("hotswap:loads_total",): 7,
        ("hotswap:swaps_total",): 5,
        ("hotswap:unloads_total", "request"): 0,
        ("hotswap:unloads_total", "idle"): 2,
        ("hotswap:unloads_total", "failure"): 0,
        ("hotswap:unloads_total", "shutdown"): 0,
        ("hotswap:engine_rebuilds_total",): 3,
        ("hotswap:self_restarts_total",): 2,
        ("hotswap:load_seconds_total", "prepare"): 1.5,
        ("hotswap:load_seconds_total", "start"): 0.25,
        ("hotswap:gap_seconds_total",): 0.75,
        ("hotswap:parked_bytes", "d"): 100,
        ("hotswap:parked_bytes", "e"): 1 << 40,
        ("hotswap:leaked_bytes",): 2,
        ("hotswap:teardown_leaked_bytes_total",): 40,
        ("hotswap:model_info", "hotswap/sums", "ready"): 1,
    }
    assert b"secret" not in scrape(service).body


def test_what_nobody_can_tell_has_no_value() -> None:
    found = families(service_with(engine=stats(), memory=None))
    assert found["hotswap:kv_cache_usage_perc"].samples == []
    assert found["hotswap:leaked_bytes"].samples == []


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"phase": SwapPhase.EMPTY}, {"model": "", "phase": "empty"}),
        (
            {"phase": SwapPhase.LOADING, "progress": Progress(model="b", stage="", value=0.5)},
            {"model": "b", "phase": "loading"},
        ),
        (
            {
                "resident": ModelSpec(id="a", path=None),
                "progress": Progress(model="b", stage="", value=0.5),
            },
            {"model": "a", "phase": "ready"},
        ),
    ],
)
def test_the_model_is_the_one_on_the_device_or_else_the_one_to_come(
    fields: dict[str, Any], labels: dict[str, str]
) -> None:
    (info,) = families(service_with(**fields))["hotswap:model_info"].samples
    assert info.labels == labels


def test_a_name_with_quotes_and_line_breaks_stays_inside_its_label() -> None:
    service = service_with(
        resident=ModelSpec(id=NASTY, path=None), parked=(ParkedModel(model=NASTY, bytes=1),)
    )
    found = families(service)
    assert set(found) == set(FAMILIES)
    assert found["hotswap:model_info"].samples[0].labels["model"] == NASTY
    assert found["hotswap:parked_bytes"].samples[0].labels == {"model": NASTY}


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "text/html",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1",
        "application/openmetrics-text; version=abc",
    ],
)
def test_it_is_prometheus_text_whatever_is_accepted(accept: str) -> None:
    exchange = scrape(ScriptedService(), {"accept": accept})
    assert exchange.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nhotswap:loads_total 1.0\n" in exchange.body


def test_it_is_only_read() -> None:
    assert ask(app_of(), "HEAD", "/metrics").status == 200
    assert ask(app_of(), "POST", "/metrics").error["code"] == "method_not_allowed"


def test_two_apps_in_one_process_count_for_themselves() -> None:
    one, other = app_of(service_with(loads=1)), app_of(service_with(loads=2))
    assert b"loads_total 2.0" in ask(other, "GET", "/metrics").body
    assert b"loads_total 1.0" in ask(one, "GET", "/metrics").body
