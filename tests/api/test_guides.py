from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hotswap.api.anthropic import parse_messages
from hotswap.api.dialect import Call
from hotswap.api.guides import MAX_SOURCE_CHARS
from hotswap.api.ollama import parse_chat as parse_ollama_chat
from hotswap.api.ollama import parse_generate
from hotswap.api.openai import parse_chat, parse_completion
from hotswap.api.responses import parse_response
from hotswap.api.responses_store import ResponseStore
from hotswap.contracts.requests import Guide
from hotswap.errors import InvalidRequest
from tests.api.stage import chat_body

SCHEMA = {"type": "object", "properties": {"b": {"const": 10**30}, "a": {"type": "string"}}}
TEXT = (
    '{"type":"object","properties":{"b":{"const":1000000000000000000000000000000},'
    '"a":{"type":"string"}}}'
)
TOOL = {"type": "function", "function": {"name": "f"}}


def guide(**fields: Any) -> Guide | None:
    of_chat = parse_chat(chat_body(**fields)).request.guide
    assert parse_completion({"prompt": "x", **fields}).request.guide == of_chat
    return of_chat


def named(**json_schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": json_schema}


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        (
            {"response_format": {"type": "json_object"}},
            "json_schema",
            '{"type":"object"}',
            "response_format",
        ),
        ({"guided_json": {}}, "json_schema", "{}", "guided_json"),
        ({"json_schema": {}}, "json_schema", "{}", "json_schema"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "json_schema",
            TEXT,
            "response_format",
        ),
        (
            {"response_format": named(name="n", schema=SCHEMA)},
            "json_schema",
            TEXT,
            "response_format",
        ),
        (
            {"response_format": named(name="n", schema={}, strict=True, description="d")},
            "json_schema",
            "{}",
            "response_format",
        ),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "[ab]+"}, "regex", "[ab]+", "guided_regex"),
        ({"guided_choice": ["ja", "né"]}, "choice", '["ja","né"]', "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"', "guided_grammar"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"grammar": 'start: "a"'}, "grammar", 'start: "a"', "grammar"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            "json_schema",
            TEXT,
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            '{"type":"object"}',
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": None}},
            "regex",
            "a",
            "structured_outputs.regex",
        ),
        (
            {"structured_outputs": {"choice": ["a"]}},
            "choice",
            '["a"]',
            "structured_outputs.choice",
        ),
        (
            {"structured_outputs": {"grammar": "start: A"}},
            "grammar",
            "start: A",
            "structured_outputs.grammar",
        ),
    ],
)
def test_every_way_to_ask_for_a_form_becomes_a_guide(
    fields: dict[str, Any], kind: Any, source: str, param: str
) -> None:
    assert guide(**fields) == Guide(kind, source, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"guided_json": ""},
        {"guided_regex": ""},
        {"guided_choice": []},
        {"json_schema": ""},
        {"grammar": ""},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"jsn": None, "disable_additional_properties": False}},
        {"guided_decoding_backend": "outlines", "guided_jsn": None},
    ],
)
def test_what_asks_for_no_form_is_no_guide(fields: dict[str, Any]) -> None:
    assert guide(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": named(schema={})}, "response_format.json_schema.name"),
        ({"response_format": named(name="n")}, "response_format.json_schema.schema"),
        ({"response_format": named(name="a b", schema={})}, "response_format.json_schema.name"),
        ({"response_format": named(name="n" * 65, schema={})}, "response_format.json_schema.name"),
        ({"response_format": named(name="n", schema="{}")}, "response_format.json_schema.schema"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": '{"const": NaN}'}, "guided_json"),
        ({"guided_json": '{"const": "\\ud800"}'}, "guided_json"),
        ({"guided_json": '{"a": 1, "a": 2}'}, "guided_json"),
        ({"guided_json": " " * (MAX_SOURCE_CHARS + 1)}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_regex": "a" * (MAX_SOURCE_CHARS + 1)}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"structured_outputs": {"grammar": "a ::= b"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_json": SCHEMA, "grammar": "start: A"}, "grammar"),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"json": SCHEMA, "schema": {}, "x": 1}}, "structured_outputs.x"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"guided_jsn": SCHEMA}, "guided_jsn"),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern"),
    ],
)
def test_a_form_that_cannot_be_honoured_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        guide(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("parse", "fields", "path"),
    [
        (parse_messages, {"messages": HI, "max_tokens": 1}, ("output_config", "format")),
        (parse_messages, {"messages": HI, "max_tokens": 1}, ("output_format",)),
        (partial(parse_response, store=ResponseStore()), {"input": "hi"}, ("text", "format")),
        (parse_ollama_chat, {"messages": HI}, ("format",)),
        (parse_generate, {"prompt": "hi"}, ("format",)),
    ],
)
def test_the_other_dialects_schemas_are_guides_of_the_same_size(
    parse: Callable[[dict[str, Any]], Call], fields: dict[str, Any], path: tuple[str, ...]
) -> None:
    def guide(schema: dict[str, Any]) -> Guide | None:
        wanted = schema if path == ("format",) else {"type": "json_schema", "schema": schema}
        for name in reversed(path):
            wanted = {name: wanted}
        return parse({**fields, **wanted}).request.guide

    assert guide(SCHEMA) == Guide("json_schema", TEXT, ".".join(path))
    with pytest.raises(InvalidRequest, match="longer than") as caught:
        guide({"const": "a" * MAX_SOURCE_CHARS})
    assert caught.value.param == ".".join(path)


def test_a_guide_goes_with_tools_that_may_be_called_but_not_with_such_that_must() -> None:
    form = {"type": "json_object"}
    assert parse_chat(chat_body(tools=[TOOL], response_format=form)).request.guide
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(chat_body(tools=[TOOL], tool_choice="required", response_format=form))
    assert caught.value.param == "response_format"
