"""OpenAI's dialect with the bundled models and the official client."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest

from tests.e2e.served import Server

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"
SUM: list[Any] = [{"role": "user", "content": "What is 45 + 27?"}]


class Sum(pydantic.BaseModel):
    result: int = pydantic.Field(ge=0, le=200)
    """A model that never saw JSON would go on with digits for ever."""


def test_the_streaming_helper_ends_with_what_a_whole_answer_says(demo: Server) -> None:
    client = demo.openai()
    whole = client.chat.completions.create(model=SUMS, messages=SUM, temperature=0)
    with client.chat.completions.stream(
        model=SUMS, messages=SUM, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens
    cached = streamed.usage.prompt_tokens_details
    assert cached is not None
    assert cached.cached_tokens == 16, "of the same prompt, whole blocks"
    assert "72" in str(whole.choices[0].message.content)


def test_tokens_become_the_text_they_came_from_without_a_swap(demo: Server) -> None:
    client = demo.openai()
    client.chat.completions.create(model=SUMS, messages=SUM, max_tokens=1)
    before = demo.status()["loads"]
    with demo.http() as http:
        text = "Once upon a time"
        asked = {"model": TALES, "prompt": text, "return_token_strs": True}
        tokens = http.post("/tokenize", json=asked).json()
        back = http.post("/detokenize", json={"model": TALES, "tokens": tokens["tokens"]}).json()
        chat = http.post("/tokenize", json={"model": SUMS, "messages": SUM}).json()
    assert back == {"prompt": text}
    assert "".join(tokens["token_strs"]) == text
    assert tokens["count"] == len(tokens["tokens"]) < tokens["max_model_len"]
    answer = client.chat.completions.create(model=SUMS, messages=SUM, max_tokens=1)
    assert answer.usage is not None
    assert chat["count"] == answer.usage.prompt_tokens
    assert demo.status()["loads"] == before
    assert demo.resident() == SUMS


def test_a_prompt_of_tokens_is_answered_as_its_text(demo: Server) -> None:
    client = demo.openai()
    with demo.http() as http:
        ids = http.post("/tokenize", json={"model": TALES, "prompt": "Once upon"}).json()["tokens"]
    answers = {
        client.completions.create(model=TALES, prompt=prompt, max_tokens=8, temperature=0)
        .choices[0]
        .text
        for prompt in ("Once upon", ids)
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("fields", "expected", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, None),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens"),
        ({"logit_bias": {"99999999": 1}}, openai.BadRequestError, "logit_bias"),
    ],
)
def test_a_request_that_cannot_work_is_a_typed_error(
    demo: Server, fields: dict[str, Any], expected: type[openai.APIStatusError], param: str | None
) -> None:
    with demo.openai() as client, pytest.raises(expected) as caught:
        client.chat.completions.create(**{"model": SUMS, "messages": SUM, **fields})
    assert caught.value.param == param


def test_parse_gives_an_object_of_the_asked_for_type(demo: Server) -> None:
    with demo.openai() as client:
        answer = client.chat.completions.parse(
            model=SUMS, messages=SUM, response_format=Sum, temperature=0
        )
    assert isinstance(answer.choices[0].message.parsed, Sum)
