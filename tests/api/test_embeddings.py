from __future__ import annotations

import base64
import json
import struct
from array import array
from typing import Any

import anyio
import pytest

from hotswap.api.embeddings import MAX_TEXTS, embeddings_document
from hotswap.contracts.answers import Embeddings
from hotswap.contracts.requests import EmbeddingRequest, TextPrompt, TokenPrompt
from hotswap.errors import InvalidRequest, ModelLoading
from tests.api.stage import Exchange, ScriptedService, app_of, ask

ROUTE = "/v1/embeddings"


def asked(**fields: Any) -> EmbeddingRequest:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", ROUTE, fields)
    assert exchange.status == 200, exchange.json
    [request] = service.embedding_requests
    return request


def refused(**fields: Any) -> dict[str, Any]:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", ROUTE, fields)
    assert exchange.status == 400
    assert not service.embedding_requests
    return exchange.error


def test_an_answer_is_a_list_of_vectors_in_order() -> None:
    exchange = ask(app_of(), "POST", ROUTE, {"input": ["a", "b"], "model": "m"})
    assert exchange.json == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.5, -1.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 14, "total_tokens": 14},
    }


def test_in_base64_the_numbers_are_the_same() -> None:
    body = {"input": "a", "encoding_format": "base64"}
    exchange = ask(app_of(), "POST", ROUTE, body)
    raw = base64.b64decode(exchange.json["data"][0]["embedding"])
    assert struct.unpack("<3f", raw) == (0.0, 0.5, -1.0)


def test_large_answers_are_written_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    run_sync = anyio.to_thread.run_sync

    async def noted(work: Any, *args: Any, **options: Any) -> Any:
        threads.append(work)
        return await run_sync(work, *args, **options)

    monkeypatch.setattr("hotswap.api.embeddings.to_thread.run_sync", noted)
    ask(app_of(), "POST", ROUTE, {"input": ["a"]})
    assert not threads
    monkeypatch.setattr("hotswap.api.embeddings._THREAD_FROM_NUMBERS", 6)
    exchange = ask(app_of(), "POST", ROUTE, {"input": ["a", "b"]})
    assert threads
    assert len(exchange.json["data"]) == 2


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", (TextPrompt("a"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1], [2, 3]], (TokenPrompt((1,)), TokenPrompt((2, 3)))),
    ],
)
def test_texts_come_in_four_ways(given: Any, prompts: Any) -> None:
    assert asked(input=given).prompts == prompts


def test_the_other_fields() -> None:
    request = asked(
        input="a", model="m", dimensions=8, truncate=True, user="u", keep_alive="5m", unknown=1
    )
    assert (request.model, request.dimensions, request.truncate) == ("m", 8, True)
    assert request.keep_alive_s == 300
    assert request.request_id
    assert asked(input="a", ttl=7).keep_alive_s == 7
    plain = asked(input="a", model=None, dimensions=None, encoding_format=None, keep_alive=None)
    assert (plain.model, plain.dimensions, plain.truncate) == (None, None, False)
    assert plain.keep_alive_s is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [1, -1]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1], 1]}, "input[1]"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [1.5]}, "input[0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions"),
        ({"input": "a", "keep_alive": "soon"}, "keep_alive"),
        ({"input": "a", "model": 7}, "model"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields)["param"] == param


@pytest.mark.parametrize(
    ("refusal", "status"), [(InvalidRequest("no", param="model"), 400), (ModelLoading("wait"), 503)]
)
def test_what_the_service_refuses_keeps_its_status(refusal: Exception, status: int) -> None:
    exchange = ask(app_of(ScriptedService(refusal=refusal)), "POST", ROUTE, {"input": "a"})
    assert exchange.status == status
    assert (status == 503) == ("retry-after" in exchange.headers)


def test_a_client_that_leaves_ends_its_request() -> None:
    async def scenario() -> None:
        service = ScriptedService(admission=anyio.Event())
        exchange = Exchange("POST", ROUTE, b'{"input": "a"}')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await service.until(lambda: service.running == 1)
            exchange.leave()
            await service.until(lambda: service.running == 0)
        assert not exchange.answered

    anyio.run(scenario)


def test_vectors_of_one_precision_stay_what_they_are() -> None:
    found = Embeddings("m", (array("f", [0.1, 1e-20, -3.4e38]),), 1)
    as_floats = json.loads(embeddings_document(found, as_text=False))["data"][0]["embedding"]
    in_base64 = json.loads(embeddings_document(found, as_text=True))["data"][0]["embedding"]
    assert array("f", as_floats).tobytes() == base64.b64decode(in_base64)
