from __future__ import annotations

import json
from typing import Any

from hotswap.api.dialect import Stamp
from hotswap.api.openai_answers import (
    ChatDocument,
    ChatFrames,
    CompletionDocument,
    CompletionFrames,
)
from hotswap.contracts.answers import (
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.errors import EngineFailed

STAMP = Stamp(key="k", created_unix=1700000000)
HI = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Hi", b"Hi", -0.5),))
NEVER = TokenLogprob("!", b"!", float("-inf"))
END = Finished(index=0, reason="stop", completion_tokens=3)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, object]:
    """Of an answer without reasoning to a prompt that nobody remembered."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def chat_frames(*, choices: int = 1, include_usage: bool = False) -> ChatFrames:
    return ChatFrames(STAMP, "m", choices=choices, include_usage=include_usage)


def completion_frames(*, include_usage: bool = False) -> CompletionFrames:
    return CompletionFrames(STAMP, "m", include_usage=include_usage)


def decoded(frames: bytes) -> list[Any]:
    parts = frames.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts if part != "data: [DONE]"]


def test_a_chat_chunk_to_the_byte() -> None:
    assert (
        chat_frames().event(TextDelta(index=1, text='é"\n'))
        == (
            'data: {"id":"chatcmpl-k","object":"chat.completion.chunk","created":1700000000,'
            '"model":"m","choices":[{"index":1,"delta":{"content":"é\\"\\n"},"logprobs":null,'
            '"finish_reason":null}]}\n\n'
        ).encode()
    )


def test_a_completion_chunk_to_the_byte() -> None:
    assert completion_frames().event(TextDelta(index=0, text="a")) == (
        b'data: {"id":"cmpl-k","object":"text_completion","created":1700000000,"model":"m",'
        b'"choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}\n\n'
    )


def test_choices_do_not_mix() -> None:
    frames = chat_frames(choices=2)
    chunks = [
        decoded(frames.event(TextDelta(index=index, text=text)))[0]["choices"][0]
        for index, text in [(0, "a"), (1, "b"), (0, "c"), (1, "d")]
    ]
    assert [(c["index"], c["delta"]["content"]) for c in chunks] == [
        (0, "a"),
        (1, "b"),
        (0, "c"),
        (1, "d"),
    ]


def test_a_stream_opens_with_the_role_of_every_choice() -> None:
    deltas = [chunk["choices"][0] for chunk in decoded(chat_frames(choices=2).opening())]
    assert [delta["index"] for delta in deltas] == [0, 1]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert completion_frames().opening() == b""


def test_the_last_chunk_of_a_choice_gives_the_reason() -> None:
    (chunk,) = decoded(chat_frames().event(END))
    (choice,) = chunk["choices"]
    assert (choice["delta"], choice["finish_reason"]) == ({}, "stop")
    (chunk,) = decoded(completion_frames().event(END))
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("", "stop")


def test_usage_comes_last_and_only_when_asked_for() -> None:
    for frames in (chat_frames(include_usage=True), completion_frames(include_usage=True)):
        (chunk,) = decoded(frames.event(END))
        assert chunk["usage"] is None
        frames.event(END)
        closing = frames.closing(7)
        assert closing.endswith(b"\n\ndata: [DONE]\n\n")
        (chunk,) = decoded(closing)
        assert chunk["choices"] == []
        assert chunk["usage"] == usage(7, 6)
    assert chat_frames().closing(7) == b"data: [DONE]\n\n"


def test_a_failure_is_an_error_without_choices_and_then_the_end() -> None:
    failure = chat_frames().failure(EngineFailed("broke"))
    assert failure.endswith(b"\n\ndata: [DONE]\n\n")
    (event,) = decoded(failure)
    assert event["error"]["code"] == "engine_failed"
    assert "choices" not in event


def test_loading_text_is_reasoning_in_a_chat_and_a_comment_elsewhere() -> None:
    (chunk,) = decoded(chat_frames().loading("loading b 42%\n"))
    assert chunk["choices"][0]["delta"] == {"reasoning_content": "loading b 42%\n"}
    assert completion_frames().loading("loading b 42%\n") == b": loading b 42%\n\n"


def test_chat_logprobs() -> None:
    (chunk,) = decoded(chat_frames().event(TextDelta(index=0, text="Hi!", logprobs=(HI, NEVER))))
    hi = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    assert chunk["choices"][0]["logprobs"] == {
        "content": [
            {**hi, "top_logprobs": [hi]},
            {"token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_completion_logprobs_know_where_each_token_starts() -> None:
    frames = completion_frames()
    frames.event(TextDelta(index=0, text="abc"))
    (chunk,) = decoded(frames.event(TextDelta(index=0, text="Hi!", logprobs=(HI, NEVER))))
    assert chunk["choices"][0]["logprobs"] == {
        "text_offset": [3, 5],
        "token_logprobs": [-0.5, -9999.0],
        "tokens": ["Hi", "!"],
        "top_logprobs": [{"Hi": -0.5}, {"!": -9999.0}],
    }


def test_a_chat_answer_in_one_piece() -> None:
    document = ChatDocument(STAMP, choices=2)
    for event in (
        TextDelta(index=1, text="B"),
        TextDelta(index=0, text="H", logprobs=(HI,)),
        TextDelta(index=0, text="i"),
        END,
        Finished(index=1, reason="length", completion_tokens=1),
    ):
        document.add(event)
    hi = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    assert json.loads(document.body("m", 7)) == {
        "id": "chatcmpl-k",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": {"content": [{**hi, "top_logprobs": [hi]}], "refusal": None},
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "B", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            },
        ],
        "usage": usage(7, 4),
    }


def test_a_first_token_has_no_log_probability() -> None:
    first = TokenLogprob("H", b"H", None)
    document = CompletionDocument(STAMP, choices=1)
    document.add(TextDelta(index=0, text="HHi", logprobs=(first, HI)))
    document.add(END)
    [choice] = json.loads(document.body("m", 7))["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [None, -0.5],
        "tokens": ["H", "Hi"],
        "top_logprobs": [None, {"Hi": -0.5}],
    }


def test_a_completion_in_one_piece() -> None:
    document = CompletionDocument(STAMP, choices=1)
    document.add(TextDelta(index=0, text="Hi", logprobs=(HI,)))
    document.add(END)
    assert json.loads(document.body("m", 7)) == {
        "id": "cmpl-k",
        "object": "text_completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "Hi",
                "logprobs": {
                    "text_offset": [0],
                    "token_logprobs": [-0.5],
                    "tokens": ["Hi"],
                    "top_logprobs": [{"Hi": -0.5}],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": usage(7, 3),
    }


CALLS = (
    ToolCallDelta(index=0, call=0, id="call_1", name="weather"),
    ToolCallDelta(index=0, call=0, arguments='{"city":'),
    ToolCallDelta(index=0, call=0, arguments='"Rom"}'),
    ToolCallDelta(index=0, call=1, id="call_2", name="time", arguments="{}"),
)


def test_tool_calls_are_streamed_as_their_arguments_grow() -> None:
    frames = chat_frames()
    deltas = [decoded(frames.event(call))[0]["choices"][0]["delta"] for call in CALLS]
    first = {"name": "weather", "arguments": ""}
    assert deltas[0]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": first}
    ]
    assert deltas[1]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"city":'}}]
    assert deltas[3]["tool_calls"][0]["index"] == 1


def test_tool_calls_of_a_whole_answer_stand_beside_no_content() -> None:
    document = ChatDocument(STAMP, choices=1)
    for event in (*CALLS, Finished(index=0, reason="tool_calls", completion_tokens=9)):
        document.add(event)
    [choice] = json.loads(document.body("m", 4))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city":"Rom"}'},
        {"name": "time", "arguments": "{}"},
    ]


def test_reasoning_is_told_apart_and_counted() -> None:
    thought = ReasoningDelta(index=0, text="hm")
    end = Finished(index=0, reason="stop", completion_tokens=3, reasoning_tokens=2)
    frames, document = chat_frames(include_usage=True), ChatDocument(STAMP, choices=1)
    [chunk] = decoded(frames.event(thought))
    assert chunk["choices"][0]["delta"] == {"reasoning_content": "hm"}
    for event in (thought, TextDelta(index=0, text="4"), end):
        document.add(event)
    whole = json.loads(document.body("m", 4))
    assert whole["choices"][0]["message"]["reasoning_content"] == "hm"
    assert whole["choices"][0]["message"]["content"] == "4"
    frames.event(end)
    [last] = decoded(frames.closing(4))
    assert last["usage"] == whole["usage"]
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
