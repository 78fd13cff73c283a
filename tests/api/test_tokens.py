from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from hotswap.contracts.listing import ModelListing
from hotswap.contracts.requests import ChatPrompt, TextPrompt
from hotswap.errors import ModelNotFound
from tests.api.stage import Exchange, ScriptedService, app_of, ask, chat_body


def post(path: str, body: Any, service: ScriptedService | None = None) -> tuple[int, Any]:
    exchange = ask(app_of(service), "POST", path, body)
    return exchange.status, exchange.json


def test_a_text_is_tokenized() -> None:
    service = ScriptedService()
    assert post("/tokenize", {"prompt": "x", "model": "sums"}, service) == (
        200,
        {"count": 3, "max_model_len": 512, "tokens": [1, 2, 3], "token_strs": None},
    )
    [request] = service.requests
    assert (request.model, request.prompts) == ("sums", (TextPrompt("x"),))


def test_special_tokens_may_be_left_out_and_texts_asked_for() -> None:
    service = ScriptedService()
    body = {"prompt": "x", "add_special_tokens": False, "return_token_strs": True}
    assert post("/tokenize", body, service)[1]["token_strs"] == ["a", "b", "c"]
    assert service.requests[0].prompts == (TextPrompt("x", special=False),)


def test_a_chat_is_tokenized_as_it_would_be_answered() -> None:
    service = ScriptedService()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    status, answer = post("/tokenize", chat_body(tools=[tool], return_token_strs=True), service)
    assert (status, answer["count"], answer["token_strs"]) == (200, 3, ["a", "b", "c"])
    [prompt] = service.requests[0].prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools == (tool,)


def test_a_chat_is_tokenized_without_what_its_answer_begins_with() -> None:
    """vLLM's `add_generation_prompt`: here it has nothing to do with a last message to continue."""
    for said in ([], [{"role": "assistant", "content": "y"}]):
        service = ScriptedService()
        messages = [{"role": "user", "content": "x"}, *said]
        body = {"messages": messages, "add_generation_prompt": False}
        assert post("/tokenize", body, service)[0] == 200
        [prompt] = service.requests[0].prompts
        assert isinstance(prompt, ChatPrompt)
        assert (prompt.answered, prompt.continue_final_message) == (False, False)
    service = ScriptedService()
    assert post("/tokenize", {**body, "continue_final_message": True}, service)[0] == 200
    [prompt] = service.requests[0].prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.continue_final_message


def test_tokens_become_text_again() -> None:
    assert post("/detokenize", {"tokens": [4, 5]}) == (200, {"prompt": "4 5"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", **chat_body()}, "messages"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", chat_body(add_special_tokens=True), "add_special_tokens"),
        ("/tokenize", chat_body(chat_template="{{ x }}"), "chat_template"),
        ("/tokenize", chat_body(return_token_strs=1), "return_token_strs"),
        ("/tokenize", chat_body(add_generation_prompt=0), "add_generation_prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": 5}, "model"),
    ],
)
def test_a_bad_field_is_named(path: str, body: Any, param: str) -> None:
    status, answer = post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_model_that_is_not_there_is_a_404() -> None:
    service = ScriptedService(refusal=ModelNotFound("none"))
    assert post("/tokenize", {"prompt": "x", "model": "none"}, service)[0] == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", chat_body()),
        ("/v1/messages/count_tokens", chat_body()),
        ("/v1/responses/input_tokens", {"input": "hi"}),
    ],
)
def test_nothing_is_counted_for_a_client_that_has_left(path: str, body: Any) -> None:
    service = ScriptedService(admission=anyio.Event())
    exchange = Exchange("POST", path, json.dumps(body).encode())

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service))
            await service.until(lambda: service.running == 1)
            exchange.leave()
            await service.until(lambda: service.running == 0)

    anyio.run(main)
    assert not exchange.answered


def test_a_model_that_no_listing_has_tells_its_length_too() -> None:
    class Embedding(ScriptedService):
        async def models(self) -> tuple[ModelListing, ...]:
            return ()

    assert post("/tokenize", {"prompt": "x"}, Embedding())[1]["max_model_len"] == 512
