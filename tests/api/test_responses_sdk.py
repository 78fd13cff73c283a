"""``/v1/responses`` as the ``openai`` package sees it, through a real socket."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import openai
import pytest
from pydantic import BaseModel

from hotswap.contracts.answers import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from hotswap.contracts.requests import ChatPrompt
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.errors import (
    ContextLengthExceeded,
    EngineFailed,
    ModelLoading,
    ModelNotFound,
    Overloaded,
)
from tests.api.sdk_server import KEY, serving
from tests.api.stage import HELLO, ScriptedService

ASK: dict[str, Any] = {"model": "hotswap/sums", "input": "hi"}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALLING = (
    (ReasoningDelta(index=0, text="hm"), TextDelta(index=0, text="I look.")),
    (ToolCallDelta(index=0, call=0, id="call_1", name="weather", arguments='{"city":'),),
    (ToolCallDelta(index=0, call=0, arguments='"Rom"}'),),
    (Finished(index=0, reason="tool_calls", completion_tokens=9, reasoning_tokens=2),),
)


@contextmanager
def client(
    service: ScriptedService, *, keepalive_s: float = 30, **options: Any
) -> Iterator[openai.OpenAI]:
    given = {"api_key": KEY, "max_retries": 0, "timeout": 60, **options}
    with (
        serving(service, keepalive_s=keepalive_s) as url,
        openai.OpenAI(base_url=f"{url}/v1", **given) as ours,
    ):
        yield ours


@asynccontextmanager
async def async_client(service: ScriptedService) -> AsyncIterator[openai.AsyncOpenAI]:
    with serving(service) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=60) as ours:
            yield ours


def check_call(response: Any) -> None:
    thought, said, call = response.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "hm")
    assert (said.type, response.output_text) == ("message", "I look.")
    assert (call.type, call.call_id, call.name, call.arguments) == (
        "function_call",
        "call_1",
        "weather",
        '{"city":"Rom"}',
    )
    assert response.status == "completed"
    assert response.tools[0].name == "weather"
    assert response.usage.input_tokens == 7
    assert response.usage.output_tokens_details.reasoning_tokens == 2


def text_of(item: Any) -> str:
    assert item.type == "message"
    return str(item.content[0].text)


def test_a_response() -> None:
    with client(ScriptedService()) as ours:
        response = ours.responses.create(**ASK)
    assert (response.output_text, response.model) == ("Hello", "hotswap/sums")
    assert (response.error, response.incomplete_details) == (None, None)


def test_tools_go_there_and_back_by_the_response_before() -> None:
    service = ScriptedService(steps=CALLING)
    with client(service) as ours:
        first = ours.responses.create(**ASK, tools=[TOOL])
        check_call(first)
        result: Any = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
        ours.responses.create(
            model="hotswap/sums", input=[result], previous_response_id=first.id, tools=[TOOL]
        )
    prompt = service.requests[-1].prompts[0]
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"city":"Rom"}'
    assert prompt.tools[0]["function"]["strict"] is True


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    service = ScriptedService(steps=CALLING)
    with client(service) as ours:
        first = ours.responses.create(**ASK, tools=[TOOL], store=False)
        back: Any = [{"role": "user", "content": "hi"}, *first.output]
        ours.responses.create(model="hotswap/sums", input=back)
    prompt = service.requests[-1].prompts[0]
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1]["reasoning_content"] == "hm"
    assert prompt.messages[1]["content"] == "I look."


def test_a_raw_stream() -> None:
    with client(ScriptedService()) as ours:
        events = list(ours.responses.create(**ASK, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_stream_is_gathered() -> None:
    with (
        client(ScriptedService(steps=CALLING)) as ours,
        ours.responses.stream(**ASK, tools=[TOOL]) as stream,
    ):
        events = list(stream)
        check_call(stream.get_final_response())
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert deltas[-1].snapshot == '{"city":"Rom"}'


def test_a_stream_is_gathered_asynchronously() -> None:
    async def main() -> None:
        async with async_client(ScriptedService(steps=CALLING)) as ours:
            async with ours.responses.stream(**ASK, tools=[TOOL]) as stream:
                check_call(await stream.get_final_response())
            check_call(await ours.responses.create(**ASK, tools=[TOOL]))

    anyio.run(main)


class Sum(BaseModel):
    total: int


def test_an_answer_becomes_a_model() -> None:
    service = ScriptedService(
        steps=(
            (TextDelta(index=0, text='{"total": 72}'),),
            (Finished(index=0, reason="stop", completion_tokens=5),),
        )
    )
    with client(service) as ours:
        assert ours.responses.parse(**ASK, text_format=Sum).output_parsed == Sum(total=72)
        with ours.responses.stream(**ASK, text_format=Sum) as stream:
            assert stream.get_final_response().output_parsed == Sum(total=72)
    guide = service.requests[0].guide
    assert guide is not None
    assert '"total"' in guide.source


def test_an_answer_that_was_cut_says_so() -> None:
    cut = Finished(index=0, reason="length", completion_tokens=2)
    with client(ScriptedService(steps=(HELLO[0], (cut,)))) as ours:
        response = ours.responses.create(**ASK, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_kept_responses_are_looked_at_and_deleted() -> None:
    with client(ScriptedService()) as ours:
        response = ours.responses.create(**ASK)
        assert ours.responses.retrieve(response.id) == response
        [item] = ours.responses.input_items.list(response.id)
        assert text_of(item) == "hi"
        ours.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            ours.responses.retrieve(response.id)


def test_all_items_are_found_page_by_page() -> None:
    with client(ScriptedService()) as ours:
        items: Any = [{"role": "user", "content": str(number)} for number in range(25)]
        response = ours.responses.create(model="hotswap/sums", input=items)
        listed = list(ours.responses.input_items.list(response.id, order="asc", limit=10))
        assert list(map(text_of, listed)) == [str(number) for number in range(25)]


def test_tokens_are_counted() -> None:
    with client(ScriptedService()) as ours:
        assert ours.responses.input_tokens.count(**ASK).input_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (ContextLengthExceeded("too long"), openai.BadRequestError),
        (ModelNotFound("none"), openai.NotFoundError),
        (Overloaded("full"), openai.RateLimitError),
        (ModelLoading("loading"), openai.InternalServerError),
    ],
)
def test_refusals_have_their_types(
    refusal: Any, expected: type[openai.APIStatusError], stream: bool
) -> None:
    with client(ScriptedService(refusal=refusal)) as ours, pytest.raises(expected) as caught:
        ours.responses.create(**ASK, stream=stream)
    assert caught.value.code == refusal.code


def test_a_wrong_key_and_a_bad_field_have_their_types() -> None:
    with client(ScriptedService()) as ours:
        with pytest.raises(openai.AuthenticationError):
            ours.with_options(api_key="wrong").responses.create(**ASK)
        with pytest.raises(openai.BadRequestError, match="web_search"):
            ours.responses.create(**ASK, tools=[{"type": "web_search"}])


@pytest.mark.parametrize("helper", [False, True])
def test_a_late_failure_is_raised(helper: bool) -> None:
    seen = threading.Event()
    service = ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke")))
    with client(service) as ours:
        if helper:
            with ours.responses.stream(**ASK) as gathered:
                next(gathered)
                seen.set()
                with pytest.raises(openai.APIError, match="broke"):
                    gathered.until_done()
            return
        stream = ours.responses.create(**ASK, stream=True)
        next(stream)
        seen.set()
        with pytest.raises(openai.APIError, match="broke"):
            list(stream)


class Showing(ScriptedService):
    """Refuses once its client has been shown that it waits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.admission = anyio.Event()
        self.refusal = ModelLoading("still loading")

    def snapshot(self) -> SwapSnapshot:
        assert self.admission is not None
        self.admission.set()
        return super().snapshot()


def test_a_failure_of_a_stream_that_still_waits_is_raised() -> None:
    with (
        client(Showing(), keepalive_s=0.001) as ours,
        ours.responses.create(**ASK, stream=True) as stream,
        pytest.raises(openai.APIError, match="still loading"),
    ):
        list(stream)


class Recovering(ScriptedService):
    """Refuses once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refusal = ModelLoading("loading", retry_after_s=7)

    def _poke(self) -> None:
        super()._poke()
        if self.requests and self.running == 0:
            self.refusal = None


def test_a_refusal_is_tried_again_after_as_long_as_it_says(monkeypatch: Any) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    service = Recovering()
    with client(service, max_retries=1) as ours:
        assert ours.responses.create(**ASK).output_text == "Hello"
    assert (waits, len(service.requests)) == ([7], 2)
