from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.openai import parse_chat
from hotswap.api.pace import Pace
from hotswap.api.sse import progress_text
from hotswap.api.traffic import Traffic
from hotswap.contracts.answers import Finished, TextDelta
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Progress
from hotswap.errors import (
    ContextLengthExceeded,
    EngineFailed,
    ModelLoading,
    ModelNotFound,
    Overloaded,
)
from tests.api.stage import (
    HELLO,
    KEEPALIVE_S,
    READY,
    Exchange,
    ScriptedService,
    app_of,
    ask,
    chat_body,
    service_with,
)

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
LOADING = Progress(model="b\nx", stage="reading", value=0.42)


def stream(service: ScriptedService, target: str = CHAT, **fields: Any) -> Exchange:
    return ask(app_of(service), "POST", target, chat_body(stream=True, **fields))


def contents(exchange: Exchange) -> str:
    chunks = [event for event in exchange.events if isinstance(event, dict)]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def reasons(exchange: Exchange) -> list[str]:
    chunks = [event for event in exchange.events if isinstance(event, dict)]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def live(
    service: ScriptedService,
    body: dict[str, Any],
    scene: Callable[[Exchange], Awaitable[None]],
    target: str = CHAT,
    **server: Any,
) -> Exchange:
    """Run one request with ``scene`` beside it."""

    async def main() -> Exchange:
        exchange = Exchange("POST", target, json.dumps(body).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service, **server))
            await scene(exchange)
        return exchange

    return anyio.run(main)


def test_an_answer_in_one_piece() -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", CHAT, chat_body(model="hotswap/sums"))
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "application/json"
    answer = exchange.json
    assert answer["model"] == "hotswap/sums"
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["usage"]["total_tokens"] == 9
    assert service.running == 0


def test_a_stream_from_its_role_to_its_end() -> None:
    exchange = stream(ScriptedService(), stream_options={"include_usage": True})
    assert exchange.status == 200
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["cache-control"] == "no-cache"
    assert exchange.headers["x-accel-buffering"] == "no"
    events = exchange.events
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert contents(exchange) == "Hello"
    assert reasons(exchange) == ["stop"]
    assert events[-2]["usage"]["completion_tokens"] == 2
    assert events[-1] == "[DONE]"
    assert len({event["id"] for event in events[:-1]}) == 1
    assert exchange.complete


def test_a_completion_streams_too() -> None:
    exchange = ask(app_of(), "POST", COMPLETION, {"prompt": "x", "stream": True})
    texts = [event["choices"][0]["text"] for event in exchange.events[:-1]]
    assert "".join(texts) == "Hello"


def test_what_has_queued_goes_out_as_one_body() -> None:
    deltas = tuple((TextDelta(index=0, text=f"{i} "),) for i in range(100))
    service = ScriptedService(steps=(*deltas, HELLO[-1]))
    exchange = stream(service)
    assert contents(exchange).split() == [str(i) for i in range(100)]
    assert len(exchange.bodies) < 10


def test_a_stream_rests_between_its_news_and_not_before_its_end() -> None:
    rests: list[float] = []

    class Noting(Pace):
        async def rest(self) -> None:
            rests.append(self.rest_s)

    service = ScriptedService(steps=(HELLO[0], HELLO[0], HELLO[-1]))
    endpoint = GenerationEndpoint(
        service, parse_chat, keepalive_s=KEEPALIVE_S, pace=Noting(), traffic=Traffic()
    )
    exchange = Exchange("POST", CHAT, json.dumps(chat_body(stream=True)).encode())
    exchange.scope["state"] = {"request_id": "r"}
    anyio.run(exchange.run, endpoint)
    assert contents(exchange) == "HelloHello"
    assert len(rests) == 2


def test_the_request_id_goes_to_the_engine_and_back() -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", CHAT, chat_body(), {"X-Request-Id": "r-1"})
    assert exchange.headers["x-request-id"] == "r-1"
    assert service.requests[0].request_id == "r-1"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (ModelNotFound("no such model"), 404, "model_not_found"),
        (ContextLengthExceeded("too long", param="messages"), 400, "context_length_exceeded"),
        (Overloaded("full"), 429, "queue_full"),
        (ModelLoading("still loading"), 503, "model_loading"),
        (RuntimeError("/etc/secret"), 500, "internal_error"),
    ],
)
def test_a_refused_request_keeps_its_status(
    refusal: Exception, status: int, code: str, streaming: bool
) -> None:
    service = ScriptedService(refusal=refusal)
    exchange = ask(app_of(service), "POST", CHAT, chat_body(stream=streaming))
    assert exchange.status == status
    assert exchange.error["code"] == code
    assert "secret" not in exchange.error["message"]
    assert ("retry-after" in exchange.headers) == (status in (429, 503))


