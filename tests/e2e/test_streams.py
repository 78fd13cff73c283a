"""The server where nobody can read what it writes: a full disk, and streams that are closed."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from hotswap.demo import MODELS_DIR
from tests.e2e.served import Server, command, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

FAULTY = Path(__file__).with_name("faulty.py")
QUESTION = {
    "model": "hotswap/sums",
    "messages": [{"role": "user", "content": "What is 45 + 27?"}],
    "temperature": 0,
}


@contextmanager
def muted(redirections: str, home: Path, launched: list[str]) -> Iterator[Server]:
    """It cannot say where it listens, so it is given the socket, as systemd does that."""
    hand_over = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null {redirections}'
    launcher = ["sh", "-c", hand_over, "sh", *launched]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = ("demo", "--models-dir", str(MODELS_DIR))
        stdin = listener.fileno()
        with serving(*arguments, home=home, launcher=launcher, stdin=stdin, ready=False) as server:
            server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield server


def asked(server: Server) -> int | None:
    """The status of the answer; None: it was cut."""
    with server.http() as http, suppress(httpx2.TransportError):
        return http.post("/v1/chat/completions", json=QUESTION).status_code
    return None


@pytest.mark.parametrize("redirections", [">/dev/full", "2>/dev/full", "2>&-"])
def test_it_serves_without_a_log(redirections: str, tmp_path: Path) -> None:
    with muted(redirections, tmp_path, command()) as server:
        assert asked(server) == 200
        server.wait_until(lambda: server.resident() == "hotswap/sums")
        assert server.terminate() == 0
    assert not any("Traceback" in line for line in server.lines)


@pytest.mark.parametrize("redirections", [">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
def test_it_begins_again_without_a_log(redirections: str, tmp_path: Path) -> None:
    with muted(redirections, tmp_path, [sys.executable, str(FAULTY), str(tmp_path)]) as server:
        assert asked(server) == 200
        (tmp_path / "lost").touch()
        assert asked(server) == 503
        server.wait_until(lambda: asked(server) == 200)  # who comes before it has left is told so
        assert server.status()["restarts"] == 1
        assert server.terminate() == 0
