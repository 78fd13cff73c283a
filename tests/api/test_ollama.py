from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.api import ollama, ollama_orders
from hotswap.api.body import parse_object
from hotswap.api.ollama_answers import NDJSON
from hotswap.api.ollama_messages import OllamaMessage
from hotswap.contracts.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    Guide,
    SamplingParams,
    TextPrompt,
)
from hotswap.errors import InvalidRequest

USER: dict[str, Any] = {"role": "user", "content": "hi"}

ANY_OBJECT = {"type": "object", "properties": {}}
"""What tools take whose parameters are not said."""


def chat(**fields: Any) -> GenerationRequest:
    return ollama.parse_chat({"messages": [USER], **fields}).request


def chat_prompt(**fields: Any) -> ChatPrompt:
    (prompt,) = chat(**fields).prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def generate(**fields: Any) -> GenerationRequest:
    return ollama.parse_generate({"prompt": "Once", **fields}).request


def test_a_chat_request_with_everything() -> None:
    raw = b"""{
        "model": "hotswap/sums:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 1 + 1?", "images": null},
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [
                {"function": {"name": "add", "arguments": {"a": 1, "b": [1]}}},
                {"id": "c9", "function": {"name": "say"}}]},
            {"role": "tool", "content": "said", "tool_name": "say"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "what?", "tool_name": "other"}],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}},
                  {"function": {"name": "say"}}],
        "format": {"type": "object"}, "think": "low", "keep_alive": "5m",
        "logprobs": true, "top_logprobs": 3, "stream": true, "invented": [1],
        "options": {"temperature": 0, "top_k": -1, "top_p": 0.9, "min_p": 0.05, "seed": 7,
            "num_predict": 9, "stop": ["\\n", "END"], "repeat_penalty": 1.1,
            "presence_penalty": 2, "frequency_penalty": -2, "num_ctx": 4096, "mirostat": 1}
    }"""
    call = ollama.parse_chat(parse_object(raw))
    assert call.stream
    assert call.media_type == NDJSON
    add = {"name": "add", "arguments": '{"a":1,"b":[1]}'}
    assert call.request == GenerationRequest(
        prompts=(
            ChatPrompt(
                messages=(
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is 1 + 1?"},
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning_content": "Hm.",
                        "tool_calls": [
                            {"id": "call_0", "type": "function", "function": add},
                            {
                                "id": "c9",
                                "type": "function",
                                "function": {"name": "say", "arguments": "{}"},
                            },
                        ],
                    },
                    {"role": "tool", "content": "said", "tool_call_id": "c9", "name": "say"},
                    {"role": "tool", "content": "2", "tool_call_id": "call_0", "name": "add"},
                    {"role": "tool", "content": "what?", "name": "other"},
                ),
                tools=(
                    {"type": "function", "function": {"name": "add", "parameters": ANY_OBJECT}},
                    {"type": "function", "function": {"name": "say", "parameters": ANY_OBJECT}},
                ),
                reasoning_effort="low",
                template_kwargs={"enable_thinking": True},
            ),
        ),
        model="hotswap/sums",
        sampling=SamplingParams(
            temperature=0,
            top_k=0,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.1,
            frequency_penalty=-2,
            presence_penalty=2,
            seed=7,
        ),
        max_tokens=9,
        cut_to_context=True,
        stop=("\n", "END"),
        logprobs=3,
        guide=Guide("json_schema", '{"type":"object"}', "format"),
        keep_alive_s=300,
    )


def test_a_generate_request_is_a_chat_of_one_turn_unless_it_is_raw() -> None:
    assert generate(system="Be brief.", think=False).prompts == (
        ChatPrompt(
            messages=({"role": "system", "content": "Be brief."}, {**USER, "content": "Once"}),
            reasoning_effort="none",
            template_kwargs={"enable_thinking": False},
        ),
    )
    assert generate().prompts == (ChatPrompt(messages=({**USER, "content": "Once"},)),)
    assert generate(raw=True).prompts == (TextPrompt("Once"),)


@pytest.mark.parametrize("name", ["Common", "OllamaChat", "OllamaGenerate"])
def test_null_is_unset_everywhere(name: str) -> None:
    fields = {*getattr(ollama, name).__struct_fields__} - {"messages", "prompt"}
    unset = dict.fromkeys(fields)
    assert chat(**unset) == chat()
    assert generate(**unset, context=None, images=[], suffix="", template="") == generate()


@pytest.mark.parametrize("stream", [None, True, False])
def test_answers_are_streams_unless_told_otherwise(stream: bool | None) -> None:
    call = ollama.parse_chat({"messages": [USER], "stream": stream})
    assert call.stream is (stream is not False)


@pytest.mark.parametrize("asked", [-2, -1, 0])
def test_no_end_is_the_end_of_the_context(asked: int) -> None:
    assert chat(options={"num_predict": asked}).max_tokens is None


def test_json_alone_is_any_object() -> None:
    assert chat(format="json").guide == Guide("json_schema", '{"type":"object"}', "format")
    assert chat(format="").guide is None


def test_thinking_is_left_to_the_model_unless_it_is_asked_for() -> None:
    assert chat_prompt() == chat_prompt(think=None)
    assert chat_prompt().template_kwargs == {}
    assert chat_prompt(think=True).reasoning_effort is None
    assert chat_prompt(think=True).template_kwargs == {"enable_thinking": True}


