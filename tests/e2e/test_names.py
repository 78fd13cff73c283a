"""Directories of models that are broken in every way, and names that are none, in all dialects."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import Server, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"
ROUTES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"max_tokens": 4},
    "/v1/messages": {"max_tokens": 4},
    "/api/chat": {"stream": False, "options": {"num_predict": 4}},
}
MESSAGES = [{"role": "user", "content": "What is 45 + 27?"}]
UNUSABLE = {
    "not-json": "'not-json' cannot be served: config.json is not JSON.",
    "no-weights": "'no-weights' cannot be served: it has no safetensors weights.",
    "no-tokenizer": "'no-tokenizer' cannot be served: its tokenizer is missing.",
    "pickled": "'pickled' cannot be served: it has no safetensors weights, only pickles, which are "
    "not read.",
    "pipe": "'pipe' cannot be served: 'config.json' is not a regular file.",
    "wrong-settings": "'wrong-settings' has wrong settings in hotswap_config.yaml: There is no "
    "setting 'max_modle_len'. Did you mean max_model_len?",
}


@pytest.fixture(scope="module")
def server(broken_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = ("--model", SUMS, "--models-dir", str(broken_models), "--enable-on-demand-loading")
    with serving(*words, "--dev-mode", home=tmp_path_factory.mktemp("home")) as server:
        yield server


def message(body: Mapping[str, Any]) -> str:
    """Of an error in whichever envelope."""
    error = body["error"]
    return str(error if isinstance(error, str) else error["message"])


def test_menus_offer_the_same_in_all_dialects_and_say_what_is_wrong(server: Server) -> None:
    with server.http() as http:
        listed = {one["id"]: one["status"] for one in http.get("/v1/models").json()["data"]}
        tags = {one["name"] for one in http.get("/api/tags").json()["models"]}
        theirs = http.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert listed.keys() == {SUMS, TALES, "wrong-settings", "wrong-template"}
        assert tags == {one["id"] for one in theirs["data"]} == listed.keys()
        failed = {"value": "unloaded", "failed": True, "error": UNUSABLE["wrong-settings"]}
        assert listed["wrong-settings"] == failed
        assert listed["wrong-template"] == {"value": "unloaded"}
        one = http.get("/v1/models/wrong-settings").json()
        assert one["status"] == failed
        assert http.get("/status").json()["unusable"] == UNUSABLE


def test_each_is_told_in_the_log_once(server: Server) -> None:
    with server.http() as http:
        for _ in range(3):
            http.get("/v1/models")
    for fault in UNUSABLE.values():
        assert sum(fault in line for line in server.lines) == 1


@pytest.mark.parametrize("name", UNUSABLE)
def test_whoever_asks_for_one_is_told_what_is_wrong(
    server: Server, broken_models: Path, name: str
) -> None:
    with server.http() as http:
        for path, fields in ROUTES.items():
            answer = http.post(path, json={"model": name, "messages": MESSAGES, **fields})
            assert message(answer.json()) == UNUSABLE[name]
            assert str(broken_models) not in answer.text
            assert answer.status_code == 422
        for path in ("/v1/load_model", "/models/load", "/api/show"):
            answer = http.post(path, json={"model": name})
            assert (answer.status_code, message(answer.json())) == (422, UNUSABLE[name])
    assert server.resident() == SUMS


def test_a_model_whose_template_cannot_be_read_completes_texts(server: Server) -> None:
    with server.http() as http:
        loaded = http.post("/v1/load_model", json={"model": "wrong-template"})
        assert loaded.status_code == 200
        for path, fields in ROUTES.items():
            body = {"model": "wrong-template", "messages": MESSAGES, **fields}
            answer = http.post(path, json=body)
            assert answer.status_code == 400
            assert "The chat template of 'wrong-template' cannot be read (line 2:" in answer.text
            assert "--chat-template" in answer.text
            if path == "/v1/chat/completions":
                assert answer.json()["error"]["param"] == "model"
        shown = http.post("/api/show", json={"model": "wrong-template"}).json()
        assert (shown["template"], shown["capabilities"]) == ("", ["completion"])
        body = {"model": "wrong-template", "prompt": "1 + 1", "max_tokens": 4}
        assert http.post("/v1/completions", json=body).status_code == 200
        listed = http.get("/v1/models/wrong-template").json()
        assert listed["status"] == {"value": "loaded"}
        assert http.post("/v1/load_model").status_code == 200
    told = [line for line in server.lines if "chat template" in line and "cannot be read" in line]
    assert len(told) == 1


def test_what_is_mended_is_served_at_once(server: Server, broken_models: Path) -> None:
    model = broken_models / "to-mend"
    shutil.copytree(broken_models / "wrong-settings", model)
    body = {"model": model.name, "messages": MESSAGES, "max_tokens": 4}
    try:
        with server.http() as http:
            for _ in range(2):
                assert http.post("/v1/chat/completions", json=body).status_code == 422
            (model / "hotswap_config.yaml").write_text("max_model_len: 64")
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            listed = http.get(f"/v1/models/{model.name}").json()
            assert (listed["status"], listed["max_model_len"]) == ({"value": "loaded"}, 64)
            assert http.post("/v1/load_model").status_code == 200
    finally:
        shutil.rmtree(model)
    with server.http() as http:
        assert http.get(f"/v1/models/{model.name}").status_code == 404, "gone at once, too"


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "gpt-4o", "hotswap/sumsx", "no/such"])
def test_a_name_that_is_none_of_ours_is_foreign_to_one_dialect_and_unknown_to_the_others(
    server: Server, name: str
) -> None:
    with server.http() as http:
        for path, fields in ROUTES.items():
            answer = http.post(path, json={"model": name, "messages": MESSAGES, **fields})
            if path == "/v1/messages":
                assert (answer.status_code, answer.json()["model"]) == (200, SUMS)
                continue
            assert answer.status_code == 404
            near = "Did you mean hotswap/sums?" in message(answer.json())
            assert near == (name == "hotswap/sumsx")
