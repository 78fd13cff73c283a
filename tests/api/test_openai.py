from __future__ import annotations

from typing import Any

import pytest

from hotswap.api.body import parse_object
from hotswap.api.fields import duration_s
from hotswap.api.openai import Chat, Completion, parse_chat, parse_completion
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)
from hotswap.errors import InvalidRequest
from tests.api.stage import chat_body


def chat(**fields: Any) -> GenerationRequest:
    return parse_chat(chat_body(**fields)).request


def chat_prompt(**fields: Any) -> ChatPrompt:
    (prompt,) = chat(**fields).prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def completion(**fields: Any) -> GenerationRequest:
    return parse_completion({"prompt": "Once", **fields}).request


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


EMPTY = {"type": "object", "properties": {}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def test_a_chat_request_with_everything() -> None:
    raw = b"""{
        "model": "hotswap/sums", "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is "}, {"type": "input_text", "text": "1 + 1?"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "index": 0,
                 "function": {"name": "add", "arguments": "{\\"a\\":1}"}}]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"}],
        "tools": [{"type": "function", "function": {"name": "add"}}], "tool_choice": "required",
        "max_tokens": 5, "max_completion_tokens": 9, "min_tokens": 1, "n": 2.0,
        "temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7,
        "frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 1.1,
        "logit_bias": {"50": -100, "7": 1.5}, "logprobs": true, "top_logprobs": 3,
        "stop": ["\\n", "END"], "stop_token_ids": [2], "ignore_eos": true,
        "chat_template_kwargs": {"enable_thinking": false}, "keep_alive": "5m",
        "user": "u", "store": false, "metadata": {}, "service_tier": "auto",
        "parallel_tool_calls": false, "reasoning_effort": "low", "invented": [1]
    }"""
    call = parse_chat(parse_object(raw))
    assert call.stream
    assert call.choices == 2
    assert call.request == GenerationRequest(
        prompts=(
            ChatPrompt(
                messages=(
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is 1 + 1?"},
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": "2", "tool_call_id": "c1"},
                ),
                tools=({"type": "function", "function": {"name": "add", "parameters": EMPTY}},),
                tool_choice=ToolChoice(required=True, parallel=False),
                reasoning_effort="low",
                template_kwargs={"enable_thinking": False},
            ),
        ),
        model="hotswap/sums",
        sampling=SamplingParams(
            temperature=0,
            top_k=40,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.1,
            frequency_penalty=-2,
            presence_penalty=2,
            seed=7,
            logit_bias={50: -100, 7: 1.5},
        ),
        n=2,
        max_tokens=9,
        max_tokens_param="max_completion_tokens",
        min_tokens=1,
        stop=("\n", "END"),
        stop_token_ids=(2,),
        ignore_eos=True,
        logprobs=3,
        keep_alive_s=300,
    )


def test_null_is_unset_everywhere() -> None:
    refused = ["response_format", "tool_choice", "functions", "audio", "suffix", "chat_template"]
    chat_fields = {*Chat.__struct_fields__, *refused} - {"messages"}
    assert chat(**dict.fromkeys(chat_fields)) == chat()
    completion_fields = {*Completion.__struct_fields__, *refused} - {"prompt"}
    assert completion(**dict.fromkeys(completion_fields)) == completion()


def test_functions_are_sent_on_to_what_took_their_place() -> None:
    for name, use in (("functions", "tools"), ("function_call", "tool_choice")):
        with pytest.raises(InvalidRequest, match=f"^{name}: not supported.*; use {use}$"):
            chat(**{name: [{"name": "f"}]})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_k": -1}, SamplingParams(top_k=0)),
        ({"top_k": 0}, SamplingParams(top_k=0)),
        ({"seed": -1}, SamplingParams()),
        ({"seed": -(2**63)}, SamplingParams(seed=-(2**63))),
        ({"top_p": 0}, SamplingParams(top_p=0)),
        ({"logit_bias": {}}, SamplingParams()),
        ({"temperature": 2, "top_p": 1}, SamplingParams(temperature=2, top_p=1)),
    ],
)
def test_what_clients_send_for_off_is_off(fields: dict[str, Any], expected: SamplingParams) -> None:
    assert chat(**fields).sampling == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"modalities": ["text"]},
        {"functions": []},
        {"trust_remote_code": False},
        {"suffix": ""},
        {"guided_json": {}},
        {"stop": []},
        {"model": ""},
        {"stream_options": {"include_usage": None, "other": 1}},
    ],
)
def test_a_field_that_asks_for_nothing_special_is_accepted(fields: dict[str, Any]) -> None:
    chat(**fields)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", (TextPrompt("Once"),)),
        ("", (TextPrompt(""),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1, 2], [3]], (TokenPrompt((1, 2)), TokenPrompt((3,)))),
    ],
)
def test_a_completion_prompt_has_four_forms(prompt: Any, expected: tuple[Any, ...]) -> None:
    assert completion(prompt=prompt).prompts == expected


