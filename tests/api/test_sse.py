"""Server-sent events as a reader by the letter of the standard takes them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.api.sse import comment
from hotswap.contracts.answers import Finished, TextDelta
from tests.api.stage import ScriptedService, app_of, ask

MESSAGES = [{"role": "user", "content": "hi"}]
_END_OF_LINE = re.compile("\r\n|\n|\r")

# Anything that text can be, with much of what means something on the wire.
texts = st.lists(
    st.sampled_from(
        ["\n", "\r", "\r\n", "\n\n", "data: ", ": ", "[DONE]", "\u2028", "\x85", "\0", '"']
    )
    | st.text(max_size=5),
    max_size=5,
).map("".join)


def events_of(stream: bytes) -> list[str]:
    """The data of each event (HTML, 9.2.6); comments and names are skipped."""
    events: list[str] = []
    data: list[str] = []
    for line in _END_OF_LINE.split(stream.decode()):
        if not line:
            if data:
                events.append("\n".join(data))
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
    assert not data, "an event without its end"
    return events


def streamed(path: str, body: dict[str, Any], said: list[str]) -> bytes:
    deltas = tuple(TextDelta(index=0, text=text) for text in said if text)
    end = (Finished(index=0, reason="stop", completion_tokens=3),)
    service = ScriptedService(steps=(*((delta,) for delta in deltas), end))
    exchange = ask(app_of(service), "POST", path, {"stream": True, **body})
    assert exchange.status == 200
    return exchange.body


@given(texts)
def test_a_comment_is_no_event_whatever_is_in_it(text: str) -> None:
    assert events_of(comment(text) + b"data: 1\n\n") == ["1"]


def chat(event: Any) -> str:
    return event["choices"][0]["delta"].get("content", "") if event["choices"] else ""


def completion(event: Any) -> str:
    return str(event["choices"][0]["text"])


def message(event: Any) -> str:
    return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""


def response(event: Any) -> str:
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


@pytest.mark.parametrize(
    ("path", "body", "said_in"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, chat),
        ("/v1/completions", {"prompt": "x"}, completion),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}, message),
        ("/v1/responses", {"input": "x"}, response),
    ],
)
@given(said=st.lists(texts, max_size=4))
def test_what_a_model_says_comes_through_whatever_it_is(
    path: str, body: dict[str, Any], said_in: Any, said: list[str]
) -> None:
    events = events_of(streamed(path, body, said))
    heard = [json.loads(event) for event in events if event != "[DONE]"]
    assert "".join(map(said_in, heard)) == "".join(said)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@given(said=st.lists(texts, max_size=4))
def test_lines_of_json_are_one_line_each(path: str, said: list[str]) -> None:
    body = {"model": "hotswap/sums", "messages": MESSAGES, "prompt": "x"}
    lines = streamed(path, body, said).split(b"\n")
    assert lines.pop() == b""
    heard = [json.loads(line) for line in lines]
    assert "".join(
        one.get("response") or one["message"]["content"] for one in heard[:-1]
    ) == "".join(said)
    assert [one["done"] for one in heard] == [False] * (len(heard) - 1) + [True]
