"""Anthropic's Messages: JSON objects to `GenerationRequest`.

The conversation is written as OpenAI's, which is what chat templates know. Its model is taken for
a wish: a client that can only say ``claude-...`` is answered by the resident model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.api.anthropic_answers import MessageDocument, MessageFrames
from hotswap.api.dialect import Call, Lasting
from hotswap.api.fields import INT32_MAX, Count, Probability, StopString, decode
from hotswap.api.guides import schema_guide
from hotswap.api.rules import effort_of, refuse_not_honoured, top_k_of
from hotswap.api.tools import (
    MAX_TOOLS,
    DeclaredTool,
    ToolName,
    check_together,
    required_choice,
    tool_mappings,
)
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import InvalidRequest


class TextBlock(Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    thinking: str


class RedactedThinkingBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """Nobody here can read it."""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Heard = TextBlock | ToolResultBlock
Spoken = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
Block = Heard | Spoken


class UserTurn(Struct, tag_field="role", tag="user"):
    content: str | Annotated[list[Heard], Meta(min_length=1)]


class AssistantTurn(Struct, tag_field="role", tag="assistant"):
    content: str | Annotated[list[Spoken], Meta(min_length=1)]


class SystemTurn(Struct, tag_field="role", tag="system"):
    content: str | Annotated[list[TextBlock], Meta(min_length=1)]


Turn = UserTurn | AssistantTurn | SystemTurn


class OwnTool(Struct):
    name: ToolName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None


class AutoChoice(Struct, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class NoneChoice(AutoChoice, tag="none"):
    pass


class AnyChoice(AutoChoice, tag="any"):
    pass


class ToolNameChoice(AutoChoice, tag="tool", kw_only=True):
    name: str


class Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesInput(Lasting, kw_only=True):
    """What ``/v1/messages`` and ``/v1/messages/count_tokens`` share."""

    model: str | None = None
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[OwnTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | NoneChoice | AnyChoice | ToolNameChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessagesBody(MessagesInput, kw_only=True):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=16)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None


_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {"container": (), "mcp_servers": ()}
_BETWEEN_BLOCKS = "\n"
_MEDIUM_FROM_TOKENS = 4096
_HIGH_FROM_TOKENS = 16384


def parse_messages(fields: dict[str, Any]) -> Call:
    """A body of ``/v1/messages``.

    Raises:
        InvalidRequest: names the field.
    """
    messages = decode(fields, MessagesBody)
    prompt, guide = _prompt(fields, messages), _guide(messages)
    check_together(guide, prompt.tool_choice)
    request = GenerationRequest(
        prompts=(prompt,),
        model=messages.model,
        any_name=True,
        sampling=SamplingParams(
            temperature=messages.temperature,
            top_k=top_k_of(messages.top_k),
            top_p=messages.top_p,
        ),
        max_tokens=messages.max_tokens,
        cut_to_context=True,
        stop=tuple(messages.stop_sequences or ()),
        guide=guide,
        keep_alive_s=messages.keep_alive_s(),
    )
    shown = messages.thinking is None or messages.thinking.display != "omitted"
    return Call(
        request=request,
        stream=bool(messages.stream),
        frames=partial(MessageFrames, thinking=shown),
        document=partial(MessageDocument, thinking=shown),
    )


def parse_count(fields: dict[str, Any]) -> GenerationRequest:
    """A body of ``/v1/messages/count_tokens``.

    Raises:
        InvalidRequest: names the field.
    """
    counted = decode(fields, MessagesInput)
    return GenerationRequest(
        prompts=(_prompt(fields, counted),), model=counted.model, any_name=True
    )


def _prompt(fields: Mapping[str, Any], asked: MessagesInput) -> ChatPrompt:
    refuse_not_honoured(fields, _NOT_HONOURED)
    tools = tool_mappings(_declared(asked.tools or ()))
    return ChatPrompt(
        messages=(*_system(asked.system), *_messages(asked.messages)),
        tools=() if isinstance(asked.tool_choice, NoneChoice) else tools,
        tool_choice=_tool_choice(asked.tool_choice, tools),
        reasoning_effort=_effort(asked),
        continue_final_message=_continues(asked.messages),
    )


# -- the conversation


def _system(system: str | list[TextBlock] | None) -> list[dict[str, Any]]:
    text = _text(system or "")
    return [{"role": "system", "content": text}] if text else []


def _messages(turns: Iterable[Turn]) -> Iterable[dict[str, Any]]:
    """Turns of one side that follow each other are one turn, as they are at Anthropic's."""
    for side, some in groupby(turns, key=type):
        blocks = [block for turn in some for block in _blocks(turn.content)]
        if side is UserTurn:
            yield from _user(blocks)
        elif side is AssistantTurn:
            yield _assistant(blocks)
        else:
            yield {"role": "system", "content": _join(blocks)}


