from __future__ import annotations

import json
from array import array
from typing import Any

import pytest

from hotswap.api.dialect import Frames, Stamp
from hotswap.api.ollama_answers import (
    ChatDocument,
    ChatFrames,
    GenerateDocument,
    GenerateFrames,
    chat_end,
    embed_body,
    embeddings_body,
    generate_end,
    timestamp,
)
from hotswap.contracts.answers import (
    Embeddings,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.errors import EngineFailed

AT = "2023-11-14T22:13:20Z"
HEAD = b'{"model":"m","created_at":"2023-11-14T22:13:20Z",'
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
END = Finished(index=0, reason="stop", completion_tokens=3)
HI = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("!", b"!", float("-inf")),))
CALLS: tuple[GenerationEvent, ...] = (
    ToolCallDelta(index=0, call=0, id="c0", name="add"),
    ToolCallDelta(index=0, call=0, arguments='{"a":'),
    ToolCallDelta(index=0, call=0, arguments="1}"),
    ToolCallDelta(index=0, call=1, id="c1", name="say", arguments=""),
    Finished(index=0, reason="tool_calls", completion_tokens=9),
)
ADD = {"id": "c0", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}
SAY = {"id": "c1", "function": {"index": 1, "name": "say", "arguments": {}}}


def stamp() -> Stamp:
    return Stamp(key="k", created_unix=1700000000)


def lines(frames: Frames, *events: GenerationEvent) -> list[Any]:
    """A whole stream, decoded."""
    parts = [frames.opening(), *map(frames.event, events), frames.closing(7)]
    return [json.loads(line) for line in b"".join(parts).splitlines()]


def test_a_chat_line_to_the_byte() -> None:
    assert ChatFrames(stamp(), "m").event(TextDelta(index=0, text='é"\n')) == (
        HEAD + '"message":{"role":"assistant","content":"é\\"\\n"},"done":false}\n'.encode()
    )


def test_a_generate_line_to_the_byte() -> None:
    assert GenerateFrames(stamp(), "m").event(TextDelta(index=0, text="a")) == (
        HEAD + b'"response":"a","done":false}\n'
    )


def test_the_last_line_says_why_and_how_long() -> None:
    *_, chat = lines(ChatFrames(stamp(), "m"), TextDelta(index=0, text="a"), END)
    assert chat["message"] == {"role": "assistant", "content": ""}
    *_, generated = lines(GenerateFrames(stamp(), "m"), TextDelta(index=0, text="a"), END)
    assert generated["response"] == ""
    for last in (chat, generated):
        assert (last["model"], last["created_at"]) == ("m", AT)
        assert (last["done"], last["done_reason"]) == (True, "stop")
        assert (last["prompt_eval_count"], last["eval_count"]) == (7, 3)
        assert all(isinstance(last[name], int) and last[name] >= 1 for name in DURATIONS)


def test_durations_are_nanoseconds_of_each_part() -> None:
    took = Stamp(asked=10, admitted=13, first=15, last=15.5)
    *_, last = lines(ChatFrames(took, "m"), TextDelta(index=0, text="a"), END)
    document = ChatDocument(took)
    document.add(END)
    for answer in (last, json.loads(document.body("m", 7))):
        assert [answer[name] for name in DURATIONS] == [5.5e9, 3e9, 2e9, 0.5e9]


def test_what_came_all_at_once_has_no_parts() -> None:
    took = Stamp(asked=10, admitted=13, first=15, last=15)
    *_, last = lines(ChatFrames(took, "m"), TextDelta(index=0, text="a"), END)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (2e9, 2e9)


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")]
)
def test_why_it_ended(reason: Any, told: str) -> None:
    end = Finished(index=0, reason=reason, completion_tokens=1)
    *_, last = lines(ChatFrames(stamp(), "m"), end)
    assert last["done_reason"] == told
    document = ChatDocument(stamp())
    document.add(end)
    assert json.loads(document.body("m", 1))["done_reason"] == told


def test_what_a_model_thinks_has_its_own_field() -> None:
    thought = ReasoningDelta(index=0, text="Hm.")
    (chat, *_) = lines(ChatFrames(stamp(), "m"), thought, END)
    assert chat["message"] == {"role": "assistant", "content": "", "thinking": "Hm."}
    (generated, *_) = lines(GenerateFrames(stamp(), "m"), thought, END)
    assert (generated["response"], generated["thinking"]) == ("", "Hm.")


