"""Loading and unloading by hand, through the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.served import Server, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from hotswap.demo import MODELS_DIR

    home = tmp_path_factory.mktemp("management")
    models = home / "models"
    for name in ("sums", "tales"):
        target = models / "hotswap" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()
        for file in (MODELS_DIR / "hotswap" / name).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    (models / "hotswap" / "tales" / "hotswap_config.yaml").write_text("max_model_len: 512\n")
    arguments = ("--model", SUMS, "--models-dir", str(models), "--dev-mode")
    with serving(*arguments, "--max-num-seqs", "8", home=home) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with server.http() as client:
        assert client.post("/v1/load_model").status_code == 200
        yield client


def loaded(http: httpx2.Client) -> str | None:
    return next((m["id"] for m in http.get("/v1/models").json()["data"] if m["loaded"]), None)


def test_unloading_and_unloading_again(http: httpx2.Client) -> None:
    answer = http.post("/v1/unload_model")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "success"
    assert body["message"].startswith("Model unloaded successfully in ")
    assert body["total_time_s"] == pytest.approx(body["drain_time_s"] + body["shutdown_time_s"])
    assert body["memory"].keys() >= {
        "before_bytes",
        "after_bytes",
        "baseline_bytes",
        "leaked_bytes",
    }
    again = http.post("/v1/unload_model")
    assert (again.status_code, again.json()["status"]) == (200, "info")
    assert loaded(http) is None
    refused = http.post("/v1/chat/completions", json=question())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def question(**extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What is 45 + 27?"}], **extra}


def test_loading_without_a_body_brings_the_startup_model_back(http: httpx2.Client) -> None:
    http.post("/v1/unload_model")
    answer = http.post("/v1/load_model")
    assert answer.status_code == 200
    body = answer.json()
    assert body["message"].startswith("Model loaded successfully in ")
    assert body["model"] == SUMS
    assert body["config_applied"] == {}
    assert "72" in http.post("/v1/chat/completions", json=question()).text


def test_loading_with_nested_settings(http: httpx2.Client) -> None:
    answer = http.post("/v1/load_model", json={"model": SUMS, "config": {"max_model_len": 256}})
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["config_applied"] == {"max_model_len": {"value": 256, "source": "request"}}
    assert http.get(f"/v1/models/{SUMS}").json()["max_model_len"] == 256


def test_loading_with_flat_settings_and_the_models_own_file(http: httpx2.Client) -> None:
    body = http.post("/v1/load_model", json={"model": TALES, "max_num_seqs": 4}).json()
    assert body["model"] == TALES
    assert body["previous_model"] == SUMS
    assert body["config_applied"] == {
        "max_model_len": {"value": 512, "source": "model_dir"},
        "max_num_seqs": {"value": 4, "source": "request"},
    }
    body = http.post("/v1/load_model", json={"model": TALES, "max_model_len": 300}).json()
    assert body["config_applied"] == {"max_model_len": {"value": 300, "source": "request"}}
    body = http.post("/v1/load_model", json={"model": TALES}).json()
    assert body["config_applied"] == {"max_model_len": {"value": 512, "source": "model_dir"}}


def test_loading_with_an_uploaded_file(http: httpx2.Client) -> None:
    answer = http.post(
        "/v1/load_model",
        files={"config": ("settings.yaml", "max_model_len: 200\n", "application/yaml")},
        data={"model": TALES},
    )
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["config_applied"] == {"max_model_len": {"value": 200, "source": "uploaded"}}


def test_two_loads_in_a_row_do_not_leak_settings(http: httpx2.Client) -> None:
    http.post("/v1/load_model", json={"model": SUMS, "max_model_len": 128})
    assert http.post("/v1/load_model").json()["config_applied"] == {}
    assert http.get(f"/v1/models/{SUMS}").json()["max_model_len"] > 128


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"model": "hotswap/tales", "colour": "red"}', "colour"),
        ('{"model": "hotswap/tales", "config": {"colour": "red"}}', "colour"),
        ('{"model": "hotswap/tales", "max_model_len": "many"}', "max_model_len"),
        ('{"model": "hotswap/tales", "max_model_len": -1}', "max_model_len"),
        ('{"model": "hotswap/tales", "max_model_len": true}', "max_model_len"),
        ('{"model": "hotswap/tales", "trust_remote_code": true}', "trust_remote_code"),
        ('{"model": 5}', "model"),
        ('{"model": "hotswap/tales"', None),
        ("[]", None),
        ('{"model": "hotswap/tales", "model": "hotswap/sums"}', None),
        ('{"model": "hotswap/tales", "max_model_len": NaN}', "max_model_len"),
    ],
)
def test_a_bad_load_is_refused_and_changes_nothing(
    http: httpx2.Client, body: str, param: str | None
) -> None:
    answer = http.post("/v1/load_model", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param is None or param in error["message"]
    assert loaded(http) == SUMS


@pytest.mark.parametrize("upload", ["a: [", "a: &x 1\nb: *x", "max_model_len: 1\nmax_model_len: 2"])
def test_a_bad_upload_is_refused_and_changes_nothing(http: httpx2.Client, upload: str) -> None:
    answer = http.post("/v1/load_model", files={"config": ("settings.yaml", upload)})
    assert answer.status_code == 400, answer.text
    assert loaded(http) == SUMS


def test_an_unknown_model_is_not_found(http: httpx2.Client) -> None:
    answer = http.post("/v1/load_model", json={"model": "nobody/nothing"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_llama_cpp_routes(http: httpx2.Client, server: Server) -> None:
    assert http.post("/models/load", json={"model": TALES}).json() == {"success": True}
    server.wait_until(lambda: server.resident() == TALES)
    assert http.post("/models/load", json={"model": TALES}).json() == {"success": True}
    assert http.post("/models/load", json={}).status_code == 400
    assert http.post("/models/load", json={"model": "nobody"}).status_code == 404
    assert http.post("/models/unload", json={"model": SUMS}).json() == {"success": True}  # slept
    assert http.post("/models/unload", json={"model": SUMS}).status_code == 400
    assert http.post("/models/unload", json={"model": "nobody"}).status_code == 404
    assert http.post("/models/unload", json={"model": TALES}).json() == {"success": True}
    assert loaded(http) is None


def test_the_event_feed_starts_with_a_snapshot_and_tells_each_change(http: httpx2.Client) -> None:
    with http.stream("GET", "/models/sse") as feed:
        events = (json.loads(line[6:]) for line in feed.iter_lines() if line.startswith("data: "))
        first = {event["model"]: event["data"]["status"] for event in (next(events),)}
        assert set(first) <= {SUMS, TALES}
        with httpx2.Client(base_url=http.base_url, timeout=60) as other:
            assert other.post("/models/load", json={"model": TALES}).status_code == 200
        seen: list[tuple[str, float]] = []
        for event in events:
            if event["model"] == TALES:
                status = event["data"]["status"]
                seen.append((status, (event["data"].get("progress") or {}).get("value", 0.0)))
                if status == "loaded":
                    break
        loading = [value for status, value in seen if status == "loading"]
        assert loading == sorted(loading)


def test_the_config_file_layer_goes_between(tmp_path: Path) -> None:
    from hotswap.demo import MODELS_DIR

    config = tmp_path / "hotswap.yaml"
    config.write_text(
        f"model: {SUMS}\nmodels-dir: {MODELS_DIR}\ndev-mode: true\n"
        f"models:\n  {TALES}:\n    max_model_len: 400\n    aliases: [bard]\n"
    )
    with serving("--config", str(config), home=tmp_path) as server, server.http() as http:
        body = http.post("/v1/load_model", json={"model": "bard"}).json()
        assert body["model"] == TALES
        applied = body["config_applied"]
        assert applied["max_model_len"] == {"value": 400, "source": "config_file"}


def test_without_dev_mode_and_admin_key_there_is_no_management(tmp_path: Path) -> None:
    from hotswap.demo import MODELS_DIR

    arguments = ("--model", SUMS, "--models-dir", str(MODELS_DIR))
    with serving(*arguments, home=tmp_path) as server, server.http() as http:
        for path in (
            "/v1/load_model",
            "/v1/unload_model",
            "/models/load",
            "/models/unload",
        ):
            answer = http.post(path, json={"model": SUMS})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        other = http.post("/v1/chat/completions", json=question(model=TALES))
        assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
        assert http.get("/status").json()["loads"] == 1


def test_keys_open_what_they_are_for(tmp_path: Path) -> None:
    from hotswap.demo import MODELS_DIR

    arguments = ("--model", SUMS, "--models-dir", str(MODELS_DIR))
    env = {"HOTSWAP_API_KEY": "user-key", "HOTSWAP_ADMIN_KEY": "admin-key"}
    with (
        serving(*arguments, "--log-level", "debug", home=tmp_path, env=env) as server,
        server.http() as http,
    ):
        user = {"authorization": "Bearer user-key"}
        admin = {"authorization": "Bearer admin-key"}
        assert http.get("/livez").status_code == 200
        assert http.get("/v1/models").status_code == 401
        assert http.get("/nothing/here").status_code == 401
        assert http.get("/v1/models", headers=user).status_code == 200
        assert http.get("/nothing/here", headers=user).status_code == 404
        assert http.post("/v1/unload_model", headers=user).status_code == 403
        assert http.post("/v1/unload_model").status_code == 401
        secret = {"model": SUMS, "messages": [{"role": "user", "content": "xyzzy"}]}
        for fields, status in (({}, 200), ({"max_tokens": 0}, 400), ({"model": "none"}, 404)):
            answer = http.post("/v1/chat/completions", headers=user, json={**secret, **fields})
            assert answer.status_code == status
        assert http.post("/v1/unload_model", headers=admin).status_code == 200
        assert server.terminate() == 0
    assert any("POST '/v1/chat/completions' 400" in line for line in server.lines)
    assert not [line for line in server.lines if re.search("(user|admin)-key|xyzzy", line)]


def test_a_dry_run_says_what_would_go_and_changes_nothing(http: httpx2.Client) -> None:
    answer = http.post("/v1/load_model?dry_run=true", json={"model": TALES})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["leaves"], body["fits"]) == (TALES, SUMS, True)
    assert 0 < body["weights_bytes"] < 16 << 20
    assert body["device_free_bytes"] > body["weights_bytes"] + body["kv_bytes"]
    assert loaded(http) == SUMS


def test_sleeping_and_waking_up(http: httpx2.Client) -> None:
    http.post("/v1/load_model", json={"model": TALES, "max_model_len": 128})
    for level, status in ((1, "sleeping"), (2, "unloaded")):
        slept = http.post(f"/sleep?level={level}")
        assert (slept.status_code, slept.json()["parked"]) == (200, level == 1)
        assert http.get("/is_sleeping").json() == {"is_sleeping": True}
        listed = {
            model["id"]: model["status"]["value"] for model in http.get("/v1/models").json()["data"]
        }
        assert listed[TALES] == status
        refused = http.post("/v1/chat/completions", json=question())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unloaded")
        assert http.post("/wake_up").status_code == 200
        assert http.get("/is_sleeping").json() == {"is_sleeping": False}
        assert http.get("/status").json()["resident"]["engine"]["max_model_len"] == 128
        assert http.post("/v1/chat/completions", json=question()).json()["model"] == TALES