def test_an_answer_that_was_begun_is_continued() -> None:
    begun = {"role": "assistant", "content": "Once"}
    called = {**begun, "tool_calls": [{"function": {"name": "f"}}]}
    assert chat_prompt(messages=[USER, begun]).continue_final_message
    assert not chat_prompt(messages=[USER, called]).continue_final_message
    assert not chat_prompt().continue_final_message


@pytest.mark.parametrize(
    ("name", "meant"),
    [("a/b", "a/b"), ("a/b:latest", "a/b"), ("a:q4", "a:q4"), ("", None), (None, None)],
)
def test_the_tag_that_clients_add_is_dropped(name: str | None, meant: str | None) -> None:
    assert chat(model=name).model == meant


@pytest.mark.parametrize(
    ("keep_alive", "seconds"), [(0, 0), (-1, -1), ("-1m", -60), ("1h30m", 5400), (2.5, 2.5)]
)
def test_keep_alive_is_seconds_or_a_duration(keep_alive: float | str, seconds: float) -> None:
    assert chat(keep_alive=keep_alive).keep_alive_s == seconds


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{**USER, "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{**USER, "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [7]}, "tools[0]"),
        (
            {"tools": [{"function": {"name": "f", "parameters": "oops"}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"function": {"name": "f"}}, {"function": {"name": "f"}}]},
            "tools[1].function.name",
        ),
        ({"think": "hard"}, "think"),
        ({"format": "xml"}, "format"),
        ({"format": 7}, "format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"options": []}, "options"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"options": {"top_p": -0.1}}, "options.top_p"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat(**fields)
    assert raised.value.param == param
    assert param in raised.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"suffix": "x"},
        {"template": "{{ .Prompt }}"},
        {"context": [1, 2]},
        {"images": ["aGk="]},
        {"width": 64},
        {"system": "x", "raw": True},
    ],
)
def test_what_generate_cannot_honour_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        generate(**fields)
    assert raised.value.param == next(iter(fields))


def test_no_prompt_asks_for_the_model_itself() -> None:
    bare: list[dict[str, Any]] = [{}, {"messages": None}, {"messages": []}]
    for fields in bare:
        loads = ollama.chat_presence({"model": "m:latest", **fields})
        assert loads is not None
        assert (loads.model, loads.keep_alive_s, loads.leaves) == ("m", None, False)
    for zero in (0, "0", "0s"):
        leaves = ollama.generate_presence({"model": "m", "prompt": "", "keep_alive": zero})
        assert leaves is not None
        assert leaves.leaves
    assert ollama.chat_presence({"messages": [USER]}) is None
    assert ollama.generate_presence({"prompt": "x"}) is None
    with pytest.raises(InvalidRequest):
        ollama.generate_presence({"images": ["aGk="]})


def test_texts_to_embed() -> None:
    call = ollama_orders.parse_embed(
        {"model": "m:latest", "input": ["a", "b"], "dimensions": 8, "keep_alive": 5, "options": {}}
    )
    assert call.request == EmbeddingRequest(
        prompts=(TextPrompt("a"), TextPrompt("b")),
        model="m",
        dimensions=8,
        truncate=True,
        keep_alive_s=5,
    )
    one = ollama_orders.parse_embed({"input": "a", "truncate": False}).request
    assert one == EmbeddingRequest(prompts=(TextPrompt("a"),))
    old = ollama_orders.parse_embeddings({"model": "m", "prompt": "a"}).request
    assert old == EmbeddingRequest(prompts=(TextPrompt("a"),), model="m", truncate=True)
    with pytest.raises(InvalidRequest):
        ollama_orders.parse_embed({"input": [1]})


def test_a_model_is_named_by_either_key() -> None:
    assert ollama_orders.parse_name({"name": "m:latest"}) == "m"
    assert ollama_orders.parse_pull({"model": "m"}) == ollama_orders.Pull("m", stream=True)
    assert ollama_orders.parse_pull({"model": "m", "stream": False}) == ollama_orders.Pull(
        "m", stream=False
    )
    for nothing in ({}, {"model": ""}, {"model": ":latest"}):
        with pytest.raises(InvalidRequest) as raised:
            ollama_orders.parse_name(nothing)
        assert raised.value.param == "model"


WORDS = st.sampled_from(
    [
        *ollama.OllamaChat.__struct_fields__,
        *ollama.OllamaGenerate.__struct_fields__,
        *ollama.Options.__struct_fields__,
        *OllamaMessage.__struct_fields__,
        "input",
        "function",
        "arguments",
        "dimensions",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["user", "assistant", "tool", "json", "", "5m", "-1", "high"])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
MESSAGES = st.lists(st.dictionaries(WORDS, VALUES, max_size=3), max_size=2)
PARSERS = [
    ollama.parse_chat,
    ollama.parse_generate,
    ollama_orders.parse_embed,
    ollama_orders.parse_embeddings,
    ollama_orders.parse_name,
    ollama_orders.parse_pull,
    ollama.chat_presence,
    ollama.generate_presence,
]


@given(fields=st.dictionaries(WORDS, VALUES, max_size=4), messages=MESSAGES)
@settings(deadline=None)
def test_whatever_comes_is_parsed_or_refused(
    fields: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    for parse in PARSERS:
        for body in (fields, {"prompt": "x", **fields}, {**fields, "messages": [*messages, USER]}):
            try:
                parse(body)
            except InvalidRequest:
                continue
