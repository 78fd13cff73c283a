from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.api.ollama_models import digest
from hotswap.contracts.engines import EngineStats
from hotswap.contracts.models import ModelFacts, ModelSpec
from tests.api.stage import SUMS, ScriptedService, app_of, ask, service_with

DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "qwen3",
    "families": ["qwen3"],
    "parameter_size": "600.0M",
    "quantization_level": "BF16",
}
SPEC = ModelSpec(
    id=SUMS.id,
    path=Path("/secret"),
    created_unix=SUMS.created_unix,
    facts=SUMS.facts,
    max_position_embeddings=512,
)


def get(service: ScriptedService, path: str) -> Any:
    return ask(app_of(service), "GET", path).json


def engine(**details: Any) -> EngineStats:
    return EngineStats(
        generation=1,
        model=SUMS.id,
        running=0,
        waiting=0,
        steps=0,
        tokens=0,
        last_progress=0,
        alive=True,
        details=details,
    )


def expiry_s(running: dict[str, Any]) -> float:
    return datetime.fromisoformat(running["expires_at"]).timestamp() - time.time()


def test_a_version_that_clients_can_compare() -> None:
    version = get(ScriptedService(), "/api/version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version["version"])
    assert version["hotswap"] == hotswap.__version__


def test_the_tags_are_the_models_that_a_request_may_name() -> None:
    sums, tales = get(ScriptedService(), "/api/tags")["models"]
    assert sums == {
        "name": "hotswap/sums",
        "model": "hotswap/sums",
        "modified_at": "2023-11-14T22:13:20Z",
        "size": 1_200_000_000,
        "digest": digest("hotswap/sums"),
        "details": DETAILS,
    }
    assert re.fullmatch(r"[0-9a-f]{64}", sums["digest"])
    assert tales["digest"] != sums["digest"]
    assert (tales["details"]["parameter_size"], tales["size"]) == ("", 0)


@pytest.mark.parametrize(
    ("facts", "size", "level"),
    [
        (ModelFacts(), "", ""),
        (ModelFacts(parameters=999), "999", ""),
        (ModelFacts(parameters=1500, dtype="float32"), "1.5K", "F32"),
        (ModelFacts(parameters=7_200_000_000, dtype="float16"), "7.2B", "F16"),
        (ModelFacts(dtype="bfloat16", quantization="fp8"), "", "FP8"),
    ],
)
def test_size_and_format_in_ollamas_words(facts: ModelFacts, size: str, level: str) -> None:
    service = ScriptedService(listings=(replace(SUMS, facts=facts),))
    (model,) = get(service, "/api/tags")["models"]
    details = model["details"]
    assert (details["parameter_size"], details["quantization_level"]) == (size, level)


def test_no_model_runs_before_one_is_loaded() -> None:
    assert get(ScriptedService(), "/api/ps") == {"models": []}


def test_the_running_model_is_the_one_on_the_device() -> None:
    stats = engine(weights_bytes=99, device="cuda:0", max_model_len=256)
    service = service_with(resident=SPEC, engine=stats, expires_in_s=300.0)
    (running,) = get(service, "/api/ps")["models"]
    assert 290 < expiry_s(running) <= 300
    assert (running["size"], running["size_vram"], running["context_length"]) == (99, 99, 256)
    assert (running["name"], running["digest"]) == (SUMS.id, digest(SUMS.id))
    assert running["details"] == DETAILS


def test_a_model_that_stays_expires_in_a_very_long_time() -> None:
    service = service_with(resident=SPEC, engine=engine(device="cpu", weights_bytes=5))
    (running,) = get(service, "/api/ps")["models"]
    assert expiry_s(running) > 50 * 365 * 86400
    assert (running["size_vram"], running["context_length"]) == (0, 512)


@pytest.mark.parametrize("body", [{"model": "sums:latest"}, {"name": "hotswap/sums"}])
def test_a_model_is_shown(body: dict[str, Any]) -> None:
    assert ask(app_of(), "POST", "/api/show", body).json == {
        "modelfile": "FROM hotswap/sums\n",
        "parameters": "temperature 0.7\ntop_k 20",
        "template": "{{ messages }}",
        "modified_at": "2023-11-14T22:13:20Z",
        "details": DETAILS,
        "model_info": {
            "general.architecture": "qwen3",
            "general.basename": "hotswap/sums",
            "general.parameter_count": 600_000_000,
            "qwen3.context_length": 512,
        },
        "capabilities": ["completion", "tools", "thinking"],
    }


def test_an_embedding_model_is_shown_as_one() -> None:
    service = ScriptedService(listings=(replace(SUMS, task="embed"),))
    shown = ask(app_of(service), "POST", "/api/show", {"model": "sums"}).json
    assert shown["capabilities"] == ["embedding"]


def test_an_unknown_model_is_not_shown() -> None:
    exchange = ask(app_of(), "POST", "/api/show", {"model": "x"})
    assert (exchange.status, exchange.json) == (404, {"error": "model 'x' not found"})
    assert ask(app_of(), "POST", "/api/show", {}).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/delete"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("POST", "/api/push"),
        ("POST", "/api/blobs/sha256:00"),
    ],
)
def test_models_are_not_changed_through_this_api(method: str, path: str) -> None:
    exchange = ask(app_of(), method, path, {"model": "sums"})
    assert exchange.status == 403
    assert "disk" in exchange.json["error"]


def test_ollamas_command_finds_somebody_at_the_front_door() -> None:
    assert ask(app_of(), "HEAD", "/").status == 200