def test_a_completion_request_counts_choices_over_prompts() -> None:
    call = parse_completion({"prompt": ["a", "b"], "n": 3, "best_of": 3, "logprobs": 0})
    assert call.choices == 6
    assert call.request.logprobs == 0
    assert completion(echo=True).echo
    assert completion(echo=True, logprobs=1).logprobs == 1


def test_a_prompt_is_scored_without_an_answer() -> None:
    request = completion(echo=True, logprobs=1, max_tokens=0)
    assert (request.max_tokens, request.echo, request.logprobs) == (0, True, 1)
    with pytest.raises(InvalidRequest, match="together with echo") as caught:
        completion(max_tokens=0)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    "fields", [{"continue_final_message": True}, {"add_generation_prompt": False}]
)
def test_the_assistants_last_message_can_be_continued(fields: dict[str, Any]) -> None:
    messages = [*user("hi"), {"role": "assistant", "content": "Well,"}]
    assert chat_prompt(messages=messages, **fields).continue_final_message
    assert not chat_prompt(messages=messages).continue_final_message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        (-1, -1),
        (0, 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("-1", -1),
        ("-1m", -60),
        ("300", 300),
        ("0", 0),
    ],
)
def test_keep_alive_is_a_duration(value: float | str, seconds: float) -> None:
    assert chat(keep_alive=value).keep_alive_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 m", "1e9999", "5m!", "--5m", "9" * 400 + "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        duration_s(text, "keep_alive")


def test_ttl_is_seconds_and_keep_alive_wins() -> None:
    assert chat(ttl=60).keep_alive_s == 60
    assert chat(ttl=60, keep_alive="1s").keep_alive_s == 1


BAD_SHARED: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"model": ["a"]}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "1"}, "n"),
    ({"n": True}, "n"),
    ({"n": 10**400}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 10, "max_tokens": 5}, "min_tokens"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 0.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "a"}, "seed"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1.5": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a", None]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
    ({"ignore_eos": "no"}, "ignore_eos"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"keep_alive": [5]}, "keep_alive"),
    ({"keep_alive": 1e300}, "keep_alive"),
    ({"ttl": "5m"}, "ttl"),
    ({"response_format": "json"}, "response_format"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"grammar": "root ::= x"}, "grammar"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"suffix": "."}, "suffix"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
]
BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
    ({"messages": user(5)}, "messages[0].content"),
    ({"messages": user({"type": "text"})}, "messages[0].content"),
    ({"messages": user(["x"])}, "messages[0].content[0]"),
    ({"messages": user([{"text": "x"}])}, "messages[0].content[0].type"),
    ({"messages": user([{"type": "text", "text": 5}])}, "messages[0].content[0].text"),
    ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text"),
    (
        {"messages": user([{"type": "text", "text": "x"}, {"type": "image_url"}])},
        "messages[0].content[1]",
    ),
    ({"messages": user([{"type": "input_audio", "input_audio": {}}])}, "messages[0].content[0]"),
    ({"messages": [{"role": "tool", "content": "2"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "function", "name": "f", "content": "2"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ({"echo": True}, "echo"),
    ({"add_special_tokens": True}, "add_special_tokens"),
    ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy"}}, "audio"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
    (
        {"chat_template_kwargs": {"sanitize_control_tokens": False}},
        "chat_template_kwargs.sanitize_control_tokens",
    ),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    (
        {
            "messages": [{"role": "assistant", "content": "x"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "continue_final_message",
    ),
]
BAD_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, -1]}, "prompt[1]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [2**31]}, "prompt[0]"),
    ({"prompt": [[1], 2]}, "prompt[1]"),
    ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
    ({"prompt": [None]}, "prompt[0]"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"echo": "yes"}, "echo"),
]


@pytest.mark.parametrize(("fields", "param"), [*BAD_SHARED, *BAD_CHAT])
def test_a_bad_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(("fields", "param"), [*BAD_SHARED, *BAD_COMPLETION])
def test_a_bad_completion_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
def test_the_prompt_is_required(parse: Any) -> None:
    with pytest.raises(InvalidRequest, match="required"):
        parse({})
