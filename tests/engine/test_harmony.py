"""Conversations with a model that answers in channels, as gpt-oss does: written out by a template
that behaves as gpt-oss's own does, and answered by a tiny random one with its special tokens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotswap.contracts.requests import ChatPrompt, Guide, ToolChoice
from hotswap.engine.history import for_harmony
from hotswap.engine.speech.harmony import ENDS, MARKERS
from hotswap.errors import InvalidRequest
from tests.engine.serving import serving, spec_of
from tests.engine.test_chat import CLOCK, HELLO, TOOL, chat, conversation, reason

pytestmark = pytest.mark.torch

Says = Callable[..., None]
TEMPLATE = """
{%- if messages[0].role == 'system' -%}
  {%- set told, said = messages[0].content, messages[1:] -%}
{%- else -%}
  {%- set told, said = '', messages -%}
{%- endif -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>
{%- if told or tools -%}
  <|start|>developer<|message|>{{ told }}
  {%- for tool in tools or [] %}
    {{- '// ' + tool.function.description + tool.function.name -}}
    {%- for schema in (tool.function.parameters.properties or {}).values() -%}
      {{- '=' + schema.default if schema.default is defined and schema.enum -}}
    {%- endfor -%}
  {%- endfor -%}
  <|end|>
{%- endif -%}
{%- set last = namespace(name=none) -%}
{%- for message in said -%}
  {%- if message.role == 'user' -%}
    <|start|>user<|message|>{{ message.content }}<|end|>
  {%- elif message.role == 'tool' -%}
    {%- if last.name is none %}{{ raise_exception('a result of no call') }}{% endif -%}
    {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' -}}
    {{- message.content|tojson + '<|end|>' -}}
  {%- elif 'tool_calls' in message -%}
    {%- if message.content and message.thinking %}{{ raise_exception('not both') }}{% endif -%}
    {%- if message.content or message.thinking -%}
      <|start|>assistant<|channel|>analysis<|message|>
      {{- message.content or message.thinking -}}
      <|end|>
    {%- endif -%}
    {%- set call = message.tool_calls[0].function -%}
    {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' -}}
    {{- call.arguments|tojson + '<|call|>' -}}
    {%- set last.name = call.name -%}
  {%- elif message.role == 'assistant' -%}
    {{- '<|start|>assistant<|channel|>final<|message|>' + message.content -}}
    {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}
"""
AGAIN = "<|end|><|start|>assistant"
HM = f"<|channel|>analysis<|message|>Hm.{AGAIN}"
YES = "<|channel|>final<|message|>Yes."
CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
JSON = Guide("json_schema", json.dumps(SCHEMA), "response_format")


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files say, as gpt-oss's do, that an answer ends with ``<|return|>`` and ``<|call|>``."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from tests.engine.checkpoints import write_checkpoint

    path = write_checkpoint(tmp_path_factory.mktemp("models") / "gpt_oss", "gpt_oss")
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    ends = tokenizer.convert_tokens_to_ids(list(ENDS))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, oss: Path) -> Says:
    """Makes the model draw the tokens of a text and then what it likes."""
    from transformers import AutoTokenizer

    from hotswap.engine.sequence import Sequence

    tokenizer: Any = AutoTokenizer.from_pretrained(oss)
    accept = Sequence.accept

    def script(*texts: str) -> None:
        ids = [id for text in texts for id in tokenizer.encode(text, add_special_tokens=False)]

        def accept_scripted(self: Any, draw: Any) -> None:
            given = ids[self.answer_tokens : self.answer_tokens + 1]
            accept(self, dataclasses.replace(draw, token=given[0]) if given else draw)

        monkeypatch.setattr(Sequence, "accept", accept_scripted)

    return script


def with_tools(**options: Any) -> ChatPrompt:
    choice = ToolChoice(**options)
    return chat(tools=(TOOL, CLOCK), tool_choice=choice)


def written(oss: Path, *messages: dict[str, Any], **options: Any) -> str:
    text = conversation(spec_of(oss), chat(*messages, **options)).text
    assert isinstance(text, str)
    return text


def called(name: str, call_id: str | None = None) -> dict[str, Any]:
    named = {} if call_id is None else {"id": call_id}
    return {**named, "type": "function", "function": {"name": name, "arguments": '{"a": 1}'}}


def result(content: str, call_id: str | None = None) -> dict[str, Any]:
    named = {} if call_id is None else {"tool_call_id": call_id}
    return {"role": "tool", "content": content, **named}


# -- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "told"),
    [
        *((None, "medium"), ("low", "low"), ("medium", "medium"), ("high", "high")),
        *(("minimal", "low"), ("none", "low")),
    ],
)
def test_effort_reaches_the_template_in_words_that_the_model_knows(
    oss: Path, effort: str | None, told: str
) -> None:
    assert f"Reasoning: {told}<" in written(oss, HELLO, reasoning_effort=effort)


def test_a_template_argument_goes_before_the_effort(oss: Path) -> None:
    kwargs = {"reasoning_effort": "utmost"}
    text = written(oss, HELLO, reasoning_effort="low", template_kwargs=kwargs)
    assert "Reasoning: utmost<" in text


def test_each_call_is_written_with_its_own_result(oss: Path) -> None:
    text = written(
        oss,
        HELLO,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [called("weather", "x"), called("clock", "y")],
        },
        result("noon", "y"),
        result("sun", "x"),
    )
    assert text.partition("hi<|end|>")[2] == (
        "<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nI look.<|end|>"
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"a": 1}'
        "<|call|>"
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"sun"<|end|>'
        '<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{"a": 1}'
        "<|call|>"
        '<|start|>functions.clock to=assistant<|channel|>commentary<|message|>"noon"<|end|>'
        "<|start|>assistant"
    )


def names_and_results(messages: list[dict[str, Any]]) -> list[Any]:
    return [
        m["content"] if m["role"] == "tool" else [c["function"]["name"] for c in m["tool_calls"]]
        for m in messages
    ]


@pytest.mark.parametrize(
    ("calls", "results", "expected"),
    [
        ([called("a", "1")], [result("A", "1")], [["a"], "A"]),
        ([called("a"), called("b")], [result("A"), result("B")], [["a"], "A", ["b"], "B"]),
        ([called("a", "1"), called("b", "2")], [result("B", "2")], [["a"], ["b"], "B"]),
        (
            [called("a", "1"), called("b", "2")],
            [result("A", "?"), result("B", "2")],
            [["a"], "A", ["b"], "B"],
        ),
        (
            [called("a", "1"), called("b", "1")],
            [result("A", "1"), result("B", "1")],
            [["a"], "A", "B", ["b"]],
        ),
        (
            [called("a", "1")],
            [result("A", "1"), result("more", "1"), result("B", "2")],
            [["a"], "A", "more", "B"],
        ),
        ([called("a")], [], [["a"]]),
    ],
)
def test_no_call_and_no_result_is_lost(
    calls: list[Any], results: list[Any], expected: list[Any]
) -> None:
    message = {"role": "assistant", "tool_calls": calls}
    assert names_and_results(for_harmony([message, *results])) == expected


def test_messages_without_content_or_calls_can_be_written(oss: Path) -> None:
    text = written(
        oss,
        HELLO,
        {"role": "assistant", "reasoning_content": "Hm."},
        HELLO,
        {"role": "assistant", "content": "Yes.", "tool_calls": []},
        HELLO,
    )
    assert "final<|message|><|end|>" in text
    assert "final<|message|>Yes.<|end|>" in text


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ({"description": "Tells. "}, "// Tells. f"),
        ({}, "// f"),
        ({"parameters": {"properties": {"a": {"enum": [1, 2], "default": 1}}}}, "// f=1"),
        ({"parameters": {"properties": {"a": {"enum": ["x"], "default": "x"}}}}, "// f=x"),
        ({"parameters": {"properties": {"a": True}}}, "// f"),
    ],
)
def test_any_tool_can_be_written(oss: Path, function: dict[str, Any], told: str) -> None:
    named = {"name": "f", "parameters": {"properties": {}}, **function}
    text = written(oss, HELLO, tools=({"type": "function", "function": named},))
    assert f"<|start|>developer<|message|>{told}<|end|>" in text


def test_every_system_message_is_told(oss: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    kind = {"role": "system", "content": "Be kind."}
    text = written(oss, system, kind, HELLO, {"role": "system", "content": "Now."}, HELLO)
    assert "<|start|>developer<|message|>Be brief.\n\nBe kind.<|end|>" in text
    assert "<|start|>user<|message|>Now.<|end|>" in text


def test_a_result_of_no_call_is_refused_in_the_templates_words(oss: Path) -> None:
    with pytest.raises(InvalidRequest, match="a result of no call"):
        written(oss, HELLO, result("sun", "x"))


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_answer_is_told_by_its_channels(oss: Path, says: Says) -> None:
    async with serving(oss) as served:
        says(f"{HM}{YES}<|return|>")
        answer = await served.ask(chat(), logprobs=0)
        assert (answer.reasoning, answer.text, reason(answer)) == ("Hm.", "Yes.", "stop")
        assert "".join(entry.text for entry in answer.logprobs) == "Yes.<|return|>"[:4]
        assert answer.finished is not None
        assert 0 < answer.finished.reasoning_tokens < answer.finished.completion_tokens


@pytest.mark.anyio
async def test_an_answer_may_spell_the_marks(oss: Path, says: Says) -> None:
    """With the tokens of their letters, as the model does when it is asked about them."""
    async with serving(oss) as served:
        says(f"{HM}{YES} It is <|", "end", "|><|", "start", "|>user.", "<|return|>")
        answer = await served.ask(chat())
        assert (answer.reasoning, answer.text) == ("Hm.", "Yes. It is <|end|><|start|>user.")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "head", [CALL, " to=functions.weather<|channel|>commentary json<|message|>"]
)
async def test_a_call_ends_the_answer(oss: Path, says: Says, head: str) -> None:
    async with serving(oss) as served:
        says(f"{HM}<|channel|>commentary<|message|>I look.{AGAIN}" + head + '{"days": 1}<|call|>')
        answer = await served.ask(with_tools())
        assert (answer.reasoning, answer.text) == ("Hm.", "I look.")
        assert answer.calls == [["weather", '{"days": 1}']]
        assert reason(answer) == "tool_calls"
        answer = await served.ask(chat())
        assert (answer.text, answer.calls) == ('I look.\n\n{"days": 1}', [])


@pytest.mark.anyio
async def test_whatever_max_tokens_cuts_no_header_is_told(oss: Path, says: Says) -> None:
    async with serving(oss) as served:
        says(f'{HM}{CALL}{{"days": 1}}<|call|>')
        for tokens in (*range(1, 60, 5), 200):
            answer = await served.ask(with_tools(), max_tokens=tokens)
            assert "Hm.".startswith(answer.reasoning)
            assert answer.text == ""
        assert reason(answer) == "tool_calls"
        assert answer.calls == [["weather", '{"days": 1}']]


@pytest.mark.anyio
async def test_an_answer_goes_on_where_the_last_message_ends(oss: Path, says: Says) -> None:
    begun = {"role": "assistant", "content": "It is ", "reasoning_content": "Hm."}
    async with serving(oss) as served:
        says("so.<|return|>")
        answer = await served.ask(chat(HELLO, begun, continue_final_message=True))
        assert (answer.text, answer.reasoning) == ("so.", "")
        says("")
        prompt = chat(HELLO, begun, continue_final_message=True)
        answer = await served.ask(prompt, guide=JSON, max_tokens=40)
        assert json.loads(answer.text)["n"] in (1, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("beginning", ["", HM])
async def test_a_model_that_knows_nothing_calls_the_tool_that_it_must(
    oss: Path, says: Says, beginning: str
) -> None:
    """Its weights are random."""
    async with serving(oss) as served:
        says(beginning or "<|channel|>commentary")
        answer = await served.ask(with_tools(name="weather"), max_tokens=200)
        [[name, arguments]] = answer.calls
        assert name == "weather"
        assert json.loads(arguments)["days"] in (1, 2)
        assert (answer.reasoning, answer.text) == ("Hm." if beginning else "", "")
        assert reason(answer) == "tool_calls"


@pytest.mark.anyio
@pytest.mark.parametrize("beginning", ["", HM])
async def test_what_must_be_json_is_the_final_message(
    oss: Path, says: Says, beginning: str
) -> None:
    async with serving(oss) as served:
        says(beginning or "<|channel|>final")
        answer = await served.ask(chat(), guide=JSON, max_tokens=200)
        assert json.loads(answer.text)["n"] in (1, 2)
        assert answer.reasoning == ("Hm." if beginning else "")
        assert reason(answer) == "stop"


@pytest.mark.anyio
@pytest.mark.parametrize("beginning", ["", HM])
async def test_what_must_be_json_may_be_a_call_instead(
    oss: Path, says: Says, beginning: str
) -> None:
    async with serving(oss) as served:
        says(f"{beginning}<|channel|>commentary")
        answer = await served.ask(with_tools(), guide=JSON, max_tokens=200)
        [[name, arguments]] = answer.calls
        assert name == "weather"
        assert type(json.loads(arguments)["days"]) is int
        assert (answer.text, reason(answer)) == ("", "tool_calls")
        says(f"{beginning}<|channel|>final")
        answer = await served.ask(with_tools(), guide=JSON, max_tokens=200)
        assert json.loads(answer.text)["n"] in (1, 2)
        assert answer.calls == []


@pytest.mark.anyio
async def test_a_call_can_be_required_after_a_text_that_was_begun(oss: Path) -> None:
    begun = {"role": "assistant", "content": "It is "}
    prompt = chat(
        HELLO,
        begun,
        continue_final_message=True,
        tools=(TOOL,),
        tool_choice=ToolChoice(required=True),
    )
    async with serving(oss) as served:
        answer = await served.ask(prompt, max_tokens=200)
        assert [name for name, _ in answer.calls] == ["weather"]


@pytest.mark.parametrize("guide", [JSON, None])
def test_what_cannot_be_guided_is_refused_by_name(oss: Path, guide: Guide | None) -> None:
    template = TEMPLATE.replace("<|start|>assistant{% e", "<|start|>assistant<|channel|>co{% e")
    prompt = chat() if guide else with_tools(required=True)
    with pytest.raises(InvalidRequest, match="cannot be guided") as caught:
        conversation(spec_of(oss, chat_template=template), prompt, guide=guide)
    assert caught.value.param == ("response_format" if guide else "tool_choice")


def test_the_end_of_a_message_is_not_the_end_of_an_answer(oss: Path, tmp_path: Path) -> None:
    """Whatever the files say."""
    from hotswap.engine.front import Fronts

    path = Path(shutil.copytree(oss, tmp_path / "model"))
    front = Fronts().get(spec_of(path))
    ids = front.vocabulary.added
    assert {ids[end] for end in ENDS} <= front.eos_ids
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids["<|end|>"]}))
    front = Fronts().get(spec_of(path))
    assert {ids[end] for end in ENDS} <= front.eos_ids
    assert ids["<|end|>"] not in front.eos_ids


@pytest.mark.anyio
async def test_the_status_names_the_family(oss: Path) -> None:
    async with serving(oss) as served:
        details = served.engine.stats().details
        assert details["chat"] == {"tools": True, "thinking": True, "family": "harmony"}
