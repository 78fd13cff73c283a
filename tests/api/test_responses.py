from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given

from hotswap.api.body import parse_object
from hotswap.api.responses import ResponseBody, parse_count, parse_response
from hotswap.api.responses_store import Kept, ResponseStore
from hotswap.contracts.answers import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import EngineFailed, InvalidRequest
from tests.api.stage import HELLO, Exchange, ScriptedService, app_of, ask
from tests.api.strange import objects_like

TOOLS = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True},
    {"type": "function", "name": "time"},
]
KEPT = Kept(
    b'[{"id":"in_x_0","type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]',
    b'{"output":[{"id":"msg_x_0","type":"message","role":"assistant","status":"completed",'
    b'"content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}]}',
)


def store() -> ResponseStore:
    kept = ResponseStore()
    kept.keep("resp_x", KEPT)
    return kept


def request(**fields: Any) -> GenerationRequest:
    return parse_response({"model": "m", "input": "hi", **fields}, store()).request


def prompt(**fields: Any) -> ChatPrompt:
    (prompt,) = request(**fields).prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_a_request_with_everything() -> None:
    raw = b"""{
        "model": "hotswap/sums", "stream": true, "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [
                {"type": "input_text", "text": "Weather"}, {"type": "input_text", "text": "?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
                {"type": "reasoning_text", "text": "hm"}], "encrypted_content": "x"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "function_call_output", "call_id": "c2", "output": [
                {"type": "input_text", "text": "noon"}]},
            {"role": "assistant", "content": "Sun"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "system", "content": "Now."}],
        "tools": [{"type": "function", "name": "weather", "description": "d", "strict": true,
            "parameters": {"type": "object"}}],
        "tool_choice": "auto", "parallel_tool_calls": false,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "reasoning": {"effort": "xhigh"}, "max_output_tokens": 100, "temperature": 0.5,
        "top_p": 0.9, "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 3, "store": false, "metadata": {"a": "b"}, "truncation": "auto",
        "background": false, "user": "u", "keep_alive": "5m", "invented": 1
    }"""
    call = parse_response(parse_object(raw), store())
    assert call.stream
    weather = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert call.request == GenerationRequest(
        prompts=(
            ChatPrompt(
                messages=(
                    {"role": "system", "content": "Be brief.\n\nBe kind."},
                    {"role": "user", "content": "Weather?"},
                    {
                        "role": "assistant",
                        "content": "I look.",
                        "reasoning_content": "hm",
                        "tool_calls": [called("c1", "weather"), called("c2", "time")],
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "sun"},
                    {"role": "tool", "tool_call_id": "c2", "content": "noon"},
                    {"role": "assistant", "content": "Sun"},
                    {"role": "assistant", "content": "No."},
                    {"role": "system", "content": "Now."},
                ),
                tools=({"type": "function", "function": {**weather, "strict": True}},),
                tool_choice=ToolChoice(parallel=False),
                reasoning_effort="high",
            ),
        ),
        model="hotswap/sums",
        sampling=SamplingParams(temperature=0.5, top_p=0.9),
        max_tokens=100,
        max_tokens_param="max_output_tokens",
        logprobs=3,
        guide=Guide("json_schema", '{"type":"object"}', "text.format"),
        keep_alive_s=300,
    )


def called(name: str, function: str) -> dict[str, Any]:
    told = {"name": function, "arguments": "{}"}
    return {"id": name, "type": "function", "function": told}


def test_null_is_unset_everywhere() -> None:
    refused = ["background", "conversation", "prompt", "moderation", "context_management"]
    fields = {*ResponseBody.__struct_fields__, *refused} - {"input", "model"}
    assert request(**dict.fromkeys(fields)) == request()


def test_each_thought_begins_a_message_of_its_own() -> None:
    thoughts = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": name}]} for name in "ab"
    ]
    assert prompt(input=thoughts).messages == (
        {"role": "assistant", "content": "", "reasoning_content": "a"},
        {"role": "assistant", "content": "", "reasoning_content": "b"},
    )


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        (None, ToolChoice(), 2),
        ("auto", ToolChoice(), 2),
        ("none", ToolChoice(), 0),
        ("required", ToolChoice(required=True), 2),
        ({"type": "function", "name": "time"}, ToolChoice(required=True, name="time"), 2),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "time"}],
            },
            ToolChoice(required=True),
            1,
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, ToolChoice(), 0),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice, tools: int) -> None:
    asked = prompt(tools=TOOLS, tool_choice=choice)
    assert (asked.tool_choice, len(asked.tools)) == (expected, tools)


