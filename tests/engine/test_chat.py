"""Conversations with a model that reasons and calls tools, written out and answered."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import ChatPrompt, Guide, SamplingParams, ToolChoice
from hotswap.errors import InvalidRequest
from tests.engine.serving import Answer, request, serving, spec_of

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]
Says = Callable[..., None]
CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{- m.content }}"
    "{%- for c in m.tool_calls or [] %}CALLS{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)
HERMES = "{% for tool in tools or [] %}{{ tool|tojson }}\n{% endfor %}" + CHATML.replace(
    "CALLS", "<tool_call>{{ c.function.arguments|tojson }}</tool_call>"
)
THINKING = HERMES.replace(
    "OPEN", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
PLAIN = CHATML.replace("CALLS", "").replace("OPEN", "")
HELLO = {"role": "user", "content": "hi"}
FUNCTION = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"days": {"type": "integer", "enum": [1, 2]}, "sunny": {"type": "boolean"}},
        "required": ["days"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": FUNCTION}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"days": 1}}\n</tool_call>'


def chat(*messages: dict[str, Any], **options: Any) -> ChatPrompt:
    return ChatPrompt(messages=messages or (HELLO,), **options)


def with_tools(**choice: Any) -> ChatPrompt:
    return chat(tools=(TOOL, CLOCK), tool_choice=ToolChoice(**choice))


def conversation(spec: ModelSpec, prompt: ChatPrompt, **options: Any) -> Any:
    from hotswap.engine.chat import write_out
    from hotswap.engine.front import Fronts

    return write_out(spec.id, Fronts().get(spec), prompt, options.get("guide"))


@pytest.fixture
def written(checkpoint: Checkpoint) -> Callable[..., str]:
    def write(template: str, prompt: ChatPrompt) -> str:
        text = conversation(spec_of(checkpoint(), chat_template=template), prompt).text
        assert isinstance(text, str)
        return text

    return write


def refused(checkpoint: Checkpoint, template: str, prompt: ChatPrompt) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        conversation(spec_of(checkpoint(), chat_template=template), prompt)
    return caught.value


# -- writing ---------------------------------------------------------------------------------


def test_tools_are_shown_to_templates_that_know_them(written: Callable[..., str]) -> None:
    assert '"name": "weather"' in written(HERMES, with_tools())
    assert "weather" not in written(PLAIN, with_tools())


def test_a_template_may_look_for_tools_in_the_system_message(written: Callable[..., str]) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}{% if 'tools' in m %}<|tool|>{{ m['tools'] }}"
        "<|/tool|>{% endif %}{% endfor %}<|tool_call|>"
    )
    text = written(template, with_tools())
    assert json.loads(text.split("<|tool|>")[1].split("<|/tool|>")[0])[0] == FUNCTION
    assert text.startswith("system<|tool|>")
    system = {"role": "system", "content": "be brief"}
    assert written(template, chat(system, HELLO, tools=(TOOL,))).count("system") == 1


def test_a_call_must_be_one_of_the_tools(checkpoint: Checkpoint) -> None:
    for prompt in (with_tools(name="rm"), chat(tool_choice=ToolChoice(required=True))):
        assert refused(checkpoint, HERMES, prompt).param == "tool_choice"


def test_a_template_without_tools_cannot_be_made_to_call_one(checkpoint: Checkpoint) -> None:
    for choice in ({"required": True}, {"name": "weather"}):
        error = refused(checkpoint, PLAIN, with_tools(**choice))
        assert error.param == "tool_choice"
        assert "knows no tools" in error.message


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("{{ a|tojson }}", '{"b": [1, 2]}'),
        ("{{ a }}", '{"b":[1,2]}'),
        ("{{ '<' + a + '>' }}", '<{"b":[1,2]}>'),
        ("{{ a ~ '' }}", '{"b":[1,2]}'),
        ("{{ a if a is string else a|tojson }}", '{"b": [1, 2]}'),
        ("{% for k, v in a|items %}{{ k }}{{ v }}{% endfor %}", "b[1, 2]"),
        ("{{ a is mapping }}", "True"),
    ],
)
def test_arguments_of_earlier_calls_suit_templates_of_both_kinds(
    written: Callable[..., str], way: str, expected: str
) -> None:
    called = {"type": "function", "function": {"name": "f", "arguments": '{"b":[1,2]}'}}
    template = f"{{% set a = messages[0].tool_calls[0].function.arguments %}}{way}"
    message = {"role": "assistant", "content": None, "tool_calls": [called]}
    assert written(template, chat(message)) == expected


def test_arguments_that_are_no_object_stay_text(written: Callable[..., str]) -> None:
    for text in ("[1]", "{oops", "[" * 100_000):
        called = {"function": {"name": "f", "arguments": text}}
        message = {"role": "assistant", "tool_calls": [called]}
        template = "{{ messages[0].tool_calls[0].function.arguments }}"
        assert written(template, chat(message)) == text


def test_earlier_reasoning_is_passed_on(written: Callable[..., str]) -> None:
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert "<think>Hm.</think>Yes." in written(HERMES, chat(HELLO, message))
    assert written("{{ messages[0].thinking }}", chat(message)) == "Hm."


@pytest.mark.parametrize(
    ("template", "effort", "expected"),
    [
        ("{{ reasoning_effort }}{{ enable_thinking }}", "low", "low"),
        ("{{ enable_thinking }}", "none", "False"),
        ("{{ enable_thinking }}", "high", "True"),
        ("{{ thinking }}", "low", "True"),
        ("{{ enable_thinking }}", None, ""),
        ("{{ messages[0].content }}", "low", "hi"),
    ],
)
def test_effort_is_told_in_the_templates_words(
    written: Callable[..., str], template: str, effort: str | None, expected: str
) -> None:
    assert written(template, chat(reasoning_effort=effort)) == expected


def test_template_arguments_of_the_request_go_before_its_effort(
    written: Callable[..., str],
) -> None:
    prompt = chat(reasoning_effort="high", template_kwargs={"enable_thinking": False})
    assert written("{{ enable_thinking }}", prompt) == "False"


def test_a_message_is_continued_where_it_ends(written: Callable[..., str]) -> None:
    begun = {"role": "assistant", "content": "It is "}
    text = written(
        HERMES.replace("{{- m.content }}", "{{- m.content|trim }}"),
        chat(HELLO, begun, continue_final_message=True),
    )
    assert text.endswith("assistantIt is ")


def test_what_a_template_leaves_out_cannot_be_continued(checkpoint: Checkpoint) -> None:
    error = refused(
        checkpoint,
        "{{ messages[0].content }}",
        chat(HELLO, {"role": "assistant", "content": "x"}, continue_final_message=True),
    )
    assert error.param == "messages"


def test_a_template_bomb_is_refused_and_names_the_messages(checkpoint: Checkpoint) -> None:
    loop = "{% for i in range(10**5) %}"
    error = refused(checkpoint, loop + loop + "{% endfor %}{% endfor %}", chat())
    assert error.param == "messages"
    assert "too many steps" in error.message


# -- what is listened to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt", "heard"),
    [
        (PLAIN, chat(), (True, False, False)),  # its vocabulary has no marks, its template has
        (PLAIN.replace("think", "thought"), with_tools(), None),
        (HERMES, with_tools(), (True, False, True)),
        (THINKING, with_tools(), (True, True, True)),
        (THINKING, chat(reasoning_effort="none"), None),
        (THINKING, chat(reasoning_effort="none", tools=(TOOL,)), (False, False, True)),
        (
            THINKING,
            chat(HELLO, {"role": "assistant", "content": "Well, "}, continue_final_message=True),
            None,
        ),
        (
            THINKING,
            chat(HELLO, {"role": "assistant", "content": "<think>Hm"}, continue_final_message=True),
            (True, True, False),
        ),
    ],
)
def test_an_answer_is_listened_to_for_what_may_come(
    checkpoint: Checkpoint, template: str, prompt: ChatPrompt, heard: tuple[bool, ...] | None
) -> None:
    hearing = conversation(spec_of(checkpoint(), chat_template=template), prompt).hearing
    found = hearing and (hearing.marks is not None, hearing.opened, hearing.read_calls is not None)
    assert found == heard


def test_completions_are_text_and_nothing_else(checkpoint: Checkpoint) -> None:
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    spec = spec_of(checkpoint(), chat_template=THINKING)
    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    for prompt in renderer.render(request("<think>", [1, 2])).prompts:
        assert prompt.hearing is None


# -- answers ---------------------------------------------------------------------------------


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> Says:
    """Makes models draw the tokens of a text instead of what they would."""
    from transformers import AutoTokenizer

    from hotswap.engine.sequence import Sequence

    own: Any = AutoTokenizer.from_pretrained(checkpoint())
    accept = Sequence.accept

    def script(text: str, *, ends: bool = True, tokenizer: Any = own) -> None:
        """Where it does not end, the model goes on by itself."""
        ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * ends

        def accept_scripted(self: Any, draw: Any) -> None:
            given = ids[self.answer_tokens : self.answer_tokens + 1]
            accept(self, dataclasses.replace(draw, token=given[0]) if given else draw)

        monkeypatch.setattr(Sequence, "accept", accept_scripted)

    return script


def reason(answer: Answer) -> str:
    assert answer.finished is not None
    return answer.finished.reason


@pytest.mark.anyio
async def test_a_model_reasons_speaks_and_calls(checkpoint: Checkpoint, says: Says) -> None:
    async with serving(checkpoint(), chat_template=THINKING) as served:
        says(f"Let me see.\n</think>\n\nI look.\n{CALL}\n{CALL}")
        answer = await served.ask(with_tools(), logprobs=0)
        assert (answer.reasoning, answer.text) == ("Let me see.", "I look.\n")
        assert answer.calls == [["weather", '{"days": 1}'], ["weather", '{"days": 1}']]
        assert reason(answer) == "tool_calls"
        assert answer.finished is not None
        assert 0 < answer.finished.reasoning_tokens < answer.finished.completion_tokens


@pytest.mark.anyio
async def test_only_the_first_call_is_taken_where_one_is_allowed(
    checkpoint: Checkpoint, says: Says
) -> None:
    async with serving(checkpoint(), chat_template=HERMES.replace("OPEN", "")) as served:
        says(f"{CALL}\n{CALL} and more")
        answer = await served.ask(with_tools(parallel=False))
        assert (answer.text, answer.calls) == ("", [["weather", '{"days": 1}']])
        assert reason(answer) == "tool_calls"


@pytest.mark.anyio
async def test_what_cut_an_answer_short_is_told_although_it_called(
    checkpoint: Checkpoint, says: Says
) -> None:
    async with serving(checkpoint(), chat_template=HERMES.replace("OPEN", "")) as served:
        says(f"{CALL} and more")
        answer = await served.ask(with_tools(), stop=(" more",))
        assert (answer.text, reason(answer)) == ("and", "stop")
        assert len(answer.calls) == 1
        answer = await served.ask(with_tools(), max_tokens=30)
        assert reason(answer) == "length"


@pytest.mark.anyio
async def test_without_tools_in_the_request_a_call_is_text(
    checkpoint: Checkpoint, says: Says
) -> None:
    async with serving(checkpoint(), chat_template=HERMES.replace("OPEN", "")) as served:
        says(CALL)
        answer = await served.ask(chat())
        assert (answer.text, answer.calls, reason(answer)) == (CALL, [], "stop")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("template", "reasoning"),
    [(HERMES.replace("think", "thought"), ""), (THINKING, "Hm.\n</think>\n")],
)
async def test_a_model_that_knows_nothing_calls_the_tool_that_it_must(
    checkpoint: Checkpoint, says: Says, template: str, reasoning: str
) -> None:
    """Its weights are random."""
    prompt = with_tools(name="weather")
    async with serving(checkpoint(), chat_template=template) as served:
        says(reasoning, ends=False)
        for seed in range(3):
            sampling = SamplingParams(temperature=1.0, seed=seed)
            answer = await served.ask(prompt, sampling=sampling)
            [[name, arguments]] = answer.calls
            assert (name, answer.text, reason(answer)) == ("weather", "", "tool_calls")
            assert answer.reasoning == reasoning[:3]
            given = json.loads(arguments)
            assert given.pop("days") in (1, 2)
            assert isinstance(given.pop("sunny", True), bool)
            assert not given


def with_unique(**choice: Any) -> ChatPrompt:
    """A tool that no call can be required of comes after one that is fine."""
    parameters = {
        "type": "object",
        "properties": {"cities": {"type": "array", "uniqueItems": True}},
        "required": ["cities"],
    }
    trip = {"type": "function", "function": {"name": "trip", "parameters": parameters}}
    return chat(tools=(TOOL, trip), tool_choice=ToolChoice(**choice))


@pytest.mark.parametrize("template", [HERMES, HERMES.replace("<tool_call>", "<function=")])
def test_a_tool_that_no_call_can_be_required_of_is_named_with_the_reason(
    checkpoint: Checkpoint, template: str
) -> None:
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    spec = spec_of(checkpoint(), chat_template=template.replace("{{ tool|tojson }}", ""))
    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    for choice in ({"required": True}, {"name": "trip"}):
        with pytest.raises(InvalidRequest) as caught:
            renderer.render(request(with_unique(**choice)))
        assert caught.value.param == "tools"
        assert caught.value.message == (
            "The schema of the tool 'trip' cannot be used: "
            'the keywords "uniqueItems" are not supported.'
        )
    assert renderer.render(request(with_unique())).prompts[0].grammar is None
    big = {"type": "object", "properties": {f"p{i}" * 20: {} for i in range(1500)}}
    tool = {"type": "function", "function": {"name": "big", "parameters": big}}
    prompt = chat(tools=(tool,), tool_choice=ToolChoice(required=True))
    with pytest.raises(InvalidRequest, match="grammar of the required tool call") as caught:
        renderer.render(request(prompt))
    assert "larger than" in caught.value.message


def test_the_tool_that_is_refused_is_looked_for_no_longer_than_one_may_take(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLMatcher

    from hotswap.engine import guide as module
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    clock, tried = [100.0], list[bool]()

    def slow(tokenizer: Any, source: str, **options: Any) -> Any:
        is_schema = "json_schema" in json.loads(source)["grammars"][1]
        tried.append(is_schema)
        clock[0] += 2 * is_schema
        return LLMatcher(tokenizer, source, **options)

    monkeypatch.setattr(module, "LLMatcher", slow)
    watch = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(module, "time", watch)
    [*_, bad] = with_unique().tools
    fine = [
        {"type": "function", "function": {**FUNCTION, "name": f"weather_{i}"}} for i in range(10)
    ]
    spec = spec_of(checkpoint(), chat_template=HERMES)
    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    for tools, param in (([*fine[:2], bad], "tools"), ([*fine, bad], "tool_choice")):
        tried.clear()
        prompt = chat(tools=tuple(tools), tool_choice=ToolChoice(required=True))
        with pytest.raises(InvalidRequest, match="uniqueItems") as caught:
            renderer.render(request(prompt))
        assert (caught.value.param, tried) == (param, [False, True, True, True])


def test_no_tool_is_looked_for_where_compiling_takes_too_long(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import guide as module
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    release, tried = threading.Event(), list[str]()

    def slow(_: Any, source: str, **__: Any) -> Any:
        tried.append(source)
        release.wait(30)
        raise ValueError("nobody waits for it")

    monkeypatch.setattr(module, "LLMatcher", slow)
    monkeypatch.setattr(module, "_COMPILE_TIME_S", 0.05)
    spec = spec_of(checkpoint(), chat_template=HERMES)
    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    try:
        with pytest.raises(InvalidRequest, match="takes longer") as caught:
            renderer.render(request(with_unique(required=True)))
    finally:
        release.set()
    assert (caught.value.param, len(tried)) == ("tool_choice", 1)


@pytest.mark.anyio
async def test_a_call_that_max_tokens_cuts_is_never_text(
    checkpoint: Checkpoint, says: Says
) -> None:
    from transformers import AutoTokenizer

    template = HERMES.replace("OPEN", "")
    async with serving(checkpoint(), chat_template=template) as served:
        says(f"I look. {CALL}")
        own: Any = AutoTokenizer.from_pretrained(checkpoint())
        ids = own.encode(f"I look. {CALL}", add_special_tokens=False)
        for tokens in range(1, 100):
            answer = await served.ask(with_tools(), max_tokens=tokens)
            assert answer.text == own.decode(ids[:tokens]).partition("<")[0]
            if reason(answer) != "length":
                break
        assert answer.calls == [["weather", '{"days": 1}']]


@pytest.mark.anyio
async def test_a_stop_string_is_the_reason_also_where_max_tokens_showed_that_it_is_in_no_call(
    checkpoint: Checkpoint, says: Says
) -> None:
    from transformers import AutoTokenizer

    own: Any = AutoTokenizer.from_pretrained(checkpoint())
    said = '{"id": 7, "type": 3, "arguments": {"a'
    template = PLAIN.replace("think", "thought") + "{% if tools %}{% endif %}"
    async with serving(checkpoint(), chat_template=template) as served:
        says(said, ends=False)
        count = len(own.encode(said, add_special_tokens=False))
        answer = await served.ask(with_tools(), max_tokens=count, stop=(": 3",))
        assert (answer.text, reason(answer)) == ('{"id": 7, "type"', "stop")
        answer = await served.ask(with_tools(), max_tokens=count)
        assert (answer.text, reason(answer)) == (said, "length")


@pytest.mark.anyio
async def test_no_stop_string_ends_a_call_that_is_required(
    checkpoint: Checkpoint, says: Says
) -> None:
    async with serving(checkpoint(), chat_template=HERMES.replace("think", "thought")) as served:
        says("", ends=False)
        stop = ("\n", '"', "{", "days", "1", "2")
        answer = await served.ask(with_tools(name="weather"), stop=stop)
        [[_, arguments]] = answer.calls
        assert json.loads(arguments)["days"] in (1, 2)
        assert reason(answer) == "tool_calls"


SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
AS_JSON = Guide("json_schema", json.dumps(SCHEMA), "response_format")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (HERMES.replace("think", "thought"), "<"),
        (HERMES.replace("think", "thought").replace("<tool_call>", "<function="), "<"),
        (PLAIN.replace("think", "thought") + "{% if tools %}[TOOL_CALLS]{% endif %}", "["),
        (THINKING.replace("enable_thinking is false", "true"), "<"),
    ],
)
async def test_an_answer_that_may_be_a_call_is_that_or_what_the_guide_asks_for(
    checkpoint: Checkpoint, template: str, wanted: str
) -> None:
    """The model's weights are random."""
    from transformers import AutoTokenizer

    own: Any = AutoTokenizer.from_pretrained(checkpoint())
    begins = {token: 100.0 for text, token in own.get_vocab().items() if text == wanted}
    calling = SamplingParams(temperature=0.0, logit_bias=begins)
    speaking = SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(begins, -100.0))
    prompt = chat(tools=(TOOL,), tool_choice=ToolChoice(parallel=False))
    async with serving(checkpoint(), chat_template=template) as served:
        answer = await served.ask(prompt, guide=AS_JSON, sampling=speaking)
        assert json.loads(answer.text)["n"] in (1, 2)
        assert (answer.calls, reason(answer)) == ([], "stop")
        answer = await served.ask(prompt, guide=AS_JSON, sampling=calling)
        [[name, arguments]] = answer.calls
        assert (name, answer.text, reason(answer)) == ("weather", "", "tool_calls")
        assert type(json.loads(arguments)["days"]) is int


