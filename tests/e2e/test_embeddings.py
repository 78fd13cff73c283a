"""An embedding model beside chat models, through the real server and the official client."""

from __future__ import annotations

import base64
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.served import Server, serving

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, BERT = "hotswap/sums", "tiny/bert"
TEXTS = ["the quick brown fox", "a lazy dog"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from hotswap.demo import MODELS_DIR
    from tests.engine.embedding.encoders import write_encoder

    home: Path = tmp_path_factory.mktemp("embeddings")
    shutil.copytree(MODELS_DIR, home / "models")
    write_encoder(home / "models" / BERT, pooling={"pooling_mode_mean_tokens": True}, longest=16)
    arguments = ("--model", SUMS, "--models-dir", str(home / "models"), "--dev-mode")
    with serving(*arguments, "--enable-on-demand-loading", home=home) as running:
        yield running


def chat(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "1+1="}], temperature=0
    )
    assert answer.model == SUMS
    return answer.choices[0].message.content or ""


def test_a_chat_and_its_embeddings_take_turns(server: Server) -> None:
    with server.openai() as client, server.http() as http:
        before = chat(client, SUMS)
        found = client.embeddings.create(model=BERT, input=TEXTS)
        assert found.model == BERT
        assert [len(one.embedding) for one in found.data] == [32, 32]
        assert found.usage.prompt_tokens == found.usage.total_tokens == 11
        engine = http.get("/status").json()["engine"]["details"]
        assert (engine["task"], engine["dimensions"], engine["pooling"]) == ("embed", 32, "mean")
        assert chat(client, "current") == before
        assert http.get("/status").json()["memory"]["leaked_bytes"] == 0


def test_the_client_gets_the_same_numbers_either_way(server: Server) -> None:
    with server.openai() as client:
        floats = client.embeddings.create(model=BERT, input=TEXTS[0], encoding_format="float")
        text = client.embeddings.create(model=BERT, input=TEXTS[0], encoding_format="base64")
        raw = str(text.data[0].embedding)
        assert array("f", base64.b64decode(raw)).tolist() == floats.data[0].embedding
        short = client.embeddings.create(model=BERT, input=TEXTS[0], dimensions=4).data[0].embedding
        assert sum(number * number for number in short) == pytest.approx(1, abs=1e-5)
        ids = client.embeddings.create(model=BERT, input=[[5, 6], [7]])
        assert (len(ids.data), ids.usage.prompt_tokens) == (2, 3)


def test_what_a_model_is_not_for_is_refused_and_costs_no_swap(server: Server) -> None:
    with server.openai() as client, server.http() as http:
        chat(client, SUMS)
        swaps = http.get("/status").json()["swaps"]
        with pytest.raises(openai.BadRequestError, match="is an embedding model"):
            chat(client, BERT)
        with pytest.raises(openai.BadRequestError, match="is not an embedding model"):
            client.embeddings.create(model=SUMS, input="a")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=BERT, input="fox " * 20)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=BERT, input="a", dimensions=33)
        assert caught.value.param == "dimensions"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="none/such", input="a")
        assert http.get("/status").json()["swaps"] == swaps


def test_it_is_loaded_by_name_and_listed_only_when_asked_for(server: Server) -> None:
    with server.openai() as client, server.http() as http:
        loaded = http.post("/v1/load_model", json={"model": BERT})
        assert loaded.status_code == 200, loaded.text
        assert BERT not in [model.id for model in client.models.list()]
        shown = http.get(f"/v1/models/{BERT}").json()
        assert (shown["task"], shown["loaded"], shown["max_model_len"]) == ("embed", True, 16)
        assert len(client.embeddings.create(model="current", input="a").data) == 1
        dry = http.post("/v1/load_model?dry_run=true", json={"model": BERT})
        assert dry.status_code == 200, dry.text