def test_a_json_object_is_any_object() -> None:
    guide = request(text={"format": {"type": "json_object"}}).guide
    assert guide == Guide("json_schema", '{"type":"object"}', "text.format")
    assert request(text={"format": {"type": "text"}, "verbosity": "low"}).guide is None


def test_logprobs_are_there_for_who_asks() -> None:
    assert request(top_logprobs=3).logprobs is None
    assert request(include=["message.output_text.logprobs"]).logprobs == 0


def test_a_kept_response_goes_on_without_its_instructions() -> None:
    asked = prompt(previous_response_id="resp_x", input="more", instructions="New.")
    assert asked.messages == (
        {"role": "system", "content": "New."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "more"},
    )


@pytest.mark.parametrize("reference", [{"type": "item_reference"}, {}])
def test_an_item_may_be_referred_to(reference: dict[str, str]) -> None:
    asked = prompt(input=[{**reference, "id": "msg_x_0"}, {"role": "user", "content": "more"}])
    assert asked.messages[0] == {"role": "assistant", "content": "Hello"}


def items(*content: Any) -> dict[str, Any]:
    return {"input": list(content)}


def parts(*content: Any) -> dict[str, Any]:
    return items({"role": "user", "content": list(content)})


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_what_is_no_text_is_refused_as_such(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="this model reads text only"):
        prompt(**parts({"type": kind}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        (items("x"), "input[0]"),
        (items({}), "input[0].id"),
        (items({"id": "msg_y_0"}), "input[0].id"),
        (items({"type": "message", "content": "x"}), "input[0].role"),
        (items({"role": "user"}), "input[0].content"),
        (items({"role": "robot", "content": "x"}), "input[0].role"),
        (parts({"type": "input_image", "image_url": "x"}), "input[0].content[0].type"),
        (
            parts({"type": "input_text", "text": "a"}, {"type": "input_file"}),
            "input[0].content[1].type",
        ),
        (parts({"type": "input_text"}), "input[0].content[0].text"),
        (items({"type": "function_call", "call_id": "c", "name": "f"}), "input[0].arguments"),
        (items({"type": "function_call_output", "output": "x"}), "input[0].call_id"),
        (items({"type": "function_call_output", "call_id": "c"}), "input[0].output"),
        (
            items(
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image"}],
                }
            ),
            "input[0].output[0].type",
        ),
        (items({"type": "reasoning", "summary": [{"type": "x"}]}), "input[0].summary[0].type"),
        (items({"type": "web_search_call", "id": "w"}), "input[0].type"),
        ({"previous_response_id": "resp_y"}, "previous_response_id"),
        ({"tools": [{"type": "function", "name": "a b", "parameters": {}}]}, "tools[0].name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]},
            "tools[0].parameters",
        ),
        (
            {
                "text": {"format": {"type": "json_object"}},
                "tools": TOOLS,
                "tool_choice": "required",
            },
            "text.format",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required"}},
            "tool_choice",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "some"}, "truncation"),
        ({"stream": "yes"}, "stream"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "use"),
    [
        ("response_format", {"type": "json_object"}, "text.format"),
        ("max_tokens", 0, "max_output_tokens"),
        ("max_completion_tokens", 9, "max_output_tokens"),
        ("messages", [{"role": "user", "content": "hi"}], "input"),
        ("functions", [{"name": "f"}], "tools"),
        ("function_call", "auto", "tool_choice"),
        ("reasoning_effort", "low", "reasoning.effort"),
    ],
)
def test_a_field_of_chats_is_refused_with_its_name_here(name: str, value: Any, use: str) -> None:
    for parse in (parse_response, parse_count):
        for fields in ({name: value}, {name: value, "input": "hi"}):
            with pytest.raises(InvalidRequest) as caught:
                parse(fields, STORE)
            assert caught.value.message == f"{name}: not supported; use {use}"
            assert caught.value.param == name
        parse({name: None, "input": "hi"}, STORE)


@given(objects_like({"model": "m", "input": "hi", "tools": TOOLS}, ResponseBody))
def test_whatever_comes_is_a_request_or_refused(fields: dict[str, Any]) -> None:
    for parse in (parse_response, parse_count):
        with suppress(InvalidRequest):
            parse(fields, STORE)


STORE = store()


# -- behind the routes


def post(app: Any, **fields: Any) -> Exchange:
    return ask(app, "POST", "/v1/responses", {"input": "hi", **fields})


