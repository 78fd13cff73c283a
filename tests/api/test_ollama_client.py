"""The app behind a real Hypercorn on loopback, asked by Ollama's official client."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import anyio
import ollama
import pytest

from hotswap.contracts.answers import (
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import ChatPrompt
from hotswap.errors import (
    ContextLengthExceeded,
    EngineFailed,
    HotswapError,
    ModelNotFound,
    NotPermitted,
    Overloaded,
    ShuttingDown,
)
from tests.api.ollama_server import client, official
from tests.api.stage import HELLO, SUMS, ScriptedService, Step, service_with
from tests.api.test_loopback import served

MODEL = "hotswap/sums:latest"
USER = [{"role": "user", "content": "hi"}]
CALLS: Sequence[Step] = (
    (ReasoningDelta(index=0, text="Hm."),),
    (
        ToolCallDelta(index=0, call=0, id="c0", name="add", arguments='{"a": 1, '),
        ToolCallDelta(index=0, call=0, arguments='"b": [2]}'),
    ),
    (Finished(index=0, reason="tool_calls", completion_tokens=5),),
)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one
        b: other
    """
    return a + b


def test_a_chat() -> None:
    with client(ScriptedService()) as ours:
        answer = ours.chat(MODEL, USER)
    assert answer.message.content == "Hello"
    assert (answer.model, answer.done, answer.done_reason) == ("hotswap/sums", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 2)
    assert answer.total_duration is not None
    assert answer.total_duration > 0


