from __future__ import annotations

import json
from typing import Any

from hotswap.api.anthropic_answers import MessageDocument, MessageFrames
from hotswap.api.dialect import Stamp
from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from hotswap.errors import Overloaded

STAMP = Stamp(key="k", created_unix=1700000000, prompt_tokens=7)
END = Finished(index=0, reason="stop", completion_tokens=3)
EVERYTHING: tuple[GenerationEvent, ...] = (
    ReasoningDelta(index=0, text="hm"),
    TextDelta(index=0, text='é"\n'),
    TextDelta(index=0, text="!"),
    ToolCallDelta(index=0, call=0, id="call_1", name="weather"),
    ToolCallDelta(index=0, call=0, arguments='{"city":'),
    ToolCallDelta(index=0, call=0, arguments='"Rom"}'),
    ToolCallDelta(index=0, call=1, id="call_2", name="time"),
    Finished(
        index=0, reason="tool_calls", completion_tokens=9, reasoning_tokens=2, cached_tokens=4
    ),
)
STREAM = """\
event: message_start
data: {"type":"message_start","message":{"id":"msg_k","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"unsigned"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"é\\"\\n"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"!"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"call_1","name":"weather","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\\"city\\":"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"\\"Rom\\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: content_block_start
data: {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"call_2","name":"time","input":{}}}

event: content_block_stop
data: {"type":"content_block_stop","index":3}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":9,"output_tokens_details":{"thinking_tokens":2}}}

event: message_stop
data: {"type":"message_stop"}

"""  # noqa: E501  # the bytes as they are


def streamed(*events: GenerationEvent, **options: bool) -> bytes:
    frames = MessageFrames(STAMP, "m", **options)
    return b"".join([frames.opening(), *map(frames.event, events), frames.closing(7)])


def whole(*events: GenerationEvent, **options: bool) -> Any:
    document = MessageDocument(STAMP, **options)
    for event in events:
        document.add(event)
    return json.loads(document.body("m", 7))


def test_a_stream_to_the_byte() -> None:
    assert streamed(*EVERYTHING).decode() == STREAM


def test_a_message_in_one_piece() -> None:
    assert whole(*EVERYTHING) == {
        "id": "msg_k",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
            {"type": "text", "text": 'é"\n!'},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rom"}},
            {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 2},
        },
    }


def test_why_an_answer_ended() -> None:
    def reason(end: Finished) -> tuple[Any, Any]:
        message = whole(end)
        [delta] = [
            json.loads(line[6:])["delta"]
            for line in streamed(end).decode().splitlines()
            if '"message_delta"' in line and line.startswith("data: ")
        ]
        assert delta == {key: message[key] for key in ("stop_reason", "stop_sequence")}
        return message["stop_reason"], message["stop_sequence"]

    assert reason(END) == ("end_turn", None)
    assert reason(Finished(index=0, reason="length", completion_tokens=1)) == ("max_tokens", None)
    stopped = Finished(index=0, reason="stop", completion_tokens=1, stop_sequence="END")
    assert reason(stopped) == ("stop_sequence", "END")


def test_thinking_that_is_not_to_be_seen_is_an_empty_block() -> None:
    thought = (ReasoningDelta(index=0, text="hm"), TextDelta(index=0, text="4"), END)
    stream = streamed(*thought, thinking=False)
    assert b"thinking_delta" not in stream
    assert stream.count(b"signature_delta") == 1
    hidden, shown = whole(*thought, thinking=False)["content"]
    assert hidden == {"type": "thinking", "thinking": "", "signature": "unsigned"}
    assert shown == {"type": "text", "text": "4"}


def test_a_call_that_the_answer_ended_within_is_not_to_be_made() -> None:
    cut = (
        TextDelta(index=0, text="I will"),
        ToolCallDelta(index=0, call=0, id="call_1", name="rm", arguments='{"path": "/tm'),
        Finished(index=0, reason="length", completion_tokens=4),
    )
    message = whole(*cut)
    assert message["content"] == [{"type": "text", "text": "I will"}]
    assert message["stop_reason"] == "max_tokens"


def test_an_empty_answer_has_no_blocks() -> None:
    assert whole(END)["content"] == []
    assert b"content_block" not in streamed(END)


def test_a_sign_of_life_is_a_ping_and_says_why() -> None:
    frames = MessageFrames(STAMP, "m")
    ping = b': loading b 42%\n\nevent: ping\ndata: {"type":"ping"}\n\n'
    assert frames.alive("loading b 42%") == frames.loading("loading b 42%\n") == ping


def test_a_failure_is_an_error_event() -> None:
    assert MessageFrames(STAMP, "m").failure(Overloaded("full")) == (
        b"event: error\n"
        b'data: {"type":"error","error":{"type":"rate_limit_error","message":"full"}}\n\n'
    )
