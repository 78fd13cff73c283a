from __future__ import annotations

import json
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hotswap.contracts.answers import Finished, TextDelta
from hotswap.errors import (
    EngineFailed,
    ModelNotFound,
    ModelUnusable,
    NotPermitted,
    Overloaded,
)
from tests.api.stage import HELLO, Exchange, ScriptedService, app_of, ask

CHAT = {"model": "hotswap/sums:latest", "messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"model": "hotswap/sums", "prompt": "hi"}
ROUTES: list[Any] = [("/api/chat", CHAT), ("/api/generate", PROMPT)]


def post(service: ScriptedService, path: str, **fields: Any) -> Exchange:
    return ask(app_of(service), "POST", path, fields)


def lines(exchange: Exchange) -> list[Any]:
    assert exchange.headers["content-type"] == "application/x-ndjson"
    assert exchange.body.endswith(b"\n")
    return [json.loads(line) for line in exchange.body.splitlines()]


def text_of(line: dict[str, Any]) -> str:
    return str(line["message"]["content"] if "message" in line else line["response"])


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_streamed_answer(path: str, body: dict[str, Any]) -> None:
    service = ScriptedService()
    *deltas, last = lines(post(service, path, **body))
    assert "".join(map(text_of, deltas)) == "Hello"
    assert not any(line["done"] for line in deltas)
    assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "hotswap/sums")
    assert service.requests[0].model == "hotswap/sums"
    assert service.requests[0].request_id


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_an_answer_in_one_piece(path: str, body: dict[str, Any]) -> None:
    exchange = post(ScriptedService(), path, **body, stream=False)
    assert exchange.headers["content-type"] == "application/json"
    assert text_of(exchange.json) == "Hello"
    assert exchange.json["eval_count"] == 2


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_keeps_its_status(path: str, body: dict[str, Any], stream: bool) -> None:
    exchange = post(ScriptedService(refusal=Overloaded("full")), path, **body, stream=stream)
    assert (exchange.status, exchange.json) == (429, {"error": "full"})
    assert exchange.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *ROUTES,
        ("/api/chat", {}),
        ("/api/generate", {"keep_alive": 0}),
        ("/api/embed", {"input": "x"}),
        ("/api/embeddings", {"prompt": ""}),
        ("/api/pull", {}),
        ("/api/pull", {"stream": False}),
        ("/api/show", {}),
    ],
)
def test_a_model_that_is_not_there_is_told_in_ollamas_words(
    path: str, body: dict[str, Any]
) -> None:
    service = ScriptedService(refusal=ModelNotFound("There is none."), pulled=())
    exchange = post(service, path, **{**body, "model": "x:latest"})
    assert (exchange.status, exchange.json) == (404, {"error": "model 'x' not found"})


def test_what_there_is_to_say_beside_that_is_said() -> None:
    service = ScriptedService(refusal=ModelNotFound("There is none.", hint="Did you mean y?"))
    exchange = post(service, "/api/generate", model="x", prompt="x")
    told = {"error": "model 'x' not found. Did you mean y?"}
    assert (exchange.status, exchange.json) == (404, told)


def test_a_model_that_cannot_be_served_says_why() -> None:
    service = ScriptedService(refusal=ModelUnusable("config.json is not JSON."))
    for body in ({"prompt": "x"}, {"prompt": "x", "stream": False}, {}):
        exchange = post(service, "/api/generate", model="x", **body)
        assert (exchange.status, exchange.json) == (422, {"error": "config.json is not JSON."})


def test_no_model_at_all_keeps_its_own_words() -> None:
    service = ScriptedService(refusal=ModelNotFound("Name one."))
    assert post(service, "/api/generate", prompt="x").json == {"error": "Name one."}


def test_a_late_failure_is_the_last_line() -> None:
    async def main() -> None:
        seen = anyio.Event()
        service = ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke")))
        exchange = Exchange("POST", "/api/chat", json.dumps(CHAT).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: b"Hel" in exchange.body)
            seen.set()
        assert exchange.status == 200
        assert lines(exchange)[-1] == {"error": "broke"}

    anyio.run(main)


def test_the_time_that_a_model_took_is_told_and_not_that_of_writing_it() -> None:
    async def main() -> None:
        seen = anyio.Event()
        service = ScriptedService(steps=(HELLO[0], seen, HELLO[1]))
        exchange = Exchange("POST", "/api/chat", json.dumps(CHAT).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: b"Hel" in exchange.body)
            until = time.monotonic() + 0.005
            while time.monotonic() < until:
                await anyio.lowlevel.checkpoint()
            seen.set()
        *_, last = lines(exchange)
        assert last["eval_duration"] >= 5e6
        assert last["total_duration"] >= last["eval_duration"] + last["prompt_eval_duration"]

    anyio.run(main)


