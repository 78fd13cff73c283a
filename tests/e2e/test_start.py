"""The server from its first moment on, with torch as slow to import as a test wants it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from hotswap.demo import MODELS_DIR
from tests.e2e.served import Server, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS = MODELS_DIR / "hotswap" / "sums"
QUESTION = {"messages": [{"role": "user", "content": "What is 45 + 27?"}], "temperature": 0}
STAND_IN = """
import importlib, sys
from pathlib import Path
here = Path(__file__).parent.parent
if error := (here / "verdict").read_text():  # a pipe: waits for somebody to write
    raise ImportError(error)
sys.path.remove(str(here))
del sys.modules["torch"]
importlib.import_module("torch")
"""


@dataclass
class Starting:
    server: Server
    verdict: Path

    def import_ends(self, error: str = "") -> None:
        """Let torch be imported, or fail to be."""
        self.verdict.write_text(error)

    def ask(self, **fields: str) -> HTTPConnection:
        """A request that the server has got; its answer is still to be read."""
        address = self.server.url.removeprefix("http://")
        connection = HTTPConnection(address, timeout=120)
        headers, body = {"Content-Type": "application/json"}, json.dumps({**QUESTION, **fields})
        connection.request("POST", "/v1/chat/completions", body, headers)
        with self.server.http() as http:
            for _ in range(3):  # what came before these has been read when they are answered
                assert http.get("/livez").status_code == 200
        return connection


@contextmanager
def starting(home: Path, *arguments: str) -> Iterator[Starting]:
    """A server in which the import of torch waits to be told how it ends."""
    library = home / "library"
    (library / "torch").mkdir(parents=True)
    (library / "torch" / "__init__.py").write_text(STAND_IN)
    verdict = library / "verdict"
    os.mkfifo(verdict)
    paths = [str(library), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths)}
    with serving(*arguments, home=home, env=env, ready=False) as server:
        server.url = server.wait_for_line(r"at (http://127\.0\.0\.1:\d+)").group(1)
        yield Starting(server, verdict)


def test_before_torch_is_there_it_is_alive_and_not_ready_and_holds_requests(
    tmp_path: Path,
) -> None:
    with starting(tmp_path, "--model", str(SUMS)) as start, start.server.http() as http:
        assert http.get("/readyz").status_code == 503, "the first answer of all"
        assert http.get("/livez").status_code == 200
        assert http.get("/health").json()["phase"] == "loading"
        assert [one["id"] for one in http.get("/v1/models").json()["data"]] == ["sums"]
        with closing(start.ask()) as asked:
            start.import_ends()
            answer = asked.getresponse()
            assert answer.status == 200
            assert "72" in json.loads(answer.read())["choices"][0]["message"]["content"]
        assert http.get("/readyz").status_code == 200
        assert start.server.terminate() == 0


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_torch_is_imported_it_stops_at_once(
    told: signal.Signals, tmp_path: Path
) -> None:
    with starting(tmp_path, "--model", str(SUMS)) as start:
        with closing(start.ask()) as asked:
            start.server.process.send_signal(told)
            answer = asked.getresponse()
            assert answer.status == 503
            assert "shutting down" in answer.read().decode()
        assert start.server.process.wait(30) == 0
    assert not any("Traceback" in line or "ERROR" in line for line in start.server.lines)


def test_an_import_that_fails_ends_the_server_with_one_clear_line(tmp_path: Path) -> None:
    with starting(tmp_path, "--model", str(SUMS)) as start, start.server.http() as http:
        assert http.get("/livez").status_code == 200
        start.import_ends("libmissing.so: cannot open shared object file")
        assert start.server.process.wait(30) == 2
        start.server.wait_for_line("^hotswap: error: .*libmissing.so")


def test_without_a_model_it_says_that_it_is_ready_once_torch_is_there(tmp_path: Path) -> None:
    arguments = ("--models-dir", str(MODELS_DIR), "--enable-on-demand-loading")
    with starting(tmp_path, *arguments) as start, start.server.http() as http:
        assert len(http.get("/v1/models").json()["data"]) == 2
        assert not any("ready at" in line for line in start.server.lines)
        with closing(start.ask(model="hotswap/sums")) as asked:
            start.server.wait_until(lambda: start.server.status()["waiting"] == {"hotswap/sums": 1})
            start.import_ends()
            assert asked.getresponse().status == 200
        start.server.wait_for_line("ready at")


def test_a_connection_is_kept_however_many_requests_it_brought(tmp_path: Path) -> None:
    with starting(tmp_path, "--model", str(SUMS)) as start:
        address = start.server.url.removeprefix("http://")
        with closing(HTTPConnection(address, timeout=30)) as connection:
            connection.connect()
            kept = connection.sock
            for _ in range(1100):  # Hypercorn's own bound is 1,000
                connection.request("GET", "/livez")
                answer = connection.getresponse()
                answer.read()
                assert (answer.status, answer.getheader("connection")) == (200, None)
            assert connection.sock is kept
        start.import_ends()
