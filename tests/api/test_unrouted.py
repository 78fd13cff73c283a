from __future__ import annotations

import time

import pytest

from hotswap.api.unrouted import NearPaths
from tests.api.stage import app_of, ask

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1/chat/completion", CHAT),
        ("/v1/Chat/Completions", CHAT),
        ("/v1/chat", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/completions", "/v1/completions"),
        ("/v1/completion", "/v1/completions"),
        ("/v1/response", "/v1/responses"),
        ("/v1/message", "/v1/messages"),
        ("/messages", "/v1/messages"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/api/chat", "/api/chat"),
        ("/api/tag", "/api/tags"),
        ("/v1/health", "/health"),
        ("/health/", "/health"),
        ("/v1/load-model", "/v1/load_model"),
    ],
)
def test_a_slip_is_told_the_path_that_was_meant(path: str, meant: str) -> None:
    exchange = ask(app_of(), "POST", path, {})
    assert exchange.status == 404
    fault = exchange.json["error"]
    message = fault if isinstance(fault, str) else fault["message"]
    assert message == f"there is no such route; did you mean {meant}?"


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v2",
        "/v1/nothing",
        "/.env",
        "/v1/chat/completions.php",
        "/v1/../v1/chat/completions",
        "/v1/chat/completions;x",
        "/v1/chat/<script>",
        "/v1/chat/completions\n",
        "/a" * 7 + CHAT,
        "/" + "v1/" * 40 + "chat/completions",
        "/" * 70,
    ],
)
def test_nothing_is_meant_by_what_is_no_slip(path: str) -> None:
    assert NearPaths([CHAT, "/v1/models", "/", "/api/blobs/{digest}"]).find(path) is None


def test_each_dialect_hears_it_in_its_envelope() -> None:
    app = app_of()
    theirs = ask(app, "POST", "/v1/v1/messages", {}, headers={"anthropic-version": "2023-06-01"})
    assert theirs.json == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "there is no such route; did you mean /v1/messages?",
        },
    }
    told = {"error": "there is no such route; did you mean /api/chat?"}
    assert ask(app, "POST", "/api/chat/", {}).json == told


def test_management_that_is_not_open_is_not_meant() -> None:
    exchange = ask(app_of(dev_mode=False), "POST", "/v1/load-model", {})
    assert exchange.error["message"] == "there is no such route"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, ["POST"]),
        ("POST", "/v1/models", ["GET", "HEAD"]),
        ("PUT", "/v1/responses/r", ["DELETE", "GET", "HEAD"]),
    ],
)
def test_a_method_that_is_not_taken_hears_which_are(
    method: str, path: str, allowed: list[str]
) -> None:
    exchange = ask(app_of(), method, path)
    assert exchange.status == 405
    assert exchange.headers["allow"] == ", ".join(allowed)
    assert exchange.error["message"].endswith(f"; it takes {' or '.join(allowed)}")


def test_the_longest_path_takes_no_time() -> None:
    near = NearPaths(f"/v1/{'abc' * 7}/{'defg' * 6}{number}" for number in range(50))
    start = time.process_time()
    for _ in range(10):
        near.find(f"/v1/{'acb' * 7}/{'dfeg' * 6}")
    assert time.process_time() - start < 1
