"""OpenAI's dialect to the byte: a body in, a request; events in, an answer."""

from __future__ import annotations

import pytest

from hotswap.api.body import parse_object
from hotswap.api.dialect import Call, Stamp
from hotswap.api.openai import parse_chat, parse_completion
from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)

STAMP = Stamp(key="k", created_unix=1700000000)

CHAT_BODY = b"""{
  "model": "m", "stream": true, "stream_options": {"include_usage": true},
  "messages": [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather in "},
                                 {"type": "text", "text": "Rome?"}]},
    {"role": "assistant", "content": null, "reasoning": "Look.", "tool_calls": [
      {"id": "c1", "type": "function", "function": {"name": "w", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "31"}],
  "tools": [{"type": "function", "function": {
    "name": "w", "description": "The weather.", "strict": true,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}],
  "tool_choice": {"type": "function", "function": {"name": "w"}},
  "parallel_tool_calls": false, "reasoning_effort": "xhigh", "temperature": 0.5, "seed": 7
}"""
CHAT_REQUEST = GenerationRequest(
    model="m",
    prompts=(
        ChatPrompt(
            messages=(
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather in Rome?"},
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "Look.",
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "w", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "content": "31", "tool_call_id": "c1"},
            ),
            tools=(
                {
                    "type": "function",
                    "function": {
                        "name": "w",
                        "description": "The weather.",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string"}},
                        },
                        "strict": True,
                    },
                },
            ),
            tool_choice=ToolChoice(required=True, name="w", parallel=False),
            reasoning_effort="high",
        ),
    ),
    sampling=SamplingParams(temperature=0.5, seed=7),
)
CHAT_EVENTS: tuple[GenerationEvent, ...] = (
    ReasoningDelta(index=0, text="Hm."),
    TextDelta(index=0, text='S"'),
    ToolCallDelta(index=0, call=0, id="c2", name="w"),
    ToolCallDelta(index=0, call=0, arguments='{"city":"Rome"}'),
    Finished(
        index=0, reason="tool_calls", completion_tokens=9, reasoning_tokens=2, cached_tokens=4
    ),
)
CHUNK = (
    'data: {"id":"chatcmpl-k","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    '"choices":['
)
CHAT_STREAM = "".join(
    (
        CHUNK,
        '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n',
        CHUNK,
        '{"index":0,"delta":{"reasoning_content":"Hm."},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n',
        CHUNK,
        '{"index":0,"delta":{"content":"S\\""},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n',
        CHUNK,
        '{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c2","type":"function",'
        '"function":{"name":"w","arguments":""}}]},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n',
        CHUNK,
        '{"index":0,"delta":{"tool_calls":[{"index":0,'
        '"function":{"arguments":"{\\"city\\":\\"Rome\\"}"}}]},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n',
        CHUNK,
        '{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}\n\n',
        CHUNK,
        '],"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14,'
        '"prompt_tokens_details":{"cached_tokens":4},'
        '"completion_tokens_details":{"reasoning_tokens":2}}}\n\n',
        "data: [DONE]\n\n",
    )
)
CHAT_DOCUMENT = (
    '{"id":"chatcmpl-k","object":"chat.completion","created":1700000000,"model":"m","choices":['
    '{"index":0,"message":{"role":"assistant","content":"S\\"","refusal":null,'
    '"reasoning_content":"Hm.","tool_calls":[{"id":"c2","type":"function",'
    '"function":{"name":"w","arguments":"{\\"city\\":\\"Rome\\"}"}}]},"logprobs":null,'
    '"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":5,"completion_tokens":9,'
    '"total_tokens":14,"prompt_tokens_details":{"cached_tokens":4},'
    '"completion_tokens_details":{"reasoning_tokens":2}}}'
)

COMPLETION_BODY = b"""{
  "model": "m", "prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "stop": "\\n", "stream": true,
  "structured_outputs": {"choice": ["x", "y"]}, "user": "u", "add_special_tokens": false
}"""
COMPLETION_REQUEST = GenerationRequest(
    model="m",
    prompts=(TextPrompt("a", special=False), TextPrompt("b", special=False)),
    max_tokens=2,
    stop=("\n",),
    logprobs=1,
    guide=Guide("choice", '["x","y"]', "structured_outputs.choice"),
)
X = TokenLogprob("x", b"x", -0.5, (TokenLogprob("x", b"x", -0.5),))
COMPLETION_EVENTS: tuple[GenerationEvent, ...] = (
    TextDelta(index=1, text="y"),
    TextDelta(index=0, text="x", logprobs=(X,)),
    Finished(index=1, reason="length", completion_tokens=1, cached_tokens=2),
    Finished(index=0, reason="stop", completion_tokens=1, cached_tokens=1),
)
COMPLETION_HEAD = '{"id":"cmpl-k","object":"text_completion","created":1700000000,"model":"m",'
X_LOGPROBS = (
    '{"text_offset":[0],"token_logprobs":[-0.5],"tokens":["x"],"top_logprobs":[{"x":-0.5}]}'
)
COMPLETION_STREAM = "".join(
    (
        f'data: {COMPLETION_HEAD}"choices":[{{"index":1,"text":"y","logprobs":null,'
        '"finish_reason":null}]}\n\n',
        f'data: {COMPLETION_HEAD}"choices":[{{"index":0,"text":"x","logprobs":{X_LOGPROBS},'
        '"finish_reason":null}]}\n\n',
        f'data: {COMPLETION_HEAD}"choices":[{{"index":1,"text":"","logprobs":null,'
        '"finish_reason":"length"}]}\n\n',
        f'data: {COMPLETION_HEAD}"choices":[{{"index":0,"text":"","logprobs":null,'
        '"finish_reason":"stop"}]}\n\n',
        "data: [DONE]\n\n",
    )
)
COMPLETION_DOCUMENT = (
    f'{COMPLETION_HEAD}"choices":[{{"index":0,"text":"x","logprobs":{X_LOGPROBS},'
    '"finish_reason":"stop"},{"index":1,"text":"y","logprobs":null,"finish_reason":"length"}],'
    '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,'
    '"prompt_tokens_details":{"cached_tokens":3},'
    '"completion_tokens_details":{"reasoning_tokens":0}}}'
)

CHAT = parse_chat(parse_object(CHAT_BODY))
COMPLETION = parse_completion(parse_object(COMPLETION_BODY))


def streamed(call: Call, events: tuple[GenerationEvent, ...]) -> str:
    frames = call.frames(STAMP, "m")
    parts = (frames.opening(), *map(frames.event, events), frames.closing(5))
    return b"".join(parts).decode()


def whole(call: Call, events: tuple[GenerationEvent, ...]) -> str:
    document = call.document(STAMP)
    for event in events:
        document.add(event)
    return document.body("m", 5).decode()


def test_a_body_becomes_a_request() -> None:
    assert CHAT.request == CHAT_REQUEST
    assert COMPLETION.request == COMPLETION_REQUEST


@pytest.mark.parametrize(
    ("call", "events", "stream", "document"),
    [
        (CHAT, CHAT_EVENTS, CHAT_STREAM, CHAT_DOCUMENT),
        (COMPLETION, COMPLETION_EVENTS, COMPLETION_STREAM, COMPLETION_DOCUMENT),
    ],
    ids=["chat", "completion"],
)
def test_events_become_an_answer(
    call: Call, events: tuple[GenerationEvent, ...], stream: str, document: str
) -> None:
    assert streamed(call, events) == stream
    assert whole(call, events) == document


def test_a_prompt_of_tokens_becomes_a_request() -> None:
    body = b'{"prompt": [[1, 2], [3.0]], "n": 2, "top_k": -1, "seed": -1}'
    assert parse_completion(parse_object(body)).request == GenerationRequest(
        prompts=(TokenPrompt((1, 2)), TokenPrompt((3,))), n=2, sampling=SamplingParams(top_k=0)
    )
