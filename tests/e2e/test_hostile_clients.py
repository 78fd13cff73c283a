"""Clients that send what they should not, leave when they should not, and read when they like: the
real server refuses what is wrong, and everybody else is served as before."""

from __future__ import annotations

import http.client
import json
import re
import select
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import openai
import pytest

from hotswap.config import settle_files
from tests.e2e.bad_inputs import CHAT, GROUPS, SOUND, SUMS, UNANSWERED, Bad, operations, posted
from tests.e2e.served import Server
from tests.proxy import Line, proxied

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

TALES = "hotswap/tales"
ANSWERED_WITHIN_S = 20.0
HANGS = -1
"""There was no answer by then, and the connection was not closed either."""
QUESTIONS = {SUMS: "What is 45 + 27?", TALES: "Tell me a story about a small dragon."}
SAID_OF_A_BUG = re.compile(r"Traceback|Error in ASGI|failed unexpectedly|unexpected error")


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def chat(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTIONS[model]}]
    return {"model": model, "messages": messages, "temperature": 0, **fields}


def said(server: Server, model: str) -> str:
    """The greedy answer."""
    with server.http() as http:
        answer = http.post(CHAT, json=chat(model, max_tokens=24)).json()
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def before(demo: Server) -> dict[str, str]:
    """What the models said to begin with."""
    return {model: said(demo, model) for model in (TALES, SUMS)}


def statuses(received: bytes) -> list[int]:
    found = re.findall(rb"^HTTP/1\.1 (\d\d\d) ", received, re.MULTILINE)
    return [status for status in map(int, found) if status >= 200]


def answer_to(port: int, bad: Bad) -> int:
    """The status of the answer.

    Raises:
        AssertionError: there was more than one.
    """
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWERED_WITHIN_S) as connection:
        try:
            connection.sendall(bad.raw)
            while not bad.leaves and (data := connection.recv(1 << 16)):
                received += data
        except ConnectionError:
            pass  # closed, perhaps behind an answer
        except TimeoutError:
            return HANGS
    found = statuses(bytes(received))
    assert len(found) <= 1, bad.name
    return found[0] if found else UNANSWERED


def test_every_route_with_a_body_is_abused() -> None:
    assert {operation.path for operation in operations()} == SOUND.keys()
    assert sum(1 for group in GROUPS for _ in group()) >= 500


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_bad_inputs_are_refused_and_change_nothing(
    group: Callable[[], Iterator[Bad]], demo: Server, before: dict[str, str]
) -> None:
    inputs = list(group())
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(partial(answer_to, port_of(demo)), inputs))
    wrong = {
        bad.name: status
        for bad, status in zip(inputs, answers, strict=True)
        if status not in bad.allowed
    }
    assert not wrong
    demo.wait_until(lambda: demo.status()["leases"] == 0)
    assert demo.process.poll() is None
    assert said(demo, SUMS) == before[SUMS]
    assert not [line for line in demo.lines if SAID_OF_A_BUG.search(line)]


def test_sound_bodies_are_answered(demo: Server) -> None:
    """Or the others would be refused for another reason than the one that is meant."""
    embedding = ("/v1/embeddings", "/api/embed", "/api/embeddings")
    inputs = [
        Bad(path, posted(path, body), (400,) if path in embedding else (200,))
        for path, body in SOUND.items()
    ]
    for bad in inputs:
        assert answer_to(port_of(demo), bad) in bad.allowed, bad.name


@pytest.mark.parametrize("size", [9 << 20, 40 << 20])
def test_pythons_own_client_reads_why_its_large_body_is_refused(demo: Server, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(demo), timeout=ANSWERED_WITHIN_S)
    connection.request("POST", CHAT, b" " * size)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "request_too_large"
    connection.close()


# -- connections that are cut, slow or silent


def endless(**fields: Any) -> dict[str, Any]:
    """A story that ends with its length."""
    return chat(TALES, stream=True, ignore_eos=True, **{"max_tokens": 3000, **fields})


