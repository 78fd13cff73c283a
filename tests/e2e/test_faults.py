"""A lost device, a step that hangs and an event loop that hangs, in the real server under load."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hotswap.demo import MODELS_DIR
from hotswap.departure import RESTARTS_TOLERATED
from tests.e2e.served import Server, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"
FAULTY = Path(__file__).with_name("faulty.py")
HANG_S = 3.0
QUESTION = {"messages": [{"role": "user", "content": "What is 45 + 27?"}], "temperature": 0}
TALE = {
    "model": TALES,
    "messages": [{"role": "user", "content": "Tell me a story about a boat."}],
    "stream": True,
    "ignore_eos": True,
}


@dataclass(frozen=True)
class Faulty:
    """A server in which faults happen when they are asked for."""

    server: Server
    folder: Path

    def ask_for(self, fault: str) -> None:
        (self.folder / fault).touch()

    def began(self, fault: str, timeout_s: float = 60.0) -> float:
        """The monotonic time at which the fault happened."""
        told = self.folder / f"{fault}.began"
        deadline = time.monotonic() + timeout_s
        while not told.exists():
            assert time.monotonic() < deadline, self.server.lines
            time.sleep(0.01)  # another process's file
        return float(told.read_text())

    def connection(self, timeout_s: float = 60.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self.server.url.removeprefix("http://"), timeout=timeout_s
        )

    def is_ready_again(self, nth: int = 2) -> None:
        self.server.wait_for_line("ready at", nth=nth)


@contextmanager
def faulty(home: Path, *arguments: str, **options: Any) -> Iterator[Faulty]:
    folder = home / "faults"
    folder.mkdir()
    launcher = [sys.executable, str(FAULTY), str(folder)]
    words = ("demo", "--hang-timeout", str(HANG_S), *arguments)
    with serving(*words, home=home, launcher=launcher, **options) as server:
        yield Faulty(server, folder)


@dataclass
class Asked:
    """What became of one request."""

    began: float
    outcome: str = ""
    """"whole", "told" (a 503, or an error event), "refused" (no connection) or "cut"."""
    ended: float = 0.0


@dataclass
class Clients:
    """Who ask all the time, each time over a connection of their own, as clients do that know
    nothing of faults."""

    faulty: Faulty
    asked: list[Asked] = field(default_factory=list)
    probed: list[tuple[float, float, int]] = field(default_factory=list)
    """Of each look at /readyz: when it began and ended, and its status; 0: none."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self, clients: int = 4) -> Iterator[None]:
        jobs = [self._keep_asking] * clients + [self._keep_probing]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _keep_asking(self) -> None:
        while not self._stop.is_set():
            asked = Asked(time.monotonic())
            asked.outcome = self._ask()
            asked.ended = time.monotonic()
            self.asked.append(asked)
            if asked.outcome == "told":
                self._stop.wait(0.1)  # less than the Retry-After, so that it is hit more often

    def _ask(self) -> str:
        with closing(self.faulty.connection()) as connection:
            try:
                connection.request(
                    "POST",
                    "/v1/chat/completions",
                    json.dumps({**QUESTION, "model": "current"}),
                    {"Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                body = answer.read()
            except ConnectionRefusedError:
                return "refused"
            except (OSError, http.client.HTTPException):
                return "cut"
        if answer.status == 503:
            return "told"
        assert answer.status == 200, body
        return "whole"

    def _keep_probing(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            with closing(self.faulty.connection()) as connection:
                try:
                    connection.request("GET", "/readyz")
                    answer = connection.getresponse()
                    answer.read()
                    status = answer.status
                except (OSError, http.client.HTTPException):
                    status = 0
            self.probed.append((began, time.monotonic(), status))
            self._stop.wait(0.05)


@dataclass
class Stream:
    """A stream that somebody reads to its end, whatever that is."""

    connection: http.client.HTTPConnection
    text: bytes = b""
    ended: float = 0.0

    def read(self, begun: threading.Event) -> None:
        self.connection.request(
            "POST", "/v1/chat/completions", json.dumps(TALE), {"Content-Type": "application/json"}
        )
        answer = self.connection.getresponse()
        assert answer.status == 200
        try:
            while line := answer.readline():
                self.text += line
                begun.set()
        except http.client.IncompleteRead as error:  # cut: what came is what counts
            self.text += error.partial
        self.ended = time.monotonic()

    @property
    def error(self) -> dict[str, Any] | None:
        """What its last event says, if that is an error."""
        events = [line[6:] for line in self.text.splitlines() if line.startswith(b"data: {")]
        error: dict[str, Any] | None = json.loads(events[-1]).get("error")
        return error


@contextmanager
def streaming(faulty: Faulty) -> Iterator[Stream]:
    """A long tale that has begun; at the end of the block it has ended."""
    with closing(faulty.connection()) as connection:
        stream, begun = Stream(connection), threading.Event()
        thread = threading.Thread(target=stream.read, args=(begun,))
        thread.start()
        try:
            assert begun.wait(60)
            yield stream
        finally:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("fault", "reason"), [("hang", "has not finished a step for"), ("lost", "the device is lost")]
)
def test_under_load_the_server_starts_itself_again_and_refuses_nobody(
    fault: str, reason: str, tmp_path: Path
) -> None:
    with faulty(tmp_path, "--max-num-seqs", "3") as broken:
        server = broken.server
        process = psutil.Process(server.process.pid)
        with server.http() as http_client:
            order = {"model": TALES, "max_model_len": 500}
            assert http_client.post("/v1/load_model", json=order).status_code == 200
        descriptors = process.num_fds()
        clients = Clients(broken)
        with clients.at_work():
            server.wait_until(lambda: len(clients.asked) >= 8)
            with streaming(broken) as stream:
                broken.ask_for(fault)
            began = broken.began(fault)
            broken.is_ready_again()
            ready = time.monotonic()
            served = len(clients.asked)
            server.wait_until(lambda: len(clients.asked) >= served + 8)
        assert server.process.poll() is None, "the same process"
        assert stream.error is not None, stream.text[-300:]
        assert began < stream.ended < ready, "who was being answered is told before anything else"
        counted = Counter(asked.outcome for asked in clients.asked)
        print(f"{fault}: noticed after {stream.ended - began:.2f} s, serving again after")
        print(f"{ready - began:.2f} s; {dict(counted)}")
        assert counted.keys() <= {"whole", "told"}, counted
        waited = [one for one in clients.asked if one.began < ready <= one.ended]
        assert waited, "somebody waited for the new image"
        assert {one.outcome for one in waited} == {"whole"}
        assert all(status for _, _, status in clients.probed), "no probe was refused"
        if fault == "hang":
            not_ready = [ended for _, ended, status in clients.probed if status == 503]
            assert began < not_ready[0] < ready
        status = server.status()
        assert (status["restarts"], status["rebuilds"]) == (1, 0)
        resident = status["resident"]
        assert resident["id"] == TALES
        assert resident["engine"]["max_model_len"] == 500
        assert resident["applied"]["max_model_len"]["source"] == "request"
        # Once it has noticed that all of its clients have gone.
        server.wait_until(lambda: process.num_fds() <= descriptors + 1)
        assert server.terminate() == 0
    assert any("by watchdog" in line and repr(TALES) in line for line in server.lines)
    assert any("starting again because" in line and reason in line for line in server.lines)


def test_without_self_restart_it_exits_with_a_code_after_telling_its_clients(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path, "--no-self-restart") as broken, closing(broken.connection()) as slow:
        # A request whose body does not come to its end holds nobody up for long.
        slow.putrequest("POST", "/v1/chat/completions")
        slow.putheader("Content-Length", "1000")
        slow.endheaders(b"{")
        with streaming(broken) as stream:
            broken.ask_for("lost")
        assert stream.error is not None
        assert broken.server.process.wait(30) == 70


def test_an_event_loop_that_hangs_is_a_fault_too_and_too_many_faults_end_the_process(
    tmp_path: Path,
) -> None:
    """It can tell nobody: who is connected is cut, who comes later waits."""
    with faulty(tmp_path) as broken:
        broken.ask_for("stuck")
        with closing(broken.connection()) as cut, closing(broken.connection()) as waiting:
            cut.request("GET", "/version")
            began = broken.began("stuck")
            waiting.request("GET", "/livez")
            assert waiting.getresponse().status == 200
            print(f"stuck: answering again after {time.monotonic() - began:.2f} s")
            with pytest.raises((OSError, http.client.HTTPException)):
                cut.getresponse()
        broken.is_ready_again()
        assert broken.server.resident() == SUMS
        broken.ask_for("lost.always")
        clients = Clients(broken)
        with clients.at_work(clients=1):
            assert broken.server.process.wait(120) == 70
        assert started(broken.server) == RESTARTS_TOLERATED + 1


def test_files_that_are_cut_do_not_end_a_server_that_has_read_them(tmp_path: Path) -> None:
    """Where they were mapped, the next look at them would (SIGBUS)."""
    models = tmp_path / "models"
    shutil.copytree(MODELS_DIR, models)
    asked = [{**QUESTION, "model": model, "max_tokens": 16} for model in (SUMS, TALES)]
    with (
        serving(
            *("--models-dir", str(models), "--enable-on-demand-loading", "--no-mmap"), home=tmp_path
        ) as server,
        server.http() as http_client,
    ):

        def answers() -> list[str]:
            found = [http_client.post("/v1/chat/completions", json=body).json() for body in asked]
            assert server.status()["engine"]["details"]["weights"] == "read"
            return [answer["choices"][0]["message"]["content"] for answer in found]

        before = answers()
        for file in models.rglob("model.safetensors"):
            os.truncate(file, 0)
        tale = {**asked[1], "messages": [{"role": "user", "content": "Another one, please."}]}
        assert http_client.post("/v1/chat/completions", json=tale).status_code == 200
        refused = http_client.post("/v1/chat/completions", json=asked[0])
        assert refused.status_code == 422, "what is to be read again is looked at again"
        assert (
            http_client.post("/v1/chat/completions", json=asked[1]).json()["choices"][0]["message"][
                "content"
            ]
            == before[1]
        )
        assert server.terminate() == 0


def test_a_step_that_raises_costs_no_restart_nor_does_one_that_hangs_while_it_is_told_to_stop(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path) as broken:
        with streaming(broken) as raised:
            broken.ask_for("raise")
        assert raised.error is not None
        with broken.server.http() as http_client:
            answer = http_client.post("/v1/chat/completions", json={**QUESTION, "model": SUMS})
        assert answer.status_code == 200
        assert broken.server.status()["restarts"] == 0
        with streaming(broken) as hung:
            broken.ask_for("hang")
            broken.began("hang")
            broken.server.process.send_signal(signal.SIGTERM)
        assert hung.error is not None
        assert broken.server.process.wait(30) == 71
        assert started(broken.server) == 1


def started(server: Server) -> int:
    """How often it has begun."""
    return sum("starting hotswap" in line for line in server.lines)


def test_a_model_that_is_built_for_ever_does_not_keep_the_server_from_ending(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path) as case:
        case.ask_for("build")
        with closing(case.connection()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(TALE | {"stream": False}))
            case.began("build")
        assert case.server.terminate(30) == 0