@pytest.mark.anyio
@pytest.mark.parametrize("schema", [SCHEMA, {"type": "object"}])
async def test_a_bare_object_that_calls_no_tool_is_what_the_guide_asks_for(
    checkpoint: Checkpoint, says: Says, schema: dict[str, Any]
) -> None:
    guide = Guide("json_schema", json.dumps(schema), "response_format")
    template = PLAIN.replace("think", "thought") + "{% if tools %}{% endif %}"
    async with serving(checkpoint(), chat_template=template) as served:
        says('{"n": 2}')
        answer = await served.ask(with_tools(), guide=guide)
        assert (answer.text, answer.calls) == ('{"n": 2}', [])
        says('{"name": "weather", "arguments": {"days": 3}}')
        answer = await served.ask(with_tools(), guide=guide)
        assert (answer.text, answer.calls) == ("", [["weather", '{"days": 3}']])


def test_what_no_schema_can_enforce_is_not_asked_of_a_call_that_may_be(
    checkpoint: Checkpoint,
) -> None:
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    spec = spec_of(checkpoint(), chat_template=HERMES.replace("{{ tool|tojson }}", ""))
    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    rendered = renderer.render(request(with_unique(), guide=AS_JSON))
    assert rendered.prompts[0].grammar is not None


@pytest.mark.anyio
async def test_marks_that_are_special_tokens_are_heard_and_others_not_seen(
    checkpoint: Checkpoint, says: Says, tmp_path: Path
) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    path = Path(shutil.copytree(checkpoint(), tmp_path / "model"))
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    added = ("[TOOL_CALLS]", "[ARGS]", "[OTHER]")
    tokenizer.add_tokens([AddedToken(text, special=True) for text in added])
    tokenizer.save_pretrained(path)
    template = PLAIN.replace("think", "thought") + "{% if tools %}{% endif %}"
    async with serving(path, chat_template=template) as served:
        says('a[OTHER][TOOL_CALLS]clock[ARGS]{"b": 1}', tokenizer=tokenizer)
        answer = await served.ask(with_tools())
        assert (answer.text, answer.calls) == ("a", [["clock", '{"b": 1}']])
        assert (await served.ask(chat())).text == 'aclock{"b": 1}'


@pytest.mark.anyio
async def test_the_status_says_what_a_model_can_do(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint(), chat_template=THINKING) as served:
        details = served.engine.stats().details
        assert details["chat"] == {"tools": True, "thinking": True, "family": "hermes"}