def test_a_refusal_while_loading_tells_how_far_it_is() -> None:
    service = service_with(progress=LOADING)
    service.refusal = ModelLoading("still loading")
    exchange = ask(app_of(service), "POST", CHAT, chat_body())
    assert exchange.json["loading"]["progress"] == 0.42


@pytest.mark.parametrize("streaming", [False, True])
def test_an_engine_that_fails_before_the_first_byte_has_a_status(streaming: bool) -> None:
    service = ScriptedService(steps=(EngineFailed("broke"),))
    exchange = ask(app_of(service), "POST", CHAT, chat_body(stream=streaming))
    assert exchange.status == 503
    assert exchange.error["code"] == "engine_failed"


@pytest.mark.parametrize("failure", [EngineFailed("broke"), RuntimeError("/etc/secret")])
def test_a_late_failure_is_an_error_event_and_no_finish_reason(failure: Exception) -> None:
    seen = anyio.Event()
    service = ScriptedService(steps=(HELLO[0], seen, failure))

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: b"Hel" in exchange.body)
        seen.set()

    exchange = live(service, chat_body(stream=True), scene)
    assert exchange.status == 200
    assert contents(exchange) == "Hello"
    assert exchange.events[-2]["error"]["type"] == "server_error"
    assert exchange.events[-1] == "[DONE]"
    assert reasons(exchange) == []
    assert b"secret" not in exchange.body
    assert exchange.complete


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_without_its_end_is_a_failure(streaming: bool) -> None:
    service = ScriptedService(steps=HELLO[:1])
    exchange = ask(app_of(service), "POST", CHAT, chat_body(stream=streaming))
    assert exchange.status == 503
    assert exchange.error["code"] == "engine_failed"


def test_a_held_stream_gets_200_and_comments_and_then_its_answer() -> None:
    service = service_with(progress=LOADING)
    service.admission = anyio.Event()

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: len(exchange.bodies) >= 3)
        assert service.admission is not None
        service.admission.set()

    exchange = live(service, chat_body(stream=True), scene, keepalive_s=0.005)
    assert exchange.status == 200
    assert exchange.events[:2] == [": loading b x 42%"] * 2
    assert contents(exchange) == "Hello"
    assert reasons(exchange) == ["stop"]


def test_a_load_that_fails_after_the_200_is_an_error_event() -> None:
    service = ScriptedService(admission=anyio.Event(), refusal=ModelLoading("took too long"))

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: exchange.answered)
        assert service.admission is not None
        service.admission.set()

    exchange = live(service, chat_body(stream=True), scene, keepalive_s=0.005)
    assert exchange.status == 200
    assert exchange.events[0] == ": waiting"
    assert exchange.events[-2]["error"]["code"] == "model_loading"
    assert exchange.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("query", "setting", "shown"),
    [
        ("?show_loading=true", False, True),
        ("", True, True),
        ("", False, False),
        ("?show_loading=false", True, False),
    ],
)
def test_loading_is_shown_as_reasoning_to_who_asks_for_it_or_as_the_model_has_it(
    query: str, setting: bool, shown: bool
) -> None:
    service = service_with(progress=LOADING)
    service.shown = setting
    service.admission = anyio.Event()

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: exchange.answered)
        assert service.admission is not None
        service.admission.set()

    exchange = live(service, chat_body(stream=True), scene, CHAT + query, keepalive_s=0.005)
    if shown:
        delta = exchange.events[0]["choices"][0]["delta"]
        assert delta["reasoning_content"].startswith("loading b x 42%")
    else:
        assert exchange.events[0] == ": loading b x 42%"
    assert contents(exchange) == "Hello"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "query", ["show_loading=perhaps", "show_loading=", "show_loading=true&show_loading=false"]
)
def test_it_is_said_once_and_clearly_whether_loading_is_shown(query: str, stream: bool) -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", f"{CHAT}?{query}", chat_body(stream=stream))
    assert (exchange.status, exchange.error["param"]) == (400, "show_loading")
    assert service.requests == []


