"""A conversation as one model sees it: written out by its template, with what the answer is to be
listened to for and, where a call of a tool is insisted on, what it must be."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hotswap.contracts.requests import ChatPrompt, Guide
from hotswap.engine.front import Front
from hotswap.engine.grammar import Preamble, WrittenPreamble
from hotswap.engine.history import for_harmony, tools_for_harmony
from hotswap.engine.speech import harmony
from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.families import THINKING_SWITCHES, Speech
from hotswap.engine.speech.listener import Hearing
from hotswap.engine.speech.thinking import Marks
from hotswap.engine.speech.tools import Tools, tools_of
from hotswap.engine.template import ChatTemplate
from hotswap.errors import InvalidRequest

_log = logging.getLogger(__name__)

_OUR_TEMPLATE_ARGUMENTS = frozenset(
    {"conversation", "messages", "tools", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "return_dict", "return_tensors", "padding"}
    | {"truncation", "max_length", "tokenizer_kwargs", "return_assistant_tokens_mask"}
)
_TELLING = ("jinja2.exceptions", "hotswap.engine.template_meter")
"""Where errors come from that say what is wrong in words for whoever wrote the messages."""


@dataclass(frozen=True, slots=True)
class Conversation:
    text: str
    hearing: Hearing | None
    """None: the answer is text and nothing else."""
    guide: Guide | None
    """What the answer must be, after its reasoning."""
    preamble: Preamble | WrittenPreamble | None
    """What may come before that which the guide is for."""
    calls: str | None = None
    """A grammar of calls that may stand where that would which the guide is for."""


def write_out(model: str, front: Front, prompt: ChatPrompt, guide: Guide | None) -> Conversation:
    """
    Args:
        guide: what the request wants of answers that are text.

    Raises:
        InvalidRequest
    """
    template = front.template
    if template is None:
        raise InvalidRequest(_why_not(model, front), param="model")
    tools = _tools(front.speech, prompt)
    text = _text(model, front, template, prompt)
    demanded = _demanded(front.speech, prompt, tools)
    calls = None
    if guide and not demanded:
        calls = _written(front.speech, prompt, tools.loose(), among_json=True)
    guide = demanded or guide
    hearing = _hearing(front.speech, prompt, text, tools, demanded=demanded is not None)
    preamble = _preamble(front.speech, text, hearing, guide) if guide else None
    return Conversation(text, hearing, guide, preamble, calls)


def _why_not(model: str, front: Front) -> str:
    fault = f"{model!r} has no chat template"
    if front.template_fault is not None:
        fault = f"The chat template of {model!r} cannot be read ({front.template_fault})"
    return (
        f"{fault}, so it cannot answer messages; use /v1/completions, or give the model another "
        "template: with --chat-template, or as `chat_template` in `models:` of the config file."
    )


# -- tools -----------------------------------------------------------------------------------


def _tools(speech: Speech, prompt: ChatPrompt) -> Tools:
    """Those that may be called; none where the template would not tell the model of them."""
    tools, choice = tools_of(prompt.tools), prompt.tool_choice
    insists = choice.required or choice.name is not None
    if choice.name is not None and choice.name not in tools.names:
        raise InvalidRequest(f"There is no tool {choice.name[:100]!r}.", param="tool_choice")
    if insists and not tools:
        raise InvalidRequest("There are no tools to choose from.", param="tool_choice")
    if speech.family is None:
        if insists:
            raise InvalidRequest(
                "The chat template of this model knows no tools, so it cannot be made to call one.",
                param="tool_choice",
            )
        return Tools()
    return tools if choice.name is None else tools.only(choice.name)


def _demanded(speech: Speech, prompt: ChatPrompt, tools: Tools) -> Guide | None:
    choice = prompt.tool_choice
    if not (choice.required or choice.name is not None):
        return None
    source = _written(speech, prompt, tools)
    if source is None:
        return None
    return Guide("grammar", source, "tool_choice", "grammar of the required tool call")


def _written(
    speech: Speech, prompt: ChatPrompt, tools: Tools, *, among_json: bool = False
) -> str | None:
    """A grammar of the calls that one answer may be; None: nothing can be called."""
    if speech.family is None or not tools:
        return None
    choice = prompt.tool_choice
    several = choice.parallel and choice.name is None
    grammar = CallGrammar(speech.ids, several=several, among_json=among_json)
    return grammar.source(speech.family.write(grammar, tools))


def schema_guides(tools: Tools) -> Iterator[Guide]:
    """What the arguments of each tool must be, to find the one that no call can be required of."""
    for tool in tools:
        schema = json.dumps(_plain(tool.parameters), ensure_ascii=False)
        yield Guide("json_schema", schema, "tools", f"schema of the tool {tool.name!r}")


# -- listening -------------------------------------------------------------------------------


def _hearing(
    speech: Speech, prompt: ChatPrompt, text: str, tools: Tools, *, demanded: bool
) -> Hearing | None:
    if speech.in_channels:
        guard = harmony.GUARD if speech.special.keys() >= set(harmony.MARKERS) else ""
        return Hearing(
            read_calls=partial(harmony.read, begun=harmony.begun_by(text), guard=guard),
            tools=tools,
            demanded=demanded,
            parallel=prompt.tool_choice.parallel,
            marked_off=tuple(guard + marker for marker in harmony.MARKERS),
            shown=frozenset(speech.special.values()),
            guard=guard,
        )
    marks, opened = _reasoning(speech.marks, prompt, text)
    if marks is None and not tools:
        return None
    family = speech.family if tools else None
    markers = (family.markers if family else ()) + ((marks.open, marks.close) if marks else ())
    return Hearing(
        marks=marks,
        opened=opened,
        read_calls=family.read if family else None,
        tools=tools,
        demanded=demanded,
        parallel=prompt.tool_choice.parallel,
        shown=frozenset(speech.special[text] for text in markers if text in speech.special),
        ids=family.ids if family else "long",
    )


def _reasoning(marks: Marks | None, prompt: ChatPrompt, text: str) -> tuple[Marks | None, bool]:
    """The marks of reasoning that may still come, and whether the answer begins within it."""
    if marks is None:
        return None, False
    if prompt.continue_final_message:
        begun = str(prompt.messages[-1].get("content") or "")
        if marks.left_open(begun):
            return marks, True
        if begun.strip():
            return None, False
    end = text.rstrip()
    return (None, False) if end.endswith(marks.close) else (marks, end.endswith(marks.open))


def _preamble(
    speech: Speech, text: str, hearing: Hearing | None, guide: Guide
) -> Preamble | WrittenPreamble | None:
    if hearing is not None and speech.in_channels:
        grammar = CallGrammar(speech.ids, several=False)
        begun = harmony.begun_by(text)
        said = None if hearing.demanded else "@guide"
        called = "@guide" if hearing.demanded else "@calls" if hearing.tools else None
        start = harmony.write_before(grammar, begun, said, called)
        if start is None:
            raise InvalidRequest(
                "The chat template of this model begins its answers in a way that they cannot be "
                "guided after.",
                param=guide.param,
            )
        return WrittenPreamble(grammar.source(start))
    if hearing is None or hearing.marks is None:
        return None
    return Preamble(hearing.marks.close, None if hearing.opened else hearing.marks.open)


# -- writing ---------------------------------------------------------------------------------


def _text(model: str, front: Front, template: ChatTemplate, prompt: ChatPrompt) -> str:
    reserved = _OUR_TEMPLATE_ARGUMENTS & prompt.template_kwargs.keys()
    if reserved:
        raise InvalidRequest(f"{min(reserved)!r} cannot be set here.", param="chat_template_kwargs")
    messages = [_message(message) for message in prompt.messages]
    tools = [_plain(tool) for tool in prompt.tools] if front.speech.tools else []
    if front.speech.in_channels:
        messages, tools = for_harmony(messages), tools_for_harmony(tools)
    if tools and "tools" not in template.variables:
        messages = _told_in_system(messages, tools)
    mark = ""
    if prompt.continue_final_message:
        mark = f"\ue000{secrets.token_hex(8)}\ue001"  # nobody can have written it
        messages[-1]["content"] = f"{messages[-1].get('content') or ''}{mark}"
    values = {
        **front.tokenizer.special_tokens_map,
        "documents": None,
        **_effort(front.speech, template, prompt.reasoning_effort),
        **_plain(prompt.template_kwargs),
        "messages": messages,
        "tools": tools or None,
        "add_generation_prompt": prompt.answered and not prompt.continue_final_message,
        "continue_final_message": prompt.continue_final_message,
    }
    try:
        text = template.render(values)
    except Exception as error:  # a template raises whatever it likes, on purpose or not
        _log.debug("The chat template of %r refused", model, exc_info=True)
        reason = str(error) if type(error).__module__ in _TELLING else ""
        raise InvalidRequest(
            f"The chat template cannot write these messages out. {reason[:200]}".strip(),
            param="messages",
        ) from None
    return _up_to(mark, text) if mark else text


def _up_to(mark: str, text: str) -> str:
    begun, found, _ = text.rpartition(mark)
    if not found:
        raise InvalidRequest(
            "The chat template leaves the last message out, so it cannot be continued.",
            param="messages",
        )
    return begun


def _effort(speech: Speech, template: ChatTemplate, effort: str | None) -> dict[str, Any]:
    """How the template wants to hear how much to think."""
    if effort is None:
        return {}
    if "reasoning_effort" in template.variables:
        if speech.in_channels and effort in ("none", "minimal"):
            effort = "low"  # the least that gpt-oss was taught
        return {"reasoning_effort": effort}
    return dict.fromkeys(THINKING_SWITCHES & template.variables, effort != "none")


def _told_in_system(messages: list[dict[str, Any]], tools: list[Any]) -> list[dict[str, Any]]:
    """Phi's template looks for the tools in the system message, as text."""
    text = json.dumps([tool.get("function") for tool in tools], ensure_ascii=False)
    if messages and messages[0].get("role") == "system":
        return [{**messages[0], "tools": text}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": text}, *messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """What is None is left out: templates ask whether there is something, or write "None"."""
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    if isinstance(plain.get("reasoning_content"), str):
        plain.setdefault("thinking", plain["reasoning_content"])  # gpt-oss's name for it
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_call(call) for call in plain["tool_calls"]]
    return plain


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": _arguments(function["arguments"])}}


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _Arguments(value, text) if isinstance(value, dict) else text


class _Arguments(dict[str, Any]):
    """Arguments of an earlier call. Some templates take them for an object, others for the text
    that it was sent as: this is both."""

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: Any) -> str:
        return self._text + str(other)

    def __radd__(self, other: Any) -> str:
        return str(other) + self._text


def _plain(value: Any) -> Any:
    """Mappings and tuples as the dicts and lists that templates and `tojson` expect."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
