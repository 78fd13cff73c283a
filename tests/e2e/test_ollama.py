"""The bundled models, asked by Ollama's official client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ollama
import pytest

from hotswap.demo import MODELS_DIR
from tests.e2e.served import Server, serving
from tests.fake_hub import FakeHub, serve

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"
QUESTION = [{"role": "user", "content": "What is 45 + 27?"}]
GREEDY = {"temperature": 0}


@pytest.fixture
def client(demo: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=demo.url, timeout=120) as client:
        yield client


def running(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.ps().models]


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert set(models) == {SUMS, TALES}
    sums = models[SUMS]
    assert sums.size is not None
    assert sums.size > 2_000_000
    assert sums.details is not None
    assert (sums.details.family, sums.details.quantization_level) == ("qwen3", "F32")
    shown = client.show(f"{SUMS}:latest")
    assert (shown.modelinfo or {})["qwen3.context_length"] == 4096
    assert "completion" in (shown.capabilities or ())
    assert "messages" in (shown.template or "")


def test_a_chat_a_story_and_what_runs_meanwhile(client: ollama.Client) -> None:
    answer = client.chat(f"{SUMS}:latest", QUESTION, options=GREEDY, keep_alive="10m")
    assert "72" in (answer.message.content or "")
    assert (answer.model, answer.done_reason) == (SUMS, "stop")
    assert answer.eval_count
    assert answer.eval_duration
    (loaded,) = client.ps().models
    assert loaded.model == SUMS
    assert loaded.expires_at is not None
    assert loaded.expires_at - datetime.now(UTC) > timedelta(minutes=9)
    prompt = "Tell me a story about a small dragon."
    parts = list(client.generate(TALES, prompt, options=GREEDY, stream=True))
    assert "dragon" in "".join(part.response or "" for part in parts).lower()
    assert len(parts) > 5
    assert parts[-1].done_reason == "stop"
    assert parts[-1].load_duration
    assert running(client) == [TALES]


def test_a_streamed_chat_says_the_same(client: ollama.Client) -> None:
    whole = client.chat(SUMS, QUESTION, options=GREEDY)
    parts = list(client.chat(SUMS, QUESTION, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count


def test_an_answer_ends_at_the_length_that_was_asked_for(client: ollama.Client) -> None:
    answer = client.generate(TALES, "Tell me a story.", options={"num_predict": 3})
    assert (answer.eval_count, answer.done_reason) == (3, "length")


def test_a_model_is_loaded_and_let_go_of(demo: Server, client: ollama.Client) -> None:
    assert client.generate(SUMS).done_reason == "load"
    assert running(client) == [SUMS]
    assert client.generate(SUMS, keep_alive=0).done_reason == "unload"
    assert running(client) == []
    client.chat(SUMS, QUESTION, options=GREEDY, keep_alive=0)
    demo.wait_until(lambda: running(client) == [])
    assert "72" in (client.chat(SUMS, QUESTION, options=GREEDY).message.content or "")


def test_what_is_not_there_is_an_error(client: ollama.Client) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as unknown:
            list(client.chat("nobody/nothing", QUESTION, stream=stream))
        assert unknown.value.status_code == 404
        assert unknown.value.error == "model 'nobody/nothing' not found"
    with pytest.raises(ollama.ResponseError) as refused:
        client.pull("nobody/nothing")
    assert refused.value.status_code == 403
    assert client.pull(SUMS).status == "success"
    with pytest.raises(ollama.ResponseError) as too_long:
        client.generate(SUMS, "1 + " * 5000, raw=True)
    assert too_long.value.status_code == 400


def test_a_model_is_pulled_from_the_hub_and_asked(tmp_path: Path) -> None:
    with serve(FakeHub(MODELS_DIR / "hotswap" / "sums")) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        arguments = ("--allow-download", "Qwen/*", "--enable-on-demand-loading")
        with (
            serving(*arguments, home=tmp_path, env=env) as server,
            ollama.Client(host=server.url, timeout=120) as client,
        ):
            assert client.list().models == []
            told = list(client.pull(f"{hub.repo_id}:latest", stream=True))
            assert [told[0].status, told[-1].status] == ["pulling manifest", "success"]
            assert told[-2].completed == told[-2].total
            assert [model.model for model in client.list().models] == [hub.repo_id]
            assert running(client) == []
            answer = client.chat(hub.repo_id, QUESTION, options=GREEDY)
            assert "72" in (answer.message.content or "")
            with pytest.raises(ollama.ResponseError) as refused:
                client.pull("other/model")
            assert refused.value.status_code == 403
