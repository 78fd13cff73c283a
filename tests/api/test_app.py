"""Hostile input over all routes: whatever comes, the answer is an envelope and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import Message

from hotswap.api.app import create_app
from hotswap.api.openai import Chat, Completion
from hotswap.api.responses import ResponseBody
from hotswap.config import Settings
from tests.api.bad_json import BAD_JSON
from tests.api.stage import Problems, ScriptedService, app_of, ask, chat_body

JSON_ROUTES = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/load_model",
    "/v1/unload_model",
    "/models/load",
    "/models/unload",
    "/sleep",
    "/wake_up",
]
LEAST: dict[str, dict[str, object]] = {
    "/v1/chat/completions": chat_body(),
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/responses/input_tokens": {"input": "x"},
    "/sleep": {"level": 1},
    "/wake_up": {"tags": ["weights"]},
}
NOTHING_IS_FINE = ("/v1/load_model", "/v1/unload_model", "/sleep", "/wake_up")


@pytest.mark.parametrize("route", JSON_ROUTES)
def test_bad_json_is_a_400_on_every_route(route: str) -> None:
    service = ScriptedService()
    app = app_of(service)
    for kind, raw in BAD_JSON.items():
        if route in NOTHING_IS_FINE and not raw.strip():
            continue
        exchange = ask(app, "POST", route, raw)
        assert exchange.status == 400, kind
        assert exchange.error["code"] == "invalid_json", kind
    assert service.orders == []
    assert service.requests == []


@pytest.mark.parametrize("route", JSON_ROUTES)
@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/vnd.x+json"]
)
def test_json_is_json_whatever_it_is_called(route: str, kind: str) -> None:
    body = json.dumps(LEAST.get(route, {"model": "sums"})).encode()
    assert ask(app_of(), "POST", route, body, {"Content-Type": kind}).status == 200


@pytest.mark.parametrize("route", [r for r in JSON_ROUTES if r not in NOTHING_IS_FINE])
def test_a_form_where_json_is_due_is_415(route: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=xx"}
    exchange = ask(app_of(), "POST", route, b"--xx--", headers)
    assert exchange.status == 415
    assert exchange.error["code"] == "unsupported_media_type"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(
    {*Chat.__struct_fields__, *Completion.__struct_fields__, *ResponseBody.__struct_fields__}
    | {"tool_choice", "response_format", "config", "mode", "drain_timeout_s"}
)


@given(
    route=st.sampled_from(JSON_ROUTES),
    fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4),
)
def test_no_object_breaks_a_route(route: str, fields: dict[str, object]) -> None:
    exchange = ask(app_of(), "POST", route, {**LEAST.get(route, {}), **fields})
    assert exchange.status in (200, 400, 404)
    if exchange.status != 200:
        assert exchange.error["message"]


@given(route=st.sampled_from(JSON_ROUTES), raw=st.binary(max_size=50))
def test_no_bytes_break_a_route(route: str, raw: bytes) -> None:
    assert ask(app_of(), "POST", route, raw).status in (200, 400)


def test_the_lifespan_given_is_lived_through() -> None:
    lived: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        lived.append("in")
        yield
        lived.append("out")

    async def main() -> None:
        app = create_app(ScriptedService(), Settings(), Problems(), lifespan)
        incoming: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> Message:
            return incoming.pop(0)

        async def send(message: Message) -> None:
            lived.append(message["type"])

        await app({"type": "lifespan"}, receive, send)

    anyio.run(main)
    assert lived == ["in", "lifespan.startup.complete", "out", "lifespan.shutdown.complete"]