def test_an_answer_repeats_what_it_was_asked() -> None:
    answer = post(
        app_of(ScriptedService()),
        instructions="Be brief.",
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []},
        text={"format": {"type": "json_schema", "name": "n", "schema": {}}},
        reasoning={"effort": "low", "summary": "auto"},
        truncation="auto",
        metadata={"a": "b"},
        temperature=0.5,
    ).json
    assert answer["status"] == "completed"
    assert answer["model"] == "hotswap/sums"
    assert answer["output"][0]["content"][0]["text"] == "Hello"
    assert answer["instructions"] == "Be brief."
    assert [tool["name"] for tool in answer["tools"]] == ["weather", "time"]
    assert answer["tool_choice"] == {"type": "allowed_tools", "mode": "auto", "tools": []}
    assert answer["text"] == {"format": {"type": "json_schema", "name": "n", "schema": {}}}
    assert answer["reasoning"] == {"effort": "low", "summary": "auto"}
    assert answer["truncation"] == "disabled"
    assert answer["metadata"] == {"a": "b"}
    assert (answer["temperature"], answer["top_p"]) == (0.5, None)


def test_a_conversation_goes_on_by_its_name_alone() -> None:
    call = ToolCallDelta(index=0, call=0, id="c1", name="weather", arguments="{}")
    service = ScriptedService(
        steps=(
            (ReasoningDelta(index=0, text="hm"), TextDelta(index=0, text="I look."), call),
            (Finished(index=0, reason="tool_calls", completion_tokens=9),),
        )
    )
    app = app_of(service)
    first = post(app, stream=True).events[-1]["response"]
    result = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    second = post(app, input=[result], previous_response_id=first["id"]).json
    post(app, input="Thanks", previous_response_id=second["id"])
    asked = service.requests[-1].prompts[0]
    assert isinstance(asked, ChatPrompt)
    spoken = {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [called("c1", "weather")],
    }
    assert asked.messages == (
        {"role": "user", "content": "hi"},
        spoken,
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        spoken,
        {"role": "user", "content": "Thanks"},
    )


def test_a_kept_response_is_looked_at_listed_and_deleted() -> None:
    app = app_of(ScriptedService())
    answer = post(app).json
    path = f"/v1/responses/{answer['id']}"
    assert ask(app, "GET", path).json == answer
    more = post(app, input="more", previous_response_id=answer["id"]).json
    get = partial(ask, app, "GET")
    listed = get(f"/v1/responses/{more['id']}/input_items").json
    texts = [item["content"][0]["text"] for item in listed["data"]]
    assert (texts, listed["has_more"]) == (["more", "Hello", "hi"], False)
    ids = [item["id"] for item in listed["data"]]
    assert (listed["first_id"], listed["last_id"]) == (ids[0], ids[-1])
    page = get(f"/v1/responses/{more['id']}/input_items?limit=1&order=asc&after={ids[2]}").json
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([ids[1]], True)
    assert ask(app, "DELETE", path).json == {
        "id": answer["id"],
        "object": "response",
        "deleted": True,
    }
    for gone in (get(path), ask(app, "DELETE", path), get(f"{path}/input_items")):
        assert (gone.status, gone.error["code"]) == (404, "response_not_found")


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=x", "order=up", "after=x"),
        *("limit=1&limit=2", "order=asc&order=desc"),
    ],
)
def test_a_bad_page_is_refused(query: str) -> None:
    app = app_of(ScriptedService())
    path = f"/v1/responses/{post(app).json['id']}/input_items"
    exchange = ask(app, "GET", f"{path}?{query}")
    assert (exchange.status, exchange.error["param"]) == (400, query.partition("=")[0])


def test_a_kept_response_is_not_streamed_again() -> None:
    app = app_of(ScriptedService())
    exchange = ask(app, "GET", f"/v1/responses/{post(app).json['id']}?stream=true")
    assert (exchange.status, exchange.error["param"]) == (400, "stream")


def test_what_is_not_to_be_stored_is_not_there() -> None:
    app = app_of(ScriptedService())
    answer = post(app, store=False).json
    assert answer["store"] is False
    assert ask(app, "GET", f"/v1/responses/{answer['id']}").status == 404
    exchange = post(app, previous_response_id=answer["id"])
    assert (exchange.status, exchange.error["param"]) == (400, "previous_response_id")


def test_a_failed_response_is_not_kept() -> None:
    seen = anyio.Event()
    app = app_of(ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke"))))

    async def main() -> Exchange:
        exchange = Exchange("POST", "/v1/responses", b'{"input":"hi","stream":true}')
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run, app)
            await exchange.until(lambda: b"Hel" in exchange.body)
            seen.set()
        return exchange

    events = anyio.run(main).events
    failed, error = events[-2:]
    assert (failed["type"], error["type"]) == ("response.failed", "error")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert ask(app, "GET", f"/v1/responses/{failed['response']['id']}").status == 404


def test_tokens_are_counted_without_an_answer() -> None:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", "/v1/responses/input_tokens", {"input": "hi"})
    assert exchange.json == {"object": "response.input_tokens", "input_tokens": 3}
