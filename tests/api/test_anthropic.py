from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import anyio
import pytest
from hypothesis import given

from hotswap.api.anthropic import MessagesBody, parse_count, parse_messages
from hotswap.api.body import parse_object
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import InvalidRequest
from tests.api.stage import Exchange, ScriptedService, app_of, ask
from tests.api.strange import objects_like

TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
NONE: dict[str, Any] = {"type": "object", "properties": {}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(piece: str) -> dict[str, Any]:
    return {"type": "text", "text": piece}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "claude-x", "max_tokens": 9, "messages": [user("hi")], **fields}


def prompt(**fields: Any) -> ChatPrompt:
    (prompt,) = parse_messages(body(**fields)).request.prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_a_request_with_everything() -> None:
    raw = b"""{
        "model": "claude-opus-5", "max_tokens": 100, "stream": true,
        "system": [
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "<time>"}, {"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rom"}},
                {"type": "tool_use", "id": "t2", "name": "time", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [
                    {"type": "text", "text": "sun"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "broke",
                    "is_error": true},
                {"type": "text", "text": "Well?"}]}],
        "tools": [{"name": "weather", "description": "d", "strict": true,
            "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
            {"name": "time", "type": "custom", "input_schema": {}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "stop_sequences": ["END"], "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "metadata": {"user_id": "u"}, "service_tier": "auto", "keep_alive": "5m",
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "invented": 1
    }"""
    call = parse_messages(parse_object(raw))
    assert call.stream
    weather = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert call.request == GenerationRequest(
        prompts=(
            ChatPrompt(
                messages=(
                    {"role": "system", "content": "Be brief.\nBe kind."},
                    {"role": "user", "content": "<time>\nWeather?"},
                    {
                        "role": "assistant",
                        "content": "I look.",
                        "reasoning_content": "hm",
                        "tool_calls": [
                            called("t1", "weather", '{"city":"Rom"}'),
                            called("t2", "time", "{}"),
                        ],
                    },
                    {"role": "tool", "tool_call_id": "t1", "content": "sun"},
                    {"role": "tool", "tool_call_id": "t2", "content": "Error: broke"},
                    {"role": "user", "content": "Well?"},
                ),
                tools=(
                    {"type": "function", "function": {**weather, "strict": True}},
                    {"type": "function", "function": {"name": "time", "parameters": NONE}},
                ),
                tool_choice=ToolChoice(parallel=False),
                reasoning_effort="low",
            ),
        ),
        model="claude-opus-5",
        any_name=True,
        sampling=SamplingParams(temperature=0.5, top_p=0.9, top_k=40),
        max_tokens=100,
        cut_to_context=True,
        stop=("END",),
        guide=Guide("json_schema", '{"type":"object"}', "output_config.format"),
        keep_alive_s=300,
    )


def called(name: str, function: str, arguments: str) -> dict[str, Any]:
    told = {"name": function, "arguments": arguments}
    return {"id": name, "type": "function", "function": told}


def test_null_is_unset_everywhere() -> None:
    fields = {*MessagesBody.__struct_fields__} - {"messages", "max_tokens", "model"}
    plain = parse_messages(body()).request
    assert parse_messages(body(**dict.fromkeys(fields))).request == plain


def test_turns_of_one_side_in_a_row_are_one_turn() -> None:
    turns = [user("a"), user([text("b")]), assistant("c"), assistant("d"), user("e")]
    assert [(m["role"], m["content"]) for m in prompt(messages=turns).messages] == [
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("user", "e"),
    ]


def test_the_assistants_last_turn_is_continued() -> None:
    assert prompt(messages=[user("hi"), assistant("Well,")]).continue_final_message
    assert not prompt().continue_final_message


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice(required=True)),
        ({"type": "tool", "name": "weather"}, ToolChoice(required=True, name="weather")),
    ],
)
def test_tool_choice(choice: dict[str, Any], expected: ToolChoice) -> None:
    asked = prompt(tools=TOOLS, tool_choice=choice)
    assert (asked.tool_choice, len(asked.tools)) == (expected, 1)


def test_no_tool_is_called_that_the_model_is_not_told_of() -> None:
    assert prompt(tools=TOOLS, tool_choice={"type": "none"}).tools == ()


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "between_tools"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}}, "high"),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "disabled"}}, "none"),
    ],
)
def test_thinking_is_an_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert prompt(**fields).reasoning_effort == effort


