from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from hotswap.api import edge as edge_module
from hotswap.api.body import MAX_BODY_BYTES, MAX_DISCARDED_BYTES
from hotswap.api.edge import Edge, ErrorEnvelope
from hotswap.contracts.listing import ModelListing
from tests.api.stage import Exchange, ScriptedService, app_of, ask, chat_body

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
    ],
)
def test_what_the_router_refuses_wears_the_envelope(
    method: str, path: str, status: int, code: str
) -> None:
    exchange = ask(app_of(), method, path)
    assert exchange.status == status
    assert exchange.error["code"] == code
    assert "x-request-id" in exchange.headers
    if status == 405:
        assert exchange.headers["allow"]


@pytest.mark.parametrize("given", ["r-1", "A.b_c-9", "x" * 128])
def test_a_sane_request_id_is_kept(given: str) -> None:
    exchange = ask(app_of(), "GET", "/livez", headers={"x-request-id": given})
    assert exchange.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "<script>", "é", "a;b"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    exchange = ask(app_of(), "GET", "/livez", headers={"x-request-id": given})
    assert exchange.headers["x-request-id"] != given
    assert len(exchange.headers["x-request-id"]) == 32


def test_each_request_has_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hotswap.access")
    headers = {"x-request-id": "r-1", "Authorization": "Bearer sk-secret"}
    body = {"messages": [{"role": "user", "content": "private"}], "n": 99}
    ask(app_of(), "POST", f"{CHAT}?key=query", body, headers)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"POST '{CHAT}' 400 ")
    assert line.endswith(" ms r-1")
    assert not any(word in line for word in ("private", "secret", "query"))


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("GET", "/livez", logging.DEBUG),
        ("GET", "/v1/models", logging.DEBUG),
        ("GET", "/nowhere", logging.INFO),
        ("POST", "/v1/unload_model", logging.INFO),
    ],
)
def test_a_look_that_went_well_is_no_news(
    method: str, path: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="hotswap.access")
    ask(app_of(), method, path)
    (record,) = (record for record in caplog.records if record.name == "hotswap.access")
    assert record.levelno == level


def test_a_path_cannot_forge_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hotswap.access")
    ask(app_of(), "GET", "/x\r\nGET '/' 200 \x1b[31m" + "y" * 500)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.isprintable()
    assert len(line) < 300


def test_an_early_refusal_first_reads_what_is_still_coming() -> None:
    parts = [b"x" * 1000] * 5
    exchange = ask(app_of(api_keys=("key",)), "POST", CHAT, parts)
    assert exchange.status == 401
    assert exchange.unread == []
    assert "connection" not in exchange.headers


def test_a_body_too_large_to_be_read_closes_the_connection() -> None:
    parts = [b"x" * (1 << 20)] * 100
    headers = {"content-length": str(100 << 20)}
    exchange = ask(app_of(), "POST", CHAT, parts, headers)
    assert exchange.status == 413
    assert exchange.error["code"] == "request_too_large"
    assert exchange.headers["connection"] == "close"


def test_a_refusal_is_told_before_the_rest_of_a_body_that_is_too_large_is_read() -> None:
    """Its end waits: with it the connection is closed, and what was not read resets it."""
    told_at: list[int] = []

    class Watched(Exchange):
        async def _send(self, message: Message) -> None:
            told_at.append(len(self.unread))
            await super()._send(message)

    size = MAX_BODY_BYTES + (12 << 20)
    parts = [b"x" * (1 << 20)] * (size >> 20)
    exchange = Watched("POST", CHAT, parts, {"content-length": str(size)})
    anyio.run(exchange.run, app_of())
    assert exchange.status == 413
    assert exchange.error["code"] == "request_too_large"
    head, body, end = told_at
    assert head == body == len(parts) - (MAX_DISCARDED_BYTES >> 20) - 1
    assert end == 0
    assert exchange.complete


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_an_answer_ends_though_the_client_does_not_stop_sending(version: str) -> None:
    class Full(Exchange):
        """Ends no request while it holds parts of its body, as Hypercorn."""

        async def _send(self, message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await self.until(lambda: not self.unread)
            await super()._send(message)

    parts = [b"x" * (1 << 20)] * 100
    exchange = Full("POST", CHAT, parts, {"content-length": str(100 << 20)})
    exchange.scope["http_version"] = version
    anyio.run(exchange.run, app_of())
    assert exchange.status == 413
    assert exchange.complete


def test_what_nobody_reads_is_read_though_the_answer_is_no_refusal() -> None:
    parts = [b"x" * (1 << 20)] * 3
    exchange = ask(app_of(), "GET", "/livez", parts, {"content-length": str(3 << 20)})
    assert exchange.status == 200
    assert exchange.unread == []
    assert "connection" not in exchange.headers


def test_a_body_of_unknown_length_is_cut_at_the_limit() -> None:
    parts = [b"x" * (1 << 20)] * ((MAX_BODY_BYTES >> 20) + 2)
    assert ask(app_of(), "POST", CHAT, parts).status == 413


def test_the_unexpected_is_a_plain_500() -> None:
    class Broken(ScriptedService):
        async def models(self) -> tuple[ModelListing, ...]:
            raise KeyError("/etc/secret")

    exchange = ask(app_of(Broken()), "GET", "/v1/models")
    assert exchange.status == 500
    assert exchange.error["code"] == "internal_error"
    assert exchange.error["type"] == "server_error"
    assert b"secret" not in exchange.body
    assert b"Traceback" not in exchange.body


def test_an_answer_that_breaks_off_is_not_followed_by_another() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    app = Edge(ErrorEnvelope(broken, loading=lambda: None))
    exchange = ask(app, "GET", "/")
    assert exchange.status == 200
    assert exchange.body == b""
    assert not exchange.complete


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "_SEND_DEADLINE_S", 0.01)
    service = ScriptedService()

    class Stalled(Exchange):
        async def _send(self, message: Message) -> None:
            if message.get("body"):
                await anyio.sleep_forever()
            await super()._send(message)

    async def main() -> None:
        body = json.dumps(chat_body(stream=True)).encode()
        await Stalled("POST", CHAT, body).run(app_of(service))

    anyio.run(main)
    assert len(service.requests) == 1
    assert service.running == 0


def test_websockets_are_turned_away() -> None:
    sent: list[Message] = []

    async def main() -> None:
        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "websocket", "path": "/v1/models", "headers": []}
        await app_of()(scope, receive, send)

    anyio.run(main)
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_http_2_is_not_told_about_connections() -> None:
    exchange = Exchange("POST", CHAT, [b"x"] * 3, {"content-length": str(100 << 20)})
    exchange.scope["http_version"] = "2"
    exchange.unread[-1]["more_body"] = True
    exchange.unread.append({"type": "http.request", "body": b"x" * (5 << 20), "more_body": True})
    anyio.run(exchange.run, app_of())
    assert exchange.status == 413
    assert "connection" not in exchange.headers
