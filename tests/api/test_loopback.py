"""The app behind a real Hypercorn on loopback, asked by the official client."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import openai
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config

from hotswap.api import body as body_module
from hotswap.api.body import MAX_BODY_BYTES
from hotswap.errors import (
    CheckpointRefused,
    ContextLengthExceeded,
    EngineFailed,
    ModelNotFound,
    NotPermitted,
    Overloaded,
    ShuttingDown,
)
from tests.api.stage import HELLO, ScriptedService, app_of, chat_body

USER: list[Any] = [{"role": "user", "content": "hi"}]


class Watched(ScriptedService):
    """Tells other threads when no generation runs any more."""

    def __post_init__(self) -> None:
        self.idle = threading.Event()
        super().__post_init__()

    def _poke(self) -> None:
        super()._poke()
        if self.requests and self.running == 0:
            self.idle.set()


@contextmanager
def served(service: ScriptedService, *, leave_s: float = 1, **server: Any) -> Iterator[int]:
    """A server with ``service`` behind it; gives its port. Behind the block connections that are
    still busy are waited for, ``leave_s`` at most."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # open already: nobody has to wait for the start
    config.errorlog = None
    config.graceful_timeout = leave_s
    app: Any = app_of(service, **server)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    serving = serve(app, config, shutdown_trigger=stop.wait)
    thread = threading.Thread(target=loop.run_until_complete, args=[serving])
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextmanager
def client(service: ScriptedService, **server: Any) -> Iterator[openai.OpenAI]:
    with (
        served(service, api_keys=("key",), **server) as port,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="key", max_retries=0, timeout=5
        ) as ours,
    ):
        yield ours


def test_the_official_client_is_answered() -> None:
    with client(ScriptedService()) as ours:
        answer = ours.chat.completions.create(model="hotswap/sums", messages=USER)
        assert answer.choices[0].message.content == "Hello"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 9
        text = ours.completions.create(model="hotswap/sums", prompt="x")
        assert text.choices[0].text == "Hello"


def test_the_official_client_streams() -> None:
    with client(ScriptedService()) as ours:
        chunks = list(
            ours.chat.completions.create(
                model="hotswap/sums",
                messages=USER,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == "Hello"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2
        texts = ours.completions.create(model="hotswap/sums", prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in texts) == "Hello"


def test_the_official_client_lists_models() -> None:
    with client(ScriptedService()) as ours:
        assert [model.id for model in ours.models.list()] == ["hotswap/sums", "hotswap/tales"]
        assert ours.models.retrieve("hotswap/sums").owned_by == "hotswap"


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (ContextLengthExceeded("too long"), openai.BadRequestError),
        (NotPermitted("no"), openai.PermissionDeniedError),
        (ModelNotFound("none"), openai.NotFoundError),
        (CheckpointRefused("broken"), openai.UnprocessableEntityError),
        (Overloaded("full"), openai.RateLimitError),
        (ShuttingDown("bye"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_official_client_raises_the_right_error(
    refusal: Any, expected: type[openai.APIStatusError], stream: bool
) -> None:
    with (
        client(ScriptedService(refusal=refusal)) as ours,
        pytest.raises(expected) as caught,
    ):
        ours.chat.completions.create(model="m", messages=USER, stream=stream)
    assert caught.value.code == refusal.code
    assert caught.value.request_id


def test_the_official_client_sees_a_late_failure() -> None:
    seen = threading.Event()
    service = ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke")))
    with client(service) as ours:
        stream = ours.chat.completions.create(model="m", messages=USER, stream=True)
        next(stream)
        seen.set()
        with pytest.raises(openai.APIError, match="broke"):
            list(stream)


def test_a_wrong_key_is_an_authentication_error() -> None:
    with client(ScriptedService()) as ours, pytest.raises(openai.AuthenticationError):
        ours.with_options(api_key="wrong").models.list()


def get(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("name", ["hotswap/sums", "hotswap%2Fsums", "hotswap%2fsums", "sums"])
def test_a_models_name_may_be_raw_or_encoded(name: str) -> None:
    with served(ScriptedService()) as port:
        status, body = get(port, f"/v1/models/{name}")
    assert (status, body["id"]) == (200, "hotswap/sums")


def test_a_name_is_decoded_once() -> None:
    with served(ScriptedService()) as port:
        assert get(port, "/v1/models/hotswap%252Fsums")[0] == 404


def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    body = b"x" * (3 << 20)
    with served(ScriptedService(), api_keys=("key",)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        assert answer.status == 401
        assert json.loads(answer.read())["error"]["code"] == "invalid_api_key"
        connection.close()


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 40 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_all_before_it_reads_is_told_that_it_is_too_much(
    size: int, chunked: bool
) -> None:
    """As Python's own does, and whatever is built on it."""
    body: Any = itertools.repeat(b"x" * 65536, size // 65536 + 1) if chunked else b"x" * size
    with served(ScriptedService()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, encode_chunked=chunked)
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["code"] == "request_too_large"
        connection.close()


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/livez")])
def test_a_client_that_sends_without_end_is_cut_off_and_leaves_nothing_behind(
    method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "MAX_LINGERED_BYTES", 1 << 20)
    endless = itertools.repeat(b"x" * 65536, 10_000)
    with served(ScriptedService(), leave_s=600) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with pytest.raises(ConnectionError):
            connection.request(method, path, endless, encode_chunked=True)
        connection.close()
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 300, "no task waits for somebody to read the rest"


def test_a_body_that_nobody_wants_does_not_cost_the_answer() -> None:
    with served(ScriptedService()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for size in (1000, 2 << 20):
            connection.request("GET", "/livez", b"x" * size)
            answer = connection.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read()) == {"status": "ok"}
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_generation(stream: bool) -> None:
    service = Watched(steps=(HELLO[0], anyio.Event()))
    with served(service, keepalive_s=0.01) as port:
        body = json.dumps(chat_body(stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            head = f"Host: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + body)
            if stream:
                assert connection.recv(1)
        assert service.idle.wait(60)


def test_framing_that_smuggles_is_refused() -> None:
    with (
        served(ScriptedService()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
    ):
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n"
            b"Host: localhost\r\n\r\n"
        )
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
