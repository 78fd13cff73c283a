"""What the official client makes of our answers, over a real socket and without a model."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import openai
import pytest
from pydantic import BaseModel

from hotswap.contracts.answers import (
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.contracts.requests import ChatPrompt, GenerationRequest
from hotswap.errors import ModelLoading
from tests.api.stage import ScriptedGeneration, ScriptedService
from tests.api.test_loopback import served

SUMS = "hotswap/sums"
USER: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CALLS = (
    (
        ReasoningDelta(index=0, text="I must "),
        ReasoningDelta(index=0, text="look."),
        ToolCallDelta(index=0, call=0, id="call_1", name="weather"),
        ToolCallDelta(index=0, call=0, arguments='{"city":'),
    ),
    (
        ToolCallDelta(index=0, call=0, arguments=' "Rome"}'),
        ToolCallDelta(index=0, call=1, id="call_2", name="weather", arguments='{"city": "Oslo"}'),
        Finished(index=0, reason="tool_calls", completion_tokens=9, reasoning_tokens=4),
    ),
)
ANSWER = (
    (TextDelta(index=0, text='{"city": "Ro'), TextDelta(index=0, text='me", "degrees": 31}')),
    (Finished(index=0, reason="stop", completion_tokens=8),),
)


class Place(BaseModel):
    city: str


class Weather(BaseModel):
    city: str
    degrees: int


@contextmanager
def client(service: ScriptedService, **options: Any) -> Iterator[openai.OpenAI]:
    with (
        served(service) as port,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key="none",
            timeout=60,
            **{"max_retries": 0, **options},
        ) as ours,
    ):
        yield ours


def prompt_of(service: ScriptedService) -> ChatPrompt:
    [prompt] = service.requests[-1].prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_tool_calls_and_reasoning_of_a_whole_answer() -> None:
    service = ScriptedService(steps=CALLS)
    with client(service) as ours:
        answer = ours.chat.completions.create(
            model=SUMS,
            messages=USER,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=True,
            reasoning_effort="low",
        )
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.reasoning_content == "I must look."  # type: ignore[attr-defined]
        assert choice.message.tool_calls is not None
        first, second = choice.message.tool_calls
        assert (first.id, first.type) == ("call_1", "function")
        assert json.loads(first.function.arguments) == {"city": "Rome"}  # type: ignore[union-attr]
        assert json.loads(second.function.arguments) == {"city": "Oslo"}  # type: ignore[union-attr]
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 4
        # And the conversation goes on with the client's own objects.
        said: Any = choice.message
        results: list[Any] = [
            {"role": "tool", "tool_call_id": call.id, "content": "31"} for call in (first, second)
        ]
        ours.chat.completions.create(model=SUMS, messages=[*USER, said, *results], tools=[WEATHER])
    asked, again = (request.prompts[0] for request in service.requests)
    assert isinstance(asked, ChatPrompt)
    assert isinstance(again, ChatPrompt)
    assert (asked.tools, asked.tool_choice.name, asked.reasoning_effort) == (
        (WEATHER,),
        "weather",
        "low",
    )
    assert [message["role"] for message in again.messages] == ["user", "assistant", "tool", "tool"]
    assert again.messages[1]["reasoning_content"] == "I must look."
    assert [call["id"] for call in again.messages[1]["tool_calls"]] == ["call_1", "call_2"]


def test_the_streaming_helper_puts_tool_calls_together() -> None:
    with (
        client(ScriptedService(steps=CALLS)) as ours,
        ours.chat.completions.stream(
            model=SUMS,
            messages=USER,
            tools=[openai.pydantic_function_tool(Place, name="weather")],
            stream_options={"include_usage": True},
        ) as stream,
    ):
        events = list(stream)
        whole = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [Place(city="Rome"), Place(city="Oslo")]
    [choice] = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert [call.id for call in choice.message.tool_calls or ()] == ["call_1", "call_2"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 9


def test_the_streaming_helper_tells_text_and_its_end() -> None:
    with (
        client(ScriptedService()) as ours,
        ours.chat.completions.stream(model=SUMS, messages=USER) as stream,
    ):
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "content.delta") == "Hello"
    [done] = [event for event in events if event.type == "content.done"]
    assert done.content == "Hello"


def test_parse_asks_for_the_models_schema_and_reads_the_answer_with_it() -> None:
    """That every answer fits the schema is the engine's part."""
    service = ScriptedService(steps=ANSWER)
    with client(service) as ours:
        answer = ours.chat.completions.parse(model=SUMS, messages=USER, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Rome", degrees=31)
    guide = service.requests[0].guide
    assert guide is not None
    assert guide.kind == "json_schema"
    assert list(json.loads(guide.source)["properties"]) == ["city", "degrees"]


def test_the_streaming_helper_parses_as_it_goes() -> None:
    with (
        client(ScriptedService(steps=ANSWER)) as ours,
        ours.chat.completions.stream(model=SUMS, messages=USER, response_format=Weather) as stream,
    ):
        whole = stream.get_final_completion()
    assert whole.choices[0].message.parsed == Weather(city="Rome", degrees=31)


def test_an_answer_that_was_cut_off_is_an_error_of_parse() -> None:
    cut = (ANSWER[0], (Finished(index=0, reason="length", completion_tokens=8),))
    with client(ScriptedService(steps=cut)) as ours, pytest.raises(openai.LengthFinishReasonError):
        ours.chat.completions.parse(model=SUMS, messages=USER, response_format=Weather)


def test_logprobs_are_read() -> None:
    token = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Hi", b"Hi", -0.5),))
    steps = (
        (TextDelta(index=0, text="Hi", logprobs=(token,)),),
        (Finished(index=0, reason="stop", completion_tokens=1),),
    )
    with client(ScriptedService(steps=steps)) as ours:
        chat = ours.chat.completions.create(
            model=SUMS, messages=USER, logprobs=True, top_logprobs=1
        )
        text = ours.completions.create(model=SUMS, prompt="x", logprobs=1)
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    [read] = chat.choices[0].logprobs.content
    assert (read.token, read.bytes, read.top_logprobs[0].logprob) == ("Hi", [72, 105], -0.5)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.top_logprobs == [{"Hi": -0.5}]


def test_prompts_of_a_completion_may_be_lists_of_texts_or_of_tokens() -> None:
    service = ScriptedService()
    with client(service) as ours:
        texts = ours.completions.create(model=SUMS, prompt=["a", "b"], n=2)
        ours.completions.create(model=SUMS, prompt=[[1, 2], [3]])
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert [len(request.prompts) for request in service.requests] == [2, 2]


def test_the_asynchronous_client_streams_two_chats_at_once() -> None:
    async def tell(ours: openai.AsyncOpenAI, told: list[str]) -> None:
        async with ours.chat.completions.stream(model=SUMS, messages=USER) as stream:
            told += [event.content async for event in stream if event.type == "content.done"]

    async def main(port: int) -> list[str]:
        told: list[str] = []
        async with (
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as ours,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(2):
                tasks.start_soon(tell, ours, told)
        return told

    with served(ScriptedService()) as port:
        assert anyio.run(main, port) == ["Hello", "Hello"]


class LoadingAtFirst(ScriptedService):
    """Refuses the first request as one that came while a model is loaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refused = threading.Event()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[ScriptedGeneration]:
        if not self.refused.is_set():
            self.refused.set()
            raise ModelLoading("a model is being loaded", retry_after_s=1)
        async with super().generate(request) as generation:
            yield generation


def test_a_503_is_tried_again_after_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    service = LoadingAtFirst()
    with client(service, max_retries=2) as ours:
        answer = ours.chat.completions.create(model=SUMS, messages=USER)
    assert answer.choices[0].message.content == "Hello"
    assert waits == [1]


def test_a_bad_field_is_a_bad_request_that_names_it() -> None:
    with client(ScriptedService()) as ours, pytest.raises(openai.BadRequestError) as caught:
        ours.chat.completions.create(
            model=SUMS, messages=USER, tools=[WEATHER, WEATHER], tool_choice="auto"
        )
    assert caught.value.param == "tools[1].function.name"


def test_the_client_counts_tokens_where_vllm_has_them() -> None:
    with client(ScriptedService()) as ours:
        root = str(ours.base_url).removesuffix("v1/")
        answer: Any = ours.post(
            f"{root}tokenize", body={"model": SUMS, "messages": USER}, cast_to=object
        )
    assert answer["count"] == 3