def test_the_older_place_of_a_schema() -> None:
    asked = parse_messages(body(output_format={"type": "json_schema", "schema": SCHEMA}))
    assert asked.request.guide is not None
    assert asked.request.guide.param == "output_format"


def blocks(*content: Any) -> dict[str, Any]:
    return {"messages": [user(list(content))]}


@pytest.mark.parametrize("kind", ["image", "document"])
def test_what_is_no_text_is_refused_as_such(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="this model reads text only"):
        prompt(**blocks({"type": kind, "source": {}}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [user(None)]}, "messages[0].content"),
        (blocks(), "messages[0].content"),
        (blocks({"type": "image", "source": {}}), "messages[0].content[0].type"),
        (blocks(text("a"), {"type": "document", "source": {}}), "messages[0].content[1].type"),
        (blocks({"type": "tool_use", "id": "a"}), "messages[0].content[0].type"),
        (blocks({"type": "text"}), "messages[0].content[0].text"),
        (blocks({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (
            blocks(
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [text("a"), {"type": "image"}],
                }
            ),
            "messages[0].content[0].content[1].type",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        (
            {"messages": [user("a"), assistant([{"type": "tool_use", "id": "t", "name": "f"}])]},
            "messages[1].content[0].input",
        ),
        (
            {
                "messages": [
                    user("a"),
                    assistant([{"type": "tool_use", "id": "t", "name": "f", "input": {}}]),
                ]
            },
            "messages[1]",
        ),
        ({"messages": [assistant([{"type": "thinking"}])]}, "messages[0].content[0].thinking"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "tools": TOOLS,
                "tool_choice": {"type": "any"},
            },
            "output_config.format",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"effort": "some"}}, "output_config.effort"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_messages(body(**fields))
    assert caught.value.param == param
    assert param in caught.value.message


@given(objects_like(body(tools=TOOLS), MessagesBody))
def test_whatever_comes_is_a_request_or_refused(fields: dict[str, Any]) -> None:
    for parse in (parse_messages, parse_count):
        with suppress(InvalidRequest):
            parse(fields)


# -- behind the route


def post(service: ScriptedService, target: str = "/v1/messages", **fields: Any) -> Exchange:
    return ask(app_of(service), "POST", target, body(**fields), {"anthropic-version": "2023-06-01"})


def test_a_name_that_means_nothing_here_is_answered_by_the_resident_model() -> None:
    service = ScriptedService()
    exchange = post(service)
    assert exchange.json["model"] == "hotswap/sums"
    assert exchange.json["content"] == [{"type": "text", "text": "Hello"}]
    assert exchange.json["usage"]["input_tokens"] == 7
    assert service.requests[0].any_name


def test_a_stream_begins_with_the_tokens_of_the_prompt() -> None:
    events = post(ScriptedService(), stream=True).events
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    assert events[0]["message"]["model"] == "hotswap/sums"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]


def test_tokens_are_counted_without_an_answer() -> None:
    service = ScriptedService()
    exchange = post(service, "/v1/messages/count_tokens", max_tokens=None)
    assert (exchange.status, exchange.json) == (200, {"input_tokens": 3})
    assert service.requests[0].any_name
    assert service.requests[0].request_id == exchange.headers["x-request-id"]


def test_a_refusal_wears_anthropics_envelope() -> None:
    exchange = post(ScriptedService(), messages=[])
    assert exchange.status == 400
    assert exchange.json["type"] == "error"
    assert exchange.json["error"]["type"] == "invalid_request_error"
    assert exchange.json["error"]["message"].startswith("messages")


def test_what_is_no_json_is_a_400() -> None:
    exchange = ask(app_of(), "POST", "/v1/messages/count_tokens", b"{")
    assert exchange.status == 400
    assert exchange.json["error"]["type"] == "invalid_request_error"


def test_while_a_model_loads_there_are_pings() -> None:
    service = ScriptedService(admission=anyio.Event())

    async def main() -> Exchange:
        exchange = Exchange("POST", "/v1/messages", json.dumps(body(stream=True)).encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app_of(service, keepalive_s=0.001))
            await exchange.until(lambda: exchange.body.count(b"event: ping") > 1)
            assert service.admission is not None
            service.admission.set()
        return exchange

    events = anyio.run(main).events
    assert events[:3] == [": waiting", {"type": "ping"}, ": waiting"]
    assert events[-1] == {"type": "message_stop"}
