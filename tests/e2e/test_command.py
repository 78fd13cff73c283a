"""The command as a person types it, right and wrong."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from hotswap.demo import MODELS_DIR
from hotswap.server import FORCED_EXIT
from tests.e2e.served import command, environment, serving
from tests.fake_hub import FakeHub, serve

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"


def run(*arguments: str, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment(home, extra),
        timeout=120,
        check=False,
    )


def test_the_main_form_downloads_its_model_and_answers(tmp_path: Path) -> None:
    with serve(FakeHub(MODELS_DIR / "hotswap" / "sums")) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        arguments = ("--model", "Qwen/Qwen3-0.6B", "--enable-on-demand-loading")
        with serving(*arguments, home=tmp_path, env=env) as server:
            assert any("downloading" in line for line in server.lines), server.lines
            assert any("curl" in line for line in server.lines), "says what to do next"
            answer = server.openai().chat.completions.create(
                model="Qwen/Qwen3-0.6B",
                messages=[{"role": "user", "content": "What is 45 + 27?"}],
                temperature=0,
            )
            assert "72" in str(answer.choices[0].message.content)
    # The second time it comes from the cache, and the Hub is not needed.
    with serving("--model", "Qwen/Qwen3-0.6B", home=tmp_path) as server:
        assert not any("downloading" in line for line in server.lines)


def test_without_network_and_without_the_model_there_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound but not listening
        finished = run(
            "--model",
            "Qwen/Qwen3-0.6B",
            "--port",
            "0",
            home=tmp_path,
            HF_ENDPOINT=endpoint,
            HF_HUB_OFFLINE="0",
        )
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("hotswap: error")]
    assert len(errors) == 1
    assert "Qwen/Qwen3-0.6B" in errors[0]
    assert "Traceback" not in finished.stderr


def test_a_models_dir_alone_starts_empty_and_the_first_request_brings_its_model(
    models_dir: Path, tmp_path: Path
) -> None:
    arguments = ("--models-dir", str(models_dir), "--enable-on-demand-loading")
    with serving(*arguments, home=tmp_path) as server:
        assert server.resident() is None
        client = server.openai()
        listed = {model.id for model in client.models.list()}
        assert {SUMS, TALES} <= listed
        answer = client.chat.completions.create(
            model=SUMS, messages=[{"role": "user", "content": "What is 45 + 27?"}], temperature=0
        )
        assert "72" in str(answer.choices[0].message.content)
        # A model put on disk while the server runs appears.
        shutil.copytree(models_dir / "hotswap" / "sums", models_dir / "newcomer")
        assert "newcomer" in {model.id for model in client.models.list()}


def test_a_broken_model_never_disturbs_the_resident_one(models_dir: Path, tmp_path: Path) -> None:
    arguments = ("--model", SUMS, "--models-dir", str(models_dir), "--enable-on-demand-loading")
    ask = {"messages": [{"role": "user", "content": "What is 45 + 27?"}], "temperature": 0}
    with serving(*arguments, home=tmp_path) as server, server.http() as http:
        stop = threading.Event()
        statuses: list[int] = []

        def keep_asking() -> None:
            with server.http() as own:
                while not stop.is_set():
                    body = {**ask, "model": SUMS}
                    statuses.append(own.post("/v1/chat/completions", json=body).status_code)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        server.wait_until(lambda: len(statuses) >= 3)
        body = {**ask, "model": "broken/truncated"}
        first = http.post("/v1/chat/completions", json=body)
        second = http.post("/v1/chat/completions", json=body)
        answered = len(statuses)
        server.wait_until(lambda: len(statuses) >= answered + 3)
        stop.set()
        asking.join()
        assert first.json()["error"]["code"] == "model_load_failed"
        assert str(tmp_path) not in first.text
        assert first.status_code == 422
        assert second.status_code == 503
        again, reason = second.json()["error"]["message"], first.json()["error"]["message"]
        assert "is not tried again before" in again
        assert again.endswith(reason)
        assert 1 <= int(second.headers["retry-after"]) <= 60
        assert set(statuses) == {200}
        assert http.get("/status").json()["loads"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--modle", "x"), "--model"),
        (("--port", "many", "--model", "x"), "port"),
        (("--model", "./no/such/directory"), "no/such/directory"),
        ((), "hotswap demo"),
        (("--config", "missing.yaml"), "missing.yaml"),
        (("--model", "x", "--host", "0.0.0.0", "--dev-mode"), "key"),
    ],
)
def test_what_is_typed_wrong_gets_one_clear_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    finished = run(*arguments, home=tmp_path)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    assert finished.stderr.startswith("hotswap: error: ")
    assert says in finished.stderr


def test_a_port_in_use_gets_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = run("demo", "--port", str(port), home=tmp_path)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    assert str(port) in finished.stderr


def test_a_broken_startup_model_gets_one_clear_line(models_dir: Path, tmp_path: Path) -> None:
    broken = models_dir / "broken" / "truncated"
    finished = run("--model", str(broken), "--port", "0", home=tmp_path)
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("hotswap: error")]
    assert len(errors) == 1
    assert "Traceback" not in finished.stderr


def test_help_comes_in_groups_and_needs_no_torch(tmp_path: Path) -> None:
    finished = run("--help", home=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert finished.returncode == 0
    assert "hotswap.options" in finished.stderr
    assert "torch" not in finished.stderr
    for heading in ("model", "server", "engine", "swap"):
        assert heading in finished.stdout.lower()
    assert run("--version", home=tmp_path).stdout.strip() == "hotswap 0.1.0"


def test_a_stream_ends_whole_when_somebody_presses_ctrl_c(tmp_path: Path) -> None:
    """As it does at SIGTERM, which is for test_stops.py."""
    with serving("demo", home=tmp_path) as server, server.http() as http:
        ask = {
            "model": TALES,
            "messages": [{"role": "user", "content": "Tell me a story about a boat."}],
            "temperature": 0,
        }
        whole = http.post("/v1/chat/completions", json=ask).json()
        text, reason, done = "", None, False
        with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                choice = json.loads(line[6:])["choices"][0]
                if choice["delta"].get("content") and not text:
                    server.process.send_signal(signal.SIGINT)
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
        assert text == whole["choices"][0]["message"]["content"]
        assert (reason, done) == ("stop", True)
        assert server.process.wait(30) == 0


def refuses(port: int) -> bool:
    """Nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_told_to_stop_it_takes_nobody_in_and_told_twice_it_leaves_at_once(tmp_path: Path) -> None:
    with serving("demo", home=tmp_path) as server, server.http() as http:
        ask = {
            "model": TALES,
            "messages": [{"role": "user", "content": "Tell me a story about a boat."}],
            "ignore_eos": True,
            "stream": True,
        }
        with http.stream("POST", "/v1/chat/completions", json=ask) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line("1 running answers end first")
            port = int(server.url.rpartition(":")[2])
            server.wait_until(lambda: refuses(port))
            assert next(lines) is not None, "what runs goes on"
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(5) == FORCED_EXIT
