from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hotswap.api.openai import parse_chat
from hotswap.api.openai_messages import refuse_other_content
from hotswap.contracts.requests import ChatPrompt
from hotswap.errors import InvalidRequest


def written(*messages: dict[str, Any]) -> tuple[Mapping[str, Any], ...]:
    [prompt] = parse_chat({"messages": list(messages)}).request.prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def assistant(**fields: Any) -> Mapping[str, Any]:
    return written({"role": "assistant", **fields})[0]


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"function": {"name": "f", "arguments": arguments}, **fields}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_what_an_earlier_answer_thought_is_passed_on(field: str) -> None:
    message = assistant(content="4", **{field: "2 and 2"})
    assert message == {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}


def test_a_message_as_the_official_client_dumps_it_is_taken_back() -> None:
    dumped = {
        "content": None,
        "refusal": None,
        "role": "assistant",
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [call("{}", id="c", type="function")],
        "reasoning_content": None,
    }
    assert written(dumped) == (
        {"role": "assistant", "content": "", "tool_calls": [call("{}", id="c", type="function")]},
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": "é"}, '{"a": "é"}'),
        ('{"a": ', '{"a": '),  # an answer that was cut off
        ("", "{}"),
        (None, "{}"),
    ],
)
def test_arguments_are_text_whatever_they_came_as(given: Any, text: str) -> None:
    [one] = assistant(tool_calls=[call(given)])["tool_calls"]
    assert one == {"type": "function", "function": {"name": "f", "arguments": text}}


def test_a_refusal_is_text_that_was_said() -> None:
    parts = [{"type": "refusal", "refusal": "I will not."}]
    assert assistant(content=parts)["content"] == "I will not."
    assert assistant(content=None, refusal="No.")["content"] == "No."


def test_the_answer_of_a_tool_belongs_to_its_call() -> None:
    [message] = written({"role": "tool", "tool_call_id": "c1", "content": None, "name": "f"})
    assert message == {"role": "tool", "content": "", "name": "f", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({}, "messages[0].tool_calls[0].function"),
        ({"function": {}}, "messages[0].tool_calls[0].function.name"),
        (call("{}", type="custom"), "messages[0].tool_calls[0].type"),
        (call([]), "messages[0].tool_calls[0].function.arguments"),
        (call("{}", id=5), "messages[0].tool_calls[0].id"),
    ],
)
def test_a_bad_call_is_named(call: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        assistant(tool_calls=[call])
    assert caught.value.param == param


def test_an_image_is_refused_in_words_that_help() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    with pytest.raises(InvalidRequest, match="'image_url' are not supported"):
        written({"role": "user", "content": content})


def test_a_part_of_an_unknown_type_is_told_which_there_are() -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_other_content([{"role": "user", "content": [{"type": "txt", "text": "hi"}]}])
    assert caught.value.message == (
        "messages[0].content[0]: parts of type 'txt' are not known; "
        "there are 'text', 'input_text', 'output_text', 'refusal'"
    )