def _blocks(content: str | Sequence[Block]) -> Sequence[Block]:
    return [TextBlock(content)] if isinstance(content, str) else content


def _user(blocks: Iterable[Block]) -> Iterable[dict[str, Any]]:
    """A message of the user, and one for each result of a tool."""
    for is_result, some in groupby(blocks, key=lambda one: isinstance(one, ToolResultBlock)):
        if is_result:
            yield from (_tool_result(one) for one in some if isinstance(one, ToolResultBlock))
        else:
            yield {"role": "user", "content": _join(some)}


def _tool_result(block: ToolResultBlock) -> dict[str, Any]:
    text = _text(block.content or "")
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "content": f"Error: {text}" if block.is_error else text,
    }


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _join(blocks)}
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    if thoughts:
        message["reasoning_content"] = _BETWEEN_BLOCKS.join(thoughts)
    calls = [_tool_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.input).decode()
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _text(content: str | Sequence[Block]) -> str:
    return _join(_blocks(content))


def _join(blocks: Iterable[Block]) -> str:
    """What of ``blocks`` is text."""
    return _BETWEEN_BLOCKS.join(block.text for block in blocks if isinstance(block, TextBlock))


def _continues(turns: list[Turn]) -> bool:
    """The answer goes on where the assistant's last turn ends."""
    last = turns[-1]
    if not isinstance(last, AssistantTurn):
        return False
    if any(isinstance(block, ToolUseBlock) for block in _blocks(last.content)):
        param = f"messages[{len(turns) - 1}]"
        raise InvalidRequest(f"{param}: calls tools, but their results are missing", param=param)
    return True


# -- what it may answer


def _declared(tools: Iterable[OwnTool]) -> Iterable[DeclaredTool]:
    for position, tool in enumerate(tools):
        param = f"tools[{position}]"
        yield DeclaredTool(
            name=tool.name,
            description=tool.description,
            parameters=tool.input_schema,
            strict=tool.strict,
            param=param,
            parameters_param=f"{param}.input_schema",
        )


def _tool_choice(choice: AutoChoice | None, tools: Collection[Mapping[str, Any]]) -> ToolChoice:
    parallel = choice is None or not choice.disable_parallel_tool_use
    if isinstance(choice, ToolNameChoice):
        param = "tool_choice.name"
        return required_choice(tools, parallel=parallel, name=choice.name, param=param)
    if isinstance(choice, AnyChoice):
        return required_choice(tools, parallel=parallel)
    return ToolChoice(parallel=parallel)


def _effort(asked: MessagesInput) -> str | None:
    """A budget is taken for an effort: models know of efforts, and of none to the token."""
    thinking, config = asked.thinking, asked.output_config
    if thinking and thinking.type == "disabled":
        return "none"
    if config and config.effort:
        return effort_of(config.effort)
    if thinking is None or thinking.type != "enabled":
        return None
    budget, param = thinking.budget_tokens, "thinking.budget_tokens"
    if budget is None:
        raise InvalidRequest(f"{param}: required, but missing", param=param)
    if budget < _MEDIUM_FROM_TOKENS:
        return "low"
    return "medium" if budget < _HIGH_FROM_TOKENS else "high"


def _guide(asked: MessagesInput) -> Guide | None:
    if asked.output_config and asked.output_config.format:
        return schema_guide(asked.output_config.format.schema, "output_config.format")
    if asked.output_format:
        return schema_guide(asked.output_format.schema, "output_format")
    return None