def test_a_tool_call_is_told_when_it_is_whole() -> None:
    frames = ChatFrames(stamp(), "m")
    assert [frames.event(event) != b"" for event in CALLS] == [False, False, False, True, True]
    first, second, last = lines(ChatFrames(stamp(), "m"), *CALLS)
    assert first["message"] == {"role": "assistant", "content": "", "tool_calls": [ADD]}
    assert second["message"]["tool_calls"] == [SAY]
    assert last["done_reason"] == "stop"


def test_text_after_a_tool_call_comes_after_it() -> None:
    first, second, *_ = lines(
        ChatFrames(stamp(), "m"), *CALLS[:3], TextDelta(index=0, text="x"), END
    )
    assert first["message"]["tool_calls"] == [ADD]
    assert second["message"]["content"] == "x"


def test_a_call_that_was_cut_short_is_left_out() -> None:
    cut = Finished(index=0, reason="length", completion_tokens=9)
    (last,) = lines(ChatFrames(stamp(), "m"), *CALLS[:2], cut)
    assert last["done_reason"] == "length"


def test_logprobs_of_a_line_and_of_a_document() -> None:
    expected = [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [{"token": "!", "logprob": -9999.0, "bytes": [33]}],
        }
    ]
    delta = TextDelta(index=0, text="Hi", logprobs=(HI,))
    (line, *_) = lines(ChatFrames(stamp(), "m"), delta, END)
    assert line["logprobs"] == expected
    document = GenerateDocument(stamp())
    document.add(delta)
    assert json.loads(document.body("m", 1))["logprobs"] == expected


def test_a_chat_in_one_piece() -> None:
    document = ChatDocument(stamp())
    for event in (ReasoningDelta(index=0, text="Hm."), TextDelta(index=0, text="a"), *CALLS):
        document.add(event)
    body = json.loads(document.body("m", 7))
    assert {key: value for key, value in body.items() if key not in DURATIONS} == {
        "model": "m",
        "created_at": AT,
        "message": {
            "role": "assistant",
            "content": "a",
            "thinking": "Hm.",
            "tool_calls": [ADD, SAY],
        },
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 7,
        "eval_count": 9,
    }
    assert all(body[name] >= 1 for name in DURATIONS)


def test_a_generated_text_in_one_piece() -> None:
    document = GenerateDocument(stamp())
    for event in (ReasoningDelta(index=0, text="Hm."), TextDelta(index=0, text="a"), END):
        document.add(event)
    body = json.loads(document.body("m", 7))
    assert (body["response"], body["thinking"], body["done_reason"]) == ("a", "Hm.", "stop")
    assert "logprobs" not in body


@pytest.mark.parametrize("frames", [ChatFrames(stamp(), "m"), GenerateFrames(stamp(), "m")])
def test_signs_of_life_add_nothing_to_the_answer(frames: Frames) -> None:
    alive = json.loads(frames.alive("loading m 42%"))
    assert alive["done"] is False
    assert alive.get("response") == "" or alive["message"]["content"] == ""
    loading = json.loads(frames.loading("loading m 42%\n"))
    assert (loading.get("message") or loading)["thinking"] == "loading m 42%\n"


def test_a_late_failure_is_a_line_of_its_own() -> None:
    assert ChatFrames(stamp(), "m").failure(EngineFailed("broke")) == b'{"error":"broke"}\n'


def test_loading_and_unloading_answer_at_once() -> None:
    assert chat_end(stamp(), "m", "load") == (
        HEAD + b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}\n'
    )
    assert generate_end(stamp(), "m", "unload") == (
        HEAD + b'"response":"","done":true,"done_reason":"unload"}\n'
    )


def test_vectors() -> None:
    embeddings = Embeddings("m", (array("f", [0.5, -1.0]), array("f", [0.25, 0.0])), 9)
    body = json.loads(embed_body(stamp(), embeddings))
    assert body.pop("total_duration") >= 1
    assert body == {"model": "m", "embeddings": [[0.5, -1], [0.25, 0]], "prompt_eval_count": 9}
    assert embeddings_body(stamp(), embeddings) == b'{"embedding":[0.5,-1.0]}'
    assert embeddings_body(stamp(), Embeddings("m", (), 0)) == b'{"embedding":[]}'


def test_a_moment_in_words() -> None:
    assert timestamp(1700000000) == AT
    assert timestamp(1700000000.25) == "2023-11-14T22:13:20.250000Z"
