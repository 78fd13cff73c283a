"""``/v1/messages`` as the ``anthropic`` package sees it, through a real socket."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anthropic
import anyio
import pytest
from pydantic import BaseModel

from hotswap.contracts.answers import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from hotswap.contracts.requests import ChatPrompt
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.errors import ContextLengthExceeded, EngineFailed, ModelLoading, Overloaded
from tests.api.sdk_server import KEY, serving
from tests.api.stage import HELLO, ScriptedService

pytestmark = pytest.mark.slow  # to import anthropic takes as long as all the others

USER: list[Any] = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "claude-opus-5", "max_tokens": 9, "messages": USER}
TOOL: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
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
) -> Iterator[anthropic.Anthropic]:
    given = {"api_key": KEY, "max_retries": 0, "timeout": 60, **options}
    with (
        serving(service, keepalive_s=keepalive_s) as url,
        anthropic.Anthropic(base_url=url, **given) as ours,
    ):
        yield ours


@asynccontextmanager
async def async_client(service: ScriptedService) -> AsyncIterator[anthropic.AsyncAnthropic]:
    with serving(service) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, timeout=60) as ours:
            yield ours


def check_call(message: Any) -> None:
    thought, said, call = message.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "hm", "unsigned")
    assert (said.type, said.text) == ("text", "I look.")
    assert (call.type, call.id, call.name, call.input) == (
        "tool_use",
        "call_1",
        "weather",
        {"city": "Rom"},
    )
    assert message.stop_reason == "tool_use"
    assert message.model == "hotswap/sums"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 9)


def test_a_message() -> None:
    with client(ScriptedService()) as ours:
        message = ours.messages.create(**ASK)
        assert (message.content[0].type, message.stop_reason) == ("text", "end_turn")
        assert message.usage.input_tokens == 7


def test_tools_go_there_and_back() -> None:
    service = ScriptedService(steps=CALLING)
    with client(service) as ours:
        first = ours.messages.create(**ASK, tools=[TOOL])
        check_call(first)
        result: Any = {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"}
        turns = [*USER, first.to_param(), {"role": "user", "content": [result]}]
        ours.messages.create(**{**ASK, "messages": turns}, tools=[TOOL])
    prompt = service.requests[-1].prompts[0]
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.messages[1]["reasoning_content"] == "hm"
    assert prompt.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"city":"Rom"}'
    assert prompt.tools[0]["function"]["parameters"] == TOOL["input_schema"]


def test_a_raw_stream() -> None:
    with client(ScriptedService()) as ours:
        events = list(ours.messages.create(**ASK, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_a_stream_is_gathered() -> None:
    with (
        client(ScriptedService(steps=CALLING)) as ours,
        ours.messages.stream(**ASK, tools=[TOOL]) as stream,
    ):
        assert "".join(stream.text_stream) == "I look."
        check_call(stream.get_final_message())


def test_a_stream_is_gathered_asynchronously() -> None:
    async def main() -> None:
        async with async_client(ScriptedService(steps=CALLING)) as ours:
            async with ours.messages.stream(**ASK, tools=[TOOL]) as stream:
                check_call(await stream.get_final_message())
            check_call(await ours.messages.create(**ASK, tools=[TOOL]))

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
        assert ours.messages.parse(**ASK, output_format=Sum).parsed_output == Sum(total=72)
    guide = service.requests[0].guide
    assert guide is not None
    assert '"total"' in guide.source


def test_tokens_are_counted() -> None:
    with client(ScriptedService()) as ours:
        count = ours.messages.count_tokens(model="claude", messages=USER, tools=[TOOL])
        assert count.input_tokens == 3


def test_models_are_listed() -> None:
    with client(ScriptedService()) as ours:
        models = list(ours.models.list())
        assert [model.id for model in models] == ["hotswap/sums", "hotswap/tales"]
        assert models[0].created_at.year == 2023
        assert ours.models.retrieve("sums").display_name == "hotswap/sums"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (ContextLengthExceeded("too long"), anthropic.BadRequestError),
        (Overloaded("full"), anthropic.RateLimitError),
        (ModelLoading("loading"), anthropic.InternalServerError),
    ],
)
def test_refusals_have_their_types(
    refusal: Any, expected: type[anthropic.APIStatusError], stream: bool
) -> None:
    with (
        client(ScriptedService(refusal=refusal)) as ours,
        pytest.raises(expected, match=refusal.message) as caught,
    ):
        ours.messages.create(**ASK, stream=stream)
    assert caught.value.request_id or caught.value.response.headers["x-request-id"]


def test_a_wrong_key_and_a_missing_model_have_their_types() -> None:
    with client(ScriptedService()) as ours:
        with pytest.raises(anthropic.AuthenticationError):
            ours.with_options(api_key="wrong").messages.create(**ASK)
        with pytest.raises(anthropic.NotFoundError) as caught:
            ours.models.retrieve("none")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError, match="messages"):
            ours.messages.create(**{**ASK, "messages": []})


def test_a_late_failure_is_raised() -> None:
    seen = threading.Event()
    service = ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke")))
    with client(service) as ours:
        stream = ours.messages.create(**ASK, stream=True)
        next(stream)
        seen.set()
        with pytest.raises(anthropic.APIStatusError, match="broke"):
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
        ours.messages.create(**ASK, stream=True) as stream,
        pytest.raises(anthropic.APIStatusError, match="still loading"),
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
    monkeypatch.setattr("anthropic._base_client.time.sleep", waits.append)
    service = Recovering()
    with client(service, max_retries=1) as ours:
        assert ours.messages.create(**ASK).stop_reason == "end_turn"
    assert (waits, len(service.requests)) == ([7], 2)