def streamed(port: int, body: dict[str, Any]) -> bytes:
    """All that comes back until the connection ends, in whatever way."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(posted(CHAT, body))
        try:
            while data := connection.recv(1 << 16):
                received += data
        except ConnectionResetError:
            pass
    return bytes(received)


def is_idle(server: Server) -> bool:
    status = server.status()
    engine = status["engine"]
    return not status["leases"] and not engine["running"] and not engine["details"]["kv_used_bytes"]


@pytest.mark.parametrize("cut_after_bytes", [1, 200, 5_000, 60_000])
def test_a_stream_that_is_cut_gives_its_place_back(demo: Server, cut_after_bytes: int) -> None:
    said(demo, TALES)
    drawn = demo.status()["engine"]["tokens"]
    with proxied(port_of(demo), down=Line(cut_after_bytes=cut_after_bytes)) as port:
        assert len(streamed(port, endless())) <= cut_after_bytes
    demo.wait_until(lambda: is_idle(demo))
    engine = demo.status()["engine"]
    assert engine["tokens"] - drawn < 3000
    with demo.http() as http:
        assert http.post(CHAT, json=chat(TALES, max_tokens=1)).status_code == 200
    # One that was under way when its client left, and those of the last answer.
    assert demo.status()["engine"]["steps"] - engine["steps"] <= 3


def test_a_request_that_is_cut_on_its_way_is_nobodys(demo: Server) -> None:
    answered = demo.status()["engine"]["tokens"]
    whole = len(posted(CHAT, endless()))
    for cut_after_bytes in (1, 80, whole - 1):
        with proxied(port_of(demo), up=Line(cut_after_bytes=cut_after_bytes)) as port:
            assert streamed(port, endless()) == b""
    assert demo.status()["engine"]["tokens"] == answered


def test_a_connection_that_is_late_with_everything_is_served(
    demo: Server, before: dict[str, str]
) -> None:
    with (
        proxied(port_of(demo), up=Line(delay_s=0.3), down=Line(delay_s=0.3)) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(**chat(SUMS, max_tokens=24))
    assert answer.choices[0].message.content == before[SUMS]


def test_slow_readers_do_not_slow_the_others_down(demo: Server) -> None:
    """Beside clients that read a byte a second, the others have their whole answers, and no step is
    for the slow ones alone that could be for all. The rates are in docs/performance.md."""
    said(demo, TALES)
    tokens = 300
    body, before = endless(max_tokens=tokens), demo.status()["engine"]["steps"]
    with proxied(port_of(demo), down=Line(bytes_per_s=1.0)) as slow, ExitStack() as leaving:
        for _ in range(3):
            reader = leaving.enter_context(socket.create_connection(("127.0.0.1", slow), 60))
            reader.sendall(posted(CHAT, body))
            assert reader.recv(1)
        with ThreadPoolExecutor(3) as clients:
            answers = list(clients.map(partial(streamed, port_of(demo)), [body] * 3))
        demo.wait_until(lambda: not demo.status()["engine"]["running"])
        steps = demo.status()["engine"]["steps"] - before
    assert all(b"[DONE]" in answer for answer in answers)
    assert steps <= 2 * tokens + 20, "those who came first may have ended before the others came"


def test_a_slow_reader_keeps_no_model_on_the_device(demo: Server, before: dict[str, str]) -> None:
    said(demo, TALES)
    with (
        proxied(port_of(demo), down=Line(bytes_per_s=1.0)) as slow,
        socket.create_connection(("127.0.0.1", slow), timeout=60) as reader,
    ):
        # With more to send than the kernel takes for a reader.
        reader.sendall(posted(CHAT, endless(max_tokens=700, logprobs=True, top_logprobs=20)))
        assert reader.recv(1)
        assert said(demo, SUMS) == before[SUMS]
        assert demo.resident() == SUMS
        assert reader.recv(1), "and is still read to"


def test_a_thousand_idle_connections_keep_nobody_waiting(
    demo: Server, before: dict[str, str]
) -> None:
    """Neither those that say nothing nor those that never come to the end of their headers."""
    settle_files()  # this process has as many of them open as the server
    with ExitStack() as leaving:
        idle = [
            leaving.enter_context(socket.create_connection(("127.0.0.1", port_of(demo)), 20))
            for _ in range(1000)
        ]
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: ")
        with demo.http() as http:
            for path in ("/livez", "/readyz", "/v1/models"):
                assert http.get(path).status_code == 200
        assert said(demo, SUMS) == before[SUMS]
        poll = select.poll()  # `select` takes no descriptor above 1,023
        for connection in idle:
            poll.register(connection, select.POLLIN)
        ended = poll.poll(0)
        assert len(ended) < len(idle), "the answers came while they were there"
        for connection in idle:
            assert connection.recv(1) == b"", "they are not kept for long either"


def test_after_all_that_the_models_say_what_they_said_before(
    demo: Server, before: dict[str, str]
) -> None:
    assert {model: said(demo, model) for model in before} == before
    assert demo.process.poll() is None