def test_who_waits_for_others_answers_is_told_whose() -> None:
    resident = ModelSpec(id="a", path=None)
    snapshot = replace(READY, progress=replace(LOADING, stage="waiting"), resident=resident)
    assert progress_text(snapshot) == "loading b x 42%, waiting for answers of a"
    assert progress_text(replace(snapshot, progress=LOADING)) == "loading b x 42%"


def test_comments_keep_a_slow_answer_alive() -> None:
    slow = anyio.Event()
    service = ScriptedService(steps=(HELLO[0], slow, HELLO[1]))

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: exchange.body.count(b": generating\n\n") >= 2)
        slow.set()

    exchange = live(service, chat_body(stream=True), scene, keepalive_s=0.005)
    assert contents(exchange) == "Hello"
    assert exchange.events[-1] == "[DONE]"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("waiting_for", ["admission", "events"])
def test_a_client_that_leaves_ends_its_generation(streaming: bool, waiting_for: str) -> None:
    service = ScriptedService(steps=(HELLO[0], anyio.Event()))
    if waiting_for == "admission":
        service.admission = anyio.Event()

    async def scene(exchange: Exchange) -> None:
        await service.until(lambda: service.running == 1)
        if streaming and waiting_for == "events":
            await exchange.until(lambda: b"Hel" in exchange.body)
        exchange.leave()
        await service.until(lambda: service.running == 0)

    exchange = live(service, chat_body(stream=streaming), scene)
    assert not exchange.complete


def test_a_body_that_ends_early_is_nobodys_request() -> None:
    service = ScriptedService()

    async def main() -> Exchange:
        exchange = Exchange("POST", CHAT, [b'{"messages"', b":"])
        exchange.unread[-1]["more_body"] = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: not exchange.unread)
            exchange.leave()
        return exchange

    assert not anyio.run(main).answered
    assert service.requests == []


def test_all_choices_are_counted() -> None:
    steps = (
        tuple(TextDelta(index=i, text=str(i)) for i in range(2)),
        tuple(Finished(index=i, reason="length", completion_tokens=1) for i in range(2)),
    )
    service = ScriptedService(steps=steps)
    exchange = ask(app_of(service), "POST", CHAT, chat_body(n=2))
    assert [choice["message"]["content"] for choice in exchange.json["choices"]] == ["0", "1"]
    assert exchange.json["usage"]["completion_tokens"] == 2


def test_the_answer_names_the_model_that_answered() -> None:
    exchange = ask(app_of(), "POST", CHAT, chat_body())
    assert exchange.json["model"] == "hotswap/sums"


class Stalled(Exchange):
    """A client that takes nothing of the answer's body until ``reads`` is set."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reads = anyio.Event()

    async def _send(self, message: Any) -> None:
        if message.get("body"):
            await self.reads.wait()
        await super()._send(message)


@pytest.mark.parametrize("ending", [HELLO[-1], EngineFailed("unloaded")])
def test_a_stalled_reader_does_not_hold_its_generation(ending: Any) -> None:
    big = tuple((TextDelta(index=0, text="x" * 100_000),) for _ in range(50))
    cut = anyio.Event()
    service = ScriptedService(steps=(*big, cut, ending))

    async def main() -> Exchange:
        exchange = Stalled("POST", CHAT, json.dumps(chat_body(stream=True)).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await exchange.until(lambda: exchange.answered)
            assert service.running == 1
            cut.set()
            await service.until(lambda: service.running == 0)
            assert not exchange.bodies
            exchange.reads.set()
        return exchange

    exchange = anyio.run(main)
    assert len(contents(exchange)) == 5_000_000
    assert max(map(len, exchange.bodies)) < 500_000
    assert exchange.events[-1] == "[DONE]"
    failed = isinstance(ending, Exception)
    assert reasons(exchange) == ([] if failed else ["stop"])
    assert ("error" in exchange.events[-2]) == failed


def test_a_failure_after_the_200_and_before_any_token_is_an_error_event() -> None:
    cut = anyio.Event()
    service = ScriptedService(steps=(cut, EngineFailed("broke")))

    async def scene(exchange: Exchange) -> None:
        await exchange.until(lambda: exchange.answered)
        cut.set()

    exchange = live(service, chat_body(stream=True), scene)
    assert exchange.status == 200
    assert exchange.events[-2]["error"]["code"] == "engine_failed"
    assert exchange.events[-1] == "[DONE]"
    assert reasons(exchange) == []