def test_a_waiting_stream_shows_life() -> None:
    async def main() -> None:
        service = ScriptedService(admission=anyio.Event())
        exchange = Exchange("POST", "/api/chat", json.dumps(CHAT).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service, keepalive_s=0.01))
            await exchange.until(lambda: len(exchange.bodies) > 1)
            assert service.admission is not None
            service.admission.set()
        first, *_, last = lines(exchange)
        assert (text_of(first), first["done"], first["status"]) == ("", False, "waiting")
        assert last["done"]

    anyio.run(main)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/chat", {"messages": []}), ("/api/chat", {}), ("/api/generate", {"prompt": ""})],
)
def test_no_prompt_loads_the_model(path: str, body: dict[str, Any]) -> None:
    service = ScriptedService()
    exchange = post(service, path, **body, model="sums:latest", keep_alive="5m")
    assert (exchange.json["done_reason"], exchange.json["done"]) == ("load", True)
    assert exchange.json["model"] == "hotswap/sums"
    assert text_of(exchange.json) == ""
    assert service.orders == [("warm", "sums", 300)]
    assert service.requests == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_no_prompt_and_no_time_to_keep_it_unloads_the_model(path: str) -> None:
    service = ScriptedService()
    exchange = post(service, path, model="sums", keep_alive=0)
    assert exchange.json["done_reason"] == "unload"
    assert service.orders == [("let_go", "sums")]


def test_who_may_not_unload_is_told_so() -> None:
    service = ScriptedService(refusal=NotPermitted("no"))
    assert post(service, "/api/generate", model="sums", keep_alive=0).status == 403


def test_a_client_that_stops_waiting_for_a_load_is_noticed() -> None:
    async def main() -> None:
        service = ScriptedService(admission=anyio.Event())
        exchange = Exchange("POST", "/api/generate", b'{"model": "sums"}')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            while not service.orders:
                await anyio.lowlevel.checkpoint()
            exchange.leave()
        assert not exchange.answered

    anyio.run(main)


def test_embeddings_now_and_then() -> None:
    service = ScriptedService()
    body = post(service, "/api/embed", model="m", input=["a", "b"]).json
    assert body["embeddings"] == [[0, 0.5, -1], [1, 0.5, -1]]
    assert (body["model"], body["prompt_eval_count"]) == ("m", 14)
    old = post(service, "/api/embeddings", model="m", prompt="a")
    assert old.json == {"embedding": [0, 0.5, -1]}
    assert [request.truncate for request in service.embedding_requests] == [True, True]


def test_nothing_to_embed_loads_the_model() -> None:
    service = ScriptedService()
    nothing: dict[str, Any]
    for nothing in ({}, {"input": None}, {"input": ""}, {"input": []}):
        assert post(service, "/api/embed", model="sums", **nothing).json["embeddings"] == []
    for nothing in ({}, {"prompt": None}, {"prompt": ""}):
        answer = post(service, "/api/embeddings", model="sums", **nothing)
        assert (answer.status, answer.json) == (200, {"embedding": []})
    assert service.orders == [("warm", "sums", None)] * 7


def test_a_pull_tells_its_progress() -> None:
    service = ScriptedService()
    begun, *parts, success = lines(post(service, "/api/pull", model="sums:latest"))
    assert begun == {"status": "pulling manifest"}
    assert [(part["completed"], part["total"]) for part in parts] == [
        (0, 1000),
        (500, 1000),
        (1000, 1000),
    ]
    assert {part["status"] for part in parts} == {f"downloading {parts[0]['digest'][:12]}"}
    assert success == {"status": "success"}
    assert service.orders == [("pull", "sums")]


def test_a_pull_of_what_is_here_succeeds_at_once() -> None:
    service = ScriptedService(pulled=())
    assert lines(post(service, "/api/pull", model="sums")) == [
        {"status": "pulling manifest"},
        {"status": "success"},
    ]
    whole = post(service, "/api/pull", name="sums", stream=False)
    assert (whole.status, whole.json) == (200, {"status": "success"})


@pytest.mark.parametrize("stream", [True, False])
def test_a_pull_that_is_not_permitted_says_so(stream: bool) -> None:
    service = ScriptedService(refusal=NotPermitted("not allowed"), pulled=())
    exchange = post(service, "/api/pull", model="a/b", stream=stream)
    assert (exchange.status, exchange.json) == (403, {"error": "not allowed"})


def test_a_pull_that_fails_half_way_ends_with_the_error() -> None:
    async def main() -> None:
        service = ScriptedService(
            refusal=EngineFailed("disk full"), pulled=(0.5,), admission=anyio.Event()
        )
        exchange = Exchange("POST", "/api/pull", b'{"model": "a/b"}')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: b"downloading" in exchange.body)
            assert service.admission is not None
            service.admission.set()
        assert lines(exchange)[-1] == {"error": "disk full"}

    anyio.run(main)


def test_a_pull_that_stands_still_shows_life() -> None:
    async def main() -> None:
        service = ScriptedService(admission=anyio.Event(), pulled=(0.25,))
        exchange = Exchange("POST", "/api/pull", b'{"model": "sums"}')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service, keepalive_s=0.01))
            await exchange.until(lambda: exchange.body.count(b'"completed":250') > 2)
            assert service.admission is not None
            service.admission.set()
        assert lines(exchange)[-1] == {"status": "success"}

    anyio.run(main)


def test_a_length_that_is_reached_is_told() -> None:
    end = Finished(index=0, reason="length", completion_tokens=1)
    service = ScriptedService(steps=((TextDelta(index=0, text="a"), end),))
    exchange = post(service, "/api/chat", **CHAT, options={"num_predict": 1}, stream=False)
    assert exchange.json["done_reason"] == "length"
    assert service.requests[0].max_tokens == 1
