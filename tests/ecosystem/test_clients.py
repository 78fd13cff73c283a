"""litellm, langchain-openai and llm, as their users use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUM = {"role": "user", "content": "What is 45 + 27?"}
MODELS = ["hotswap/sums", "hotswap/tales"]
"""One after the other: the second is swapped in."""


@pytest.fixture(scope="session")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network on import
    import litellm

    litellm.telemetry = False
    return litellm


@pytest.mark.parametrize("model", MODELS)
def test_litellm_answers_and_streams(litellm: Any, base_url: str, model: str) -> None:
    options = {"model": f"openai/{model}", "api_base": base_url, "api_key": "none"}
    whole = litellm.completion(messages=[SUM], temperature=0, **options)
    streamed = litellm.completion(messages=[SUM], temperature=0, stream=True, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert whole.choices[0].message.content == text != ""
    assert whole.usage.completion_tokens > 0


def test_litellm_raises_its_own_errors(litellm: Any, base_url: str) -> None:
    options = {"api_base": base_url, "api_key": "none", "messages": [SUM], "num_retries": 0}
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(model="openai/nobody", **options)
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(model="openai/hotswap/sums", temperature=-1, **options)


@pytest.mark.parametrize("model", MODELS)
def test_langchain_answers_and_streams(base_url: str, model: str) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=base_url, api_key="none", temperature=0)
    whole = chat.invoke("What is 45 + 27?")
    text = "".join(str(chunk.content) for chunk in chat.stream("What is 45 + 27?"))
    assert whole.content == text != ""
    assert whole.usage_metadata["output_tokens"] > 0
    assert [len(answer.content) > 0 for answer in chat.batch(["1 + 1", "2 + 2"])] == [True, True]


def test_langchain_gets_structured_output(base_url: str) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Sum(BaseModel):
        total: int

    chat = ChatOpenAI(model="hotswap/sums", base_url=base_url, api_key="none", temperature=1)
    found = chat.with_structured_output(Sum, method="json_schema").invoke("What is 45 + 27?")
    assert isinstance(found, Sum)


def test_llm_asks_from_the_command_line(base_url: str, tmp_path: Path) -> None:
    models = [{"model_id": "sums", "model_name": "hotswap/sums", "api_base": base_url}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    asked = subprocess.run(
        [Path(sys.executable).parent / "llm", "-m", "sums", "What is 45 + 27?"],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "72" in asked.stdout, asked.stderr
