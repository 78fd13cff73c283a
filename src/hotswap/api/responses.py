"""OpenAI's Responses: JSON objects to `GenerationRequest`.

A response may go on from one that is kept here: then its conversation is that one's, its answer,
and what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hotswap.api.dialect import Call, Lasting
from hotswap.api.fields import Count, Probability, decode
from hotswap.api.guides import ANY_OBJECT, TextFormat, schema_guide
from hotswap.api.responses_answers import Asked, ResponseDocument, ResponseFrames
from hotswap.api.responses_items import Input, Item, conversation, message_mappings, plain, typed
from hotswap.api.responses_store import ResponseStore
from hotswap.api.rules import effort_of, refuse_not_honoured
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


class FunctionTool(Struct):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Struct, tag_field="type", tag="function"):
    name: str


class AllowedTool(Struct, omit_defaults=True):
    type: str
    name: str | None = None


class AllowedTools(Struct, tag_field="type", tag="allowed_tools", omit_defaults=True):
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] | None = None


class ObjectFormat(Struct, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaFormat(Struct, tag_field="type", tag="json_schema", omit_defaults=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextSettings(Struct):
    format: TextFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseInput(Lasting, kw_only=True):
    """What ``/v1/responses`` and ``/v1/responses/input_tokens`` share."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponseBody(ResponseInput, kw_only=True):
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "background": (),
    "context_management": (),
    "conversation": (),
    "moderation": (),
    "prompt": (),
}
_OF_CHATS = {
    "functions": "tools",
    "function_call": "tool_choice",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Fields of ``/v1/chat/completions``, and what they are called here."""
_LOGPROBS = "message.output_text.logprobs"


def parse_response(fields: dict[str, Any], store: ResponseStore) -> Call:
    """A body of ``/v1/responses``.

    Raises:
        InvalidRequest: names the field.
    """
    refuse_not_honoured(fields, _NOT_HONOURED)
    refuse_not_honoured(fields, dict.fromkeys(_OF_CHATS, ()), _OF_CHATS)
    create = decode(typed(fields), ResponseBody)
    items = conversation(create.input, create.previous_response_id, store)
    keep = create.store is not False
    asked = Asked(
        settings=_settings(create),
        items=[plain(item) for item in items] if keep else (),
        store=store,
        keep=keep,
        summary=_wants_summary(create.reasoning),
    )
    prompt, guide = _prompt(create, items), _guide(create.text)
    check_together(guide, prompt.tool_choice)
    request = GenerationRequest(
        prompts=(prompt,),
        model=create.model,
        sampling=SamplingParams(temperature=create.temperature, top_p=create.top_p),
        max_tokens=create.max_output_tokens,
        max_tokens_param="max_output_tokens",
        logprobs=(create.top_logprobs or 0) if _LOGPROBS in (create.include or ()) else None,
        guide=guide,
        keep_alive_s=create.keep_alive_s(),
    )
    return Call(
        request=request,
        stream=bool(create.stream),
        frames=partial(ResponseFrames, asked=asked),
        document=partial(ResponseDocument, asked=asked),
    )


def parse_count(fields: dict[str, Any], store: ResponseStore) -> GenerationRequest:
    """A body of ``/v1/responses/input_tokens``.

    Raises:
        InvalidRequest: names the field.
    """
    refuse_not_honoured(fields, _NOT_HONOURED)
    refuse_not_honoured(fields, dict.fromkeys(_OF_CHATS, ()), _OF_CHATS)
    counted = decode(typed(fields), ResponseInput)
    items = conversation(counted.input, counted.previous_response_id, store)
    return GenerationRequest(prompts=(_prompt(counted, items),), model=counted.model)


def _prompt(asked: ResponseInput, items: Sequence[Item]) -> ChatPrompt:
    tools, choice = _tools(asked)
    return ChatPrompt(
        messages=tuple(message_mappings(asked.instructions, items)),
        tools=tools,
        tool_choice=choice,
        reasoning_effort=effort_of(asked.reasoning.effort) if asked.reasoning else None,
    )


# -- what it may answer


def _tools(asked: ResponseInput) -> tuple[tuple[Mapping[str, Any], ...], ToolChoice]:
    mappings = tool_mappings(_declared(asked.tools or ()))
    choice, parallel = asked.tool_choice, asked.parallel_tool_calls is not False
    if choice == "none":
        return (), ToolChoice(parallel=parallel)
    if isinstance(choice, FunctionChoice):
        param = "tool_choice.name"
        chosen = required_choice(mappings, parallel=parallel, name=choice.name, param=param)
        return mappings, chosen
    if isinstance(choice, AllowedTools):
        allowed = [tool.name for tool in choice.tools or ()]
        mappings = tuple(one for one in mappings if one["function"]["name"] in allowed)
        choice = choice.mode
    if choice == "required":
        return mappings, required_choice(mappings, parallel=parallel)
    return mappings, ToolChoice(parallel=parallel)


def _declared(tools: Iterable[FunctionTool]) -> Iterable[DeclaredTool]:
    for position, tool in enumerate(tools):
        param = f"tools[{position}]"
        yield DeclaredTool(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict,
            param=param,
            parameters_param=f"{param}.parameters",
        )


def _wants_summary(reasoning: Reasoning | None) -> bool:
    return reasoning is not None and bool(reasoning.summary or reasoning.generate_summary)


def _guide(text: TextSettings | None) -> Guide | None:
    match text and text.format:
        case SchemaFormat(schema):
            return schema_guide(schema, "text.format")
        case ObjectFormat():
            return schema_guide(ANY_OBJECT, "text.format")
    return None


# -- what the answer repeats


def _settings(create: ResponseBody) -> dict[str, Any]:
    """``truncation`` as it is: nothing is ever cut off a conversation."""
    reasoning = create.reasoning or Reasoning()
    return {
        "instructions": create.instructions,
        "max_output_tokens": create.max_output_tokens,
        "max_tool_calls": None,
        "metadata": create.metadata or {},
        "parallel_tool_calls": create.parallel_tool_calls is not False,
        "previous_response_id": create.previous_response_id,
        "prompt_cache_key": create.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": create.safety_identifier,
        "service_tier": "default",
        "store": create.store is not False,
        "temperature": create.temperature,
        "text": {"format": (create.text and create.text.format) or {"type": "text"}},
        "tool_choice": create.tool_choice or "auto",
        "tools": create.tools or [],
        "top_logprobs": create.top_logprobs or 0,
        "top_p": create.top_p,
        "truncation": "disabled",
        "user": create.user,
    }
