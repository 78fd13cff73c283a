"""SIGHUP, signals that come before anybody heeds them, and a socket that systemd listens on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotswap.demo import MODELS_DIR
from tests.e2e.served import Server, command, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"
QUESTION = {"messages": [{"role": "user", "content": "What is 45 + 27?"}], "temperature": 0}
TALE = {
    "model": TALES,
    "messages": [{"role": "user", "content": "Tell me a story about a boat."}],
    "temperature": 0,
    "stream": True,
}


@contextmanager
def telling_a_tale(server: Server) -> Iterator[list[str]]:
    """A stream that has begun; its lines, all of them when the block has ended."""
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with (
            server.http() as http,
            http.stream("POST", "/v1/chat/completions", json=TALE) as answer,
        ):
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()

    reading = threading.Thread(target=read)
    reading.start()
    assert begun.wait(60)
    try:
        yield lines
    finally:
        reading.join(60)
        assert not reading.is_alive()


def reread(server: Server, nth: int) -> None:
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line("SIGHUP: (changed|nothing)", 30.0, nth=nth)


def test_sighup_takes_over_what_was_changed_and_drops_nothing(tmp_path: Path) -> None:
    models, more = tmp_path / "models", tmp_path / "more"
    shutil.copytree(MODELS_DIR, models)
    shutil.copytree(MODELS_DIR / "hotswap" / "sums", more / "newcomer")
    config = tmp_path / "hotswap.yaml"
    rest = f"enable-on-demand-loading: true\nmodel: {TALES}\ndev-mode: true\n"
    config.write_text(f"{rest}models-dir: {models}\n")
    changed = f"{rest}models-dir: [{models}, {more}]\nmax-queue: 3\napi-key: secret\n"
    per_model = f"models: {{{TALES}: {{max_model_len: 200, aliases: [bard]}}}}\n"
    with serving("--config", str(config), home=tmp_path) as server, server.http() as http:
        with telling_a_tale(server) as tale:
            config.write_text(changed + per_model)
            reread(server, nth=1)
        assert tale[-2:] == ["data: [DONE]", ""]
        assert server.status()["resident"]["engine"]["max_model_len"] is None, "it stays as it is"
        assert server.status()["loads"] == 1
        answer = http.post("/v1/chat/completions", json={**QUESTION, "model": "newcomer"})
        assert answer.status_code == 200
        assert server.resident() == "newcomer"
        # No key is asked for: that only a restart changes, and it says so without telling the key.
        server.wait_for_line("WARNING SIGHUP: only a restart changes --api-key$")
        server.wait_for_line("SIGHUP: changed: --models-dir, --max-queue, models:; models: 3")
        assert not any("secret" in line for line in server.lines)
        answer = http.post("/v1/chat/completions", json={**QUESTION, "model": "bard"})
        assert answer.json()["model"] == TALES
        assert server.status()["resident"]["engine"]["max_model_len"] == 200, "at its next load"

        config.write_text("max-queue: many\n")
        reread(server, nth=2)
        server.wait_for_line("ERROR +SIGHUP: nothing is changed: .*max-queue.*many")
        config.write_text(changed.replace(TALES, "./no/such/directory"))
        reread(server, nth=3)
        server.wait_for_line("ERROR +SIGHUP: nothing is changed: --model ./no/such/directory")
        answer = http.post("/v1/chat/completions", json={**QUESTION, "model": "newcomer"})
        assert answer.status_code == 200
        assert {one["id"] for one in http.get("/v1/models").json()["data"]} >= {"newcomer", SUMS}
        assert server.terminate() == 0
    assert not any("Traceback" in line for line in server.lines)


def test_when_its_terminal_is_closed_it_stops(tmp_path: Path) -> None:
    """Which is what SIGHUP meant in the first place."""
    ours, its = os.openpty()
    with serving("demo", home=tmp_path, stdin=its) as server:
        os.close(its)
        os.close(ours)
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_before_it_is_heeded_is_not_lost(
    told: signal.Signals, tmp_path: Path
) -> None:
    """As one that comes while the process starts itself again."""
    begin = (
        f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(told)}]);"
        f"os.kill(os.getpid(), {int(told)}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    launcher = [sys.executable, "-c", begin, *command()]
    with serving("demo", home=tmp_path, launcher=launcher, ready=told != signal.SIGTERM) as server:
        if told == signal.SIGTERM:
            assert server.process.wait(60) == 0
        else:
            server.wait_for_line("SIGHUP: changed: no setting")


def test_a_socket_of_systemd_is_served(tmp_path: Path) -> None:
    hand_over = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'
    launcher = ["sh", "-c", hand_over, "sh", *command()]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with serving("demo", home=tmp_path, launcher=launcher, stdin=listener.fileno()) as server:
            assert server.url.endswith(f":{listener.getsockname()[1]}")
            with server.http() as http:
                answer = http.post("/v1/chat/completions", json={**QUESTION, "model": SUMS})
            assert answer.status_code == 200
            assert server.terminate() == 0
        # It is systemd's: who comes now waits for the next server.
        with socket.create_connection(listener.getsockname(), timeout=5.0):
            pass


def test_the_log_has_a_line_for_each_swap_that_machines_can_read(tmp_path: Path) -> None:
    arguments = ("demo", "--log-format", "json")
    typo = {"HOTSWAP_TYPO": "1"}  # which is warned of before anything else
    with serving(*arguments, home=tmp_path, env=typo) as server, server.http() as http:
        headers = {"x-request-id": "my-request"}
        body = {**QUESTION, "model": TALES, "max_tokens": 5}
        assert http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        assert server.terminate() == 0
    assert [line for line in server.lines if not line.startswith('{"time"')] == []
    told = [json.loads(line) for line in server.lines]
    assert "HOTSWAP_TYPO" in told[0]["message"]
    swaps = [line for line in told if line.get("event") == "swap"]
    assert [(one["by"], one["from"], one["to"], one["result"]) for one in swaps] == [
        ("start-up", None, SUMS, "loaded"),
        ("request my-request", SUMS, TALES, "loaded"),
        ("shutdown", TALES, None, "unloaded"),
    ]
    swap = swaps[1]
    assert {"queued", "prepare", "drain", "teardown", "start", "gap"} <= swap["seconds"].keys()
    assert swap["weights_bytes"] > 1_000_000
    assert isinstance(swap["leaked_bytes"], int)
    assert swap["failed"] is False
