"""Anthropic's Messages: JSON objects to `GenerationRequest`.

The conversation is written as OpenAI's, which is what chat templates know. Its model is taken for
a wish: a client that can only say ``claude-...`` is answered by the resident model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from hotswap.api.anthropic_answers import MessageDocument, MessageFrames
from hotswap.api.dialect import Call, Lasting
from hotswap.api.fields import INT32_MAX, Count, StopString, decode
from hotswap.api.tools import MAX_TOOLS, DeclaredTool, check_together, tool_mappings
from hotswap.contracts import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import InvalidRequest


class Block(Struct):
    """A content block of any kind; which fields there must be is up to ``type``."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(min_length=1)]


class Tool(Struct):
    name: str
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    description: str | None = None
    strict: bool | None = None


class Choice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class Countable(Lasting, kw_only=True):
    """What ``/v1/messages`` and ``/v1/messages/count_tokens`` share."""

    model: str | None = None
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None


class Messages(Countable, kw_only=True):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=16)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None


_NOT_HONOURED = ("container", "mcp_servers")
_BETWEEN_BLOCKS = "\n"
_MEDIUM_FROM_TOKENS = 4096
_HIGH_FROM_TOKENS = 16384


def parse_messages(fields: dict[str, Any]) -> Call:
    """A body of ``/v1/messages``.

    Raises:
        InvalidRequest: names the field.
    """
    messages = decode(fields, Messages)
    prompt, guide = _prompt(fields, messages), _guide(messages)
    check_together(guide, prompt.tool_choice)
    request = GenerationRequest(
        prompts=(prompt,),
        model=messages.model,
        any_name=True,
        sampling=SamplingParams(
            temperature=messages.temperature,
            top_k=0 if messages.top_k == -1 else messages.top_k,
            top_p=messages.top_p,
        ),
        max_tokens=messages.max_tokens,
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
    counted = decode(fields, Countable)
    return GenerationRequest(
        prompts=(_prompt(fields, counted),), model=counted.model, any_name=True
    )


def _prompt(fields: Mapping[str, Any], asked: Countable) -> ChatPrompt:
    for name in _NOT_HONOURED:
        if fields.get(name):
            raise InvalidRequest(f"{name}: not supported", param=name)
    tools = tool_mappings(_tool(f"tools[{i}]", tool) for i, tool in enumerate(asked.tools or ()))
    choice = asked.tool_choice
    return ChatPrompt(
        messages=(*_system(asked.system), *_messages(asked.messages)),
        tools=() if choice and choice.type == "none" else tools,
        tool_choice=_tool_choice(choice, asked.tools or ()),
        reasoning_effort=_effort(asked),
        continue_final_message=_continues(asked.messages),
    )


# -- the conversation


def _system(system: str | list[Block] | None) -> list[dict[str, Any]]:
    text = "" if system is None else _text(system, "system")
    return [{"role": "system", "content": text}] if text else []


def _messages(turns: Iterable[Turn]) -> Iterable[dict[str, Any]]:
    """Turns of one side that follow each other are one turn, as they are at Anthropic's."""
    placed = ((f"messages[{i}].content", turn) for i, turn in enumerate(turns))
    for role, side in groupby(placed, key=lambda one: one[1].role):
        blocks = [block for param, turn in side for block in _blocks(turn.content, param)]
        if role == "user":
            yield from _user(blocks)
        elif role == "assistant":
            yield _assistant(blocks)
        else:
            yield {"role": role, "content": _join(_texts(blocks))}


T = TypeVar("T")
_Placed = tuple[str, Block]
"""A block and where it was."""


def _blocks(content: str | list[Block], param: str) -> list[_Placed]:
    if isinstance(content, str):
        return [(param, Block("text", text=content))]
    return [(f"{param}[{i}]", block) for i, block in enumerate(content)]


def _user(blocks: Iterable[_Placed]) -> Iterable[dict[str, Any]]:
    """A message of the user, and one for each result of a tool."""
    for is_result, some in groupby(blocks, key=lambda one: one[1].type == "tool_result"):
        if is_result:
            yield from (_tool_result(param, block) for param, block in some)
        else:
            yield {"role": "user", "content": _join(_texts(some))}


def _tool_result(param: str, block: Block) -> dict[str, Any]:
    text = "" if block.content is None else _text(block.content, f"{param}.content")
    return {
        "role": "tool",
        "tool_call_id": _required(block.tool_use_id, f"{param}.tool_use_id"),
        "content": f"Error: {text}" if block.is_error else text,
    }


def _assistant(blocks: list[_Placed]) -> dict[str, Any]:
    calls = [(param, block) for param, block in blocks if block.type == "tool_use"]
    thoughts = [
        _required(block.thinking, f"{param}.thinking")
        for param, block in blocks
        if block.type == "thinking"
    ]
    aside = ("tool_use", "thinking", "redacted_thinking")
    spoken = [(param, block) for param, block in blocks if block.type not in aside]
    message: dict[str, Any] = {"role": "assistant", "content": _join(_texts(spoken))}
    if thoughts:
        message["reasoning_content"] = _join(thoughts)
    if calls:
        message["tool_calls"] = [_tool_call(param, block) for param, block in calls]
    return message


def _tool_call(param: str, block: Block) -> dict[str, Any]:
    arguments = msgspec.json.encode(_required(block.input, f"{param}.input")).decode()
    name = _required(block.name, f"{param}.name")
    return {
        "id": _required(block.id, f"{param}.id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _text(content: str | list[Block], param: str) -> str:
    return _join(_texts(_blocks(content, param)))


def _texts(blocks: Iterable[_Placed]) -> Iterable[str]:
    for param, block in blocks:
        if block.type != "text":
            raise InvalidRequest(
                f"{param}: blocks of type {block.type[:50]!r} are not supported here", param=param
            )
        yield _required(block.text, f"{param}.text")


def _join(texts: Iterable[str]) -> str:
    return _BETWEEN_BLOCKS.join(texts)


def _required(value: T | None, param: str) -> T:
    if value is None:
        raise InvalidRequest(f"{param}: required, but missing", param=param)
    return value


def _continues(turns: list[Turn]) -> bool:
    """The answer goes on where the assistant's last turn ends."""
    last = turns[-1]
    if last.role != "assistant":
        return False
    if isinstance(last.content, list) and any(b.type == "tool_use" for b in last.content):
        param = f"messages[{len(turns) - 1}]"
        raise InvalidRequest(f"{param}: calls tools, but their results are missing", param=param)
    return True


# -- what it may answer


def _tool(param: str, tool: Tool) -> DeclaredTool:
    if tool.type not in (None, "custom"):
        raise InvalidRequest(
            f"{param}: tools of type {tool.type[:50]!r} are not supported, only your own",
            param=param,
        )
    schema = _required(tool.input_schema, f"{param}.input_schema")
    return DeclaredTool(
        name=tool.name,
        description=tool.description,
        parameters=schema,
        strict=tool.strict,
        param=param,
        parameters_param=f"{param}.input_schema",
    )


def _tool_choice(choice: Choice | None, tools: Iterable[Tool]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    if choice.type in ("auto", "none"):
        return ToolChoice(parallel=parallel)
    names = {tool.name for tool in tools}
    if not names:
        raise InvalidRequest(f"tool_choice: {choice.type!r}, but no tools", param="tool_choice")
    if choice.type == "any":
        return ToolChoice(required=True, parallel=parallel)
    name = _required(choice.name, "tool_choice.name")
    if name not in names:
        raise InvalidRequest(
            f"tool_choice.name: {name[:200]!r} is none of the tools", param="tool_choice.name"
        )
    return ToolChoice(required=True, name=name, parallel=parallel)


def _effort(asked: Countable) -> str | None:
    """A budget is taken for an effort: models know of efforts, and of none to the token."""
    thinking, config = asked.thinking, asked.output_config
    if thinking and thinking.type == "disabled":
        return "none"
    if config and config.effort:
        return "high" if config.effort in ("xhigh", "max") else config.effort
    if thinking is None or thinking.type != "enabled":
        return None
    budget = _required(thinking.budget_tokens, "thinking.budget_tokens")
    if budget < _MEDIUM_FROM_TOKENS:
        return "low"
    return "medium" if budget < _HIGH_FROM_TOKENS else "high"


def _guide(asked: Countable) -> Guide | None:
    if asked.output_config and asked.output_config.format:
        return _schema(asked.output_config.format, "output_config.format")
    return _schema(asked.output_format, "output_format") if asked.output_format else None


def _schema(asked: Format, param: str) -> Guide:
    return Guide("json_schema", msgspec.json.encode(asked.schema).decode(), param)