def test_a_streamed_chat() -> None:
    with client(ScriptedService()) as ours:
        *deltas, last = ours.chat(MODEL, USER, stream=True)
    assert "".join(delta.message.content or "" for delta in deltas) == "Hello"
    assert (last.done, last.done_reason, last.eval_count) == (True, "stop", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_generated_text(stream: bool) -> None:
    service = ScriptedService()
    with client(service) as ours:
        if stream:
            answers = list(ours.generate(MODEL, "x", system="s", stream=True))
        else:
            answers = [ours.generate(MODEL, "x", system="s")]
    assert "".join(answer.response or "" for answer in answers) == "Hello"
    assert answers[-1].done_reason == "stop"
    (prompt,) = service.requests[0].prompts
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["system", "user"]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_and_thoughts(stream: bool) -> None:
    service = ScriptedService(steps=CALLS)
    with client(service) as ours:
        if stream:
            answers = list(ours.chat(MODEL, USER, tools=[add], think="high", stream=True))
        else:
            answers = [ours.chat(MODEL, USER, tools=[add], think="high")]
        (call,) = [call for answer in answers for call in answer.message.tool_calls or ()]
        assert (call.function.name, call.function.arguments) == ("add", {"a": 1, "b": [2]})
        assert "".join(answer.message.thinking or "" for answer in answers) == "Hm."
        said = {"role": "tool", "content": "3", "tool_name": "add"}
        whole = next(answer.message for answer in answers if answer.message.tool_calls)
        list(ours.chat(MODEL, [*USER, whole, said], stream=True))
    first, second = (request.prompts[0] for request in service.requests)
    assert isinstance(first, ChatPrompt)
    assert first.tools[0]["function"]["name"] == "add"
    assert first.reasoning_effort == "high"
    assert isinstance(second, ChatPrompt)
    _, called, answered = second.messages
    assert called["tool_calls"][0]["function"]["arguments"] == '{"a":1,"b":[2]}'
    assert answered["tool_call_id"] == called["tool_calls"][0]["id"]


def test_options_a_format_and_logprobs() -> None:
    token = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Hi", b"Hi", -0.5),))
    events = (
        TextDelta(index=0, text="Hi", logprobs=(token,)),
        Finished(index=0, reason="length", completion_tokens=1),
    )
    service = ScriptedService(steps=(events,))
    with client(service) as ours:
        answer = ours.chat(
            MODEL,
            USER,
            format={"type": "object"},
            options=ollama.Options(temperature=0.5, num_ctx=64, stop=["x"], num_predict=1),
            logprobs=True,
            top_logprobs=1,
            keep_alive="5m",
        )
    assert answer.done_reason == "length"
    assert answer.logprobs is not None
    assert answer.logprobs[0].logprob == -0.5
    (request,) = service.requests
    assert (request.sampling.temperature, request.max_tokens, request.stop) == (0.5, 1, ("x",))
    assert request.guide is not None
    assert request.guide.source == '{"type":"object"}'
    assert (request.keep_alive_s, request.logprobs) == (300, 1)


def test_models_are_listed_shown_and_seen_running() -> None:
    spec = ModelSpec(id=SUMS.id, path=None, facts=SUMS.facts)
    with client(service_with(resident=spec, expires_in_s=60.0)) as ours:
        listed = ours.list().models
        shown = ours.show(MODEL)
        (running,) = ours.ps().models
    assert [model.model for model in listed] == ["hotswap/sums", "hotswap/tales"]
    assert listed[0].details is not None
    assert listed[0].details.parameter_size == "600.0M"
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert (shown.modelinfo or {})["qwen3.context_length"] == 512
    assert running.name == "hotswap/sums"
    assert running.expires_at is not None
    assert running.expires_at > datetime.now(UTC)


def test_a_model_is_loaded_and_unloaded() -> None:
    service = ScriptedService()
    with client(service) as ours:
        assert ours.generate(MODEL).done_reason == "load"
        assert [part.done_reason for part in ours.chat(MODEL, stream=True)] == ["load"]
        assert ours.generate(MODEL, keep_alive=0).done_reason == "unload"
        assert ours.chat(MODEL, keep_alive="0").done_reason == "unload"
    assert [order[0] for order in service.orders] == ["warm", "warm", "let_go", "let_go"]


def test_texts_are_embedded() -> None:
    with client(ScriptedService()) as ours:
        answer = ours.embed(MODEL, ["a", "b"])
        assert [list(vector) for vector in answer.embeddings] == [[0, 0.5, -1], [1, 0.5, -1]]
        assert list(ours.embeddings(MODEL, "a").embedding) == [0, 0.5, -1]


def test_a_model_is_pulled() -> None:
    with client(ScriptedService()) as ours:
        assert ours.pull(MODEL).status == "success"
        told = list(ours.pull(MODEL, stream=True))
    assert [one.completed for one in told if one.total] == [0, 500, 1000]
    assert told[-1].status == "success"


REFUSALS: list[tuple[HotswapError, int]] = [
    (ContextLengthExceeded("no"), 400),
    (NotPermitted("no"), 403),
    (ModelNotFound("no"), 404),
    (Overloaded("no"), 429),
    (ShuttingDown("no"), 503),
]


@pytest.mark.parametrize(("refusal", "status"), REFUSALS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own(refusal: HotswapError, status: int, stream: bool) -> None:
    with (
        client(ScriptedService(refusal=refusal)) as ours,
        pytest.raises(ollama.ResponseError) as raised,
    ):
        list(ours.chat("x", USER, stream=stream))  # type: ignore[call-overload]
    assert raised.value.status_code == status
    assert raised.value.error == ("model 'x' not found" if status == 404 else "no")


def test_a_late_failure_is_an_error_too() -> None:
    seen = threading.Event()
    with client(ScriptedService(steps=(HELLO[0], seen, EngineFailed("broke")))) as ours:
        answers = ours.chat(MODEL, USER, stream=True)
        next(answers)
        seen.set()
        with pytest.raises(ollama.ResponseError, match="broke"):
            list(answers)


@pytest.mark.parametrize("change", ["delete", "create", "copy", "push"])
def test_models_are_not_changed(change: str) -> None:
    arguments = ("a", "b") if change == "copy" else ("a",)
    with client(ScriptedService()) as ours, pytest.raises(ollama.ResponseError) as raised:
        getattr(ours, change)(*arguments)
    assert raised.value.status_code == 403


def test_a_key_is_needed_where_one_is_set() -> None:
    with served(ScriptedService(), api_keys=("key",)) as port:
        with official(port) as stranger, pytest.raises(ollama.ResponseError) as raised:
            stranger.list()
        assert raised.value.status_code == 401
        with official(port, headers={"Authorization": "Bearer key"}) as known:
            assert len(known.list().models) == 2


def test_the_async_client() -> None:
    async def main(port: int) -> None:
        async with ollama.AsyncClient(host=f"http://127.0.0.1:{port}", timeout=30) as ours:
            texts: list[Any] = [
                part.message.content async for part in await ours.chat(MODEL, USER, stream=True)
            ]
            assert "".join(texts) == "Hello"
            assert (await ours.generate(MODEL, "x")).response == "Hello"
            assert len((await ours.list()).models) == 2

    with served(ScriptedService()) as port:
        anyio.run(main, port)
