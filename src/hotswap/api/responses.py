"""OpenAI's Responses: JSON objects to `GenerationRequest`.

A response may go on from one that is kept here: then its conversation is that one's, its answer,
and what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.api.dialect import Call, Lasting
from hotswap.api.fields import Count, decode
from hotswap.api.guides import ANY_OBJECT, TextFormat, schema_guide
from hotswap.api.openai_messages import InputTextPart, OutputTextPart, RefusalPart, TextPart
from hotswap.api.responses_answers import Asked, ResponseDocument, ResponseFrames
from hotswap.api.responses_store import ResponseStore
from hotswap.api.tools import (
    MAX_TOOLS,
    DeclaredTool,
    ToolName,
    check_together,
    required_choice,
    tool_mappings,
)
from hotswap.contracts import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    SamplingParams,
    ToolChoice,
)
from hotswap.errors import InvalidRequest


class ReasoningTextPart(TextPart, tag="reasoning_text"):
    pass


class SummaryTextPart(TextPart, tag="summary_text"):
    pass


ItemPart = (
    TextPart | InputTextPart | OutputTextPart | RefusalPart | ReasoningTextPart | SummaryTextPart
)
Parts = str | list[ItemPart]


class MessageItem(Struct, tag_field="type", tag="message", omit_defaults=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: str | None = None
    status: str | None = None


class FunctionCallItem(Struct, tag_field="type", tag="function_call", omit_defaults=True):
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(
    Struct, tag_field="type", tag="function_call_output", omit_defaults=True
):
    call_id: str
    output: Parts
    id: str | None = None
    status: str | None = None


class ReasoningItem(Struct, tag_field="type", tag="reasoning", omit_defaults=True):
    summary: list[ItemPart] | None = None
    content: Parts | None = None
    id: str | None = None
    status: str | None = None


class ItemReference(Struct, tag_field="type", tag="item_reference"):
    """An item of an answer that is kept here."""

    id: str


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


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
    input: str | Annotated[list[Item | ItemReference], Meta(min_length=1)]
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
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


_NOT_HONOURED = ("background", "conversation", "prompt", "context_management", "moderation")
_LOGPROBS = "message.output_text.logprobs"


def parse_response(fields: dict[str, Any], store: ResponseStore) -> Call:
    """A body of ``/v1/responses``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    create = decode(_typed(fields), ResponseBody)
    items = _conversation(create, store)
    keep = create.store is not False
    asked = Asked(
        settings=_settings(create),
        items=[_plain(item) for item in items] if keep else (),
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
    _refuse_not_honoured(fields)
    counted = decode(_typed(fields), ResponseInput)
    prompt = _prompt(counted, _conversation(counted, store))
    return GenerationRequest(prompts=(prompt,), model=counted.model)


def _refuse_not_honoured(fields: Mapping[str, Any]) -> None:
    for name in _NOT_HONOURED:
        if fields.get(name):
            raise InvalidRequest(f"{name}: not supported", param=name)


def _typed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the type of every item, which clients leave out of messages and references."""
    given = fields.get("input")
    return {**fields, "input": list(map(_typed_item, given))} if isinstance(given, list) else fields


def _typed_item(item: Any) -> Any:
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return {**item, "type": "item_reference" if item.get("role") is None else "message"}


def _prompt(asked: ResponseInput, items: Sequence[Item]) -> ChatPrompt:
    tools, choice = _tools(asked)
    return ChatPrompt(
        messages=tuple(_messages(asked.instructions, items)),
        tools=tools,
        tool_choice=choice,
        reasoning_effort=_effort(asked.reasoning),
    )


# -- the conversation


def _conversation(asked: ResponseInput, store: ResponseStore) -> list[Item]:
    """Its items from the beginning."""
    earlier = _earlier(asked.previous_response_id, store)
    if isinstance(asked.input, str):
        return [*earlier, MessageItem("user", asked.input)]
    return [*earlier, *_referred(asked.input, store)]


def _earlier(name: str | None, store: ResponseStore) -> list[Item]:
    if not name:
        return []
    kept = store.find(name)
    if kept is None:
        raise InvalidRequest(
            f"previous_response_id: there is no response {name[:200]!r} here, or not any more; "
            "send the whole conversation as input",
            param="previous_response_id",
        )
    return msgspec.convert([*kept.items(), *kept.output()], list[Item])


def _referred(items: Iterable[Item | ItemReference], store: ResponseStore) -> Iterable[Item]:
    """``items``, with those that are referred to in their places."""
    for position, item in enumerate(items):
        if not isinstance(item, ItemReference):
            yield item
            continue
        found = store.item(item.id)
        if found is None:
            param = f"input[{position}].id"
            raise InvalidRequest(
                f"{param}: there is no item {item.id!r:.200} here, or not any more; "
                "send the item itself",
                param=param,
            )
        yield msgspec.convert(found, Item)


def _text(content: Parts | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def _messages(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """Instructions and system messages before all else are one message: templates take one."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        if isinstance(item, FunctionCallOutputItem):
            output = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            _hear(messages, item)
        else:
            _speak(messages, item)
    return messages


def _hear(messages: list[dict[str, Any]], item: MessageItem) -> None:
    text = _text(item.content)
    if item.role == "user":
        messages.append({"role": "user", "content": text})
    elif len(messages) == 1 and messages[0]["role"] == "system":
        messages[0]["content"] += f"\n\n{text}"
    else:
        messages.append({"role": "system", "content": text})


def _speak(
    messages: list[dict[str, Any]], item: ReasoningItem | MessageItem | FunctionCallItem
) -> None:
    """What the assistant thinks, says and calls in a row is one message."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not _goes_on(last, item):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    match item:
        case ReasoningItem():
            last["reasoning_content"] = _text(item.content or item.summary)
        case MessageItem():
            last["content"] = _text(item.content)
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            last.setdefault("tool_calls", []).append(call)


def _goes_on(message: Mapping[str, Any], item: Item) -> bool:
    """Whether ``item`` can be part of what the assistant has said so far."""
    if isinstance(item, FunctionCallItem):
        return True
    said = bool(message["content"] or "tool_calls" in message)
    return not said and not (isinstance(item, ReasoningItem) and "reasoning_content" in message)


def _plain(item: Item) -> dict[str, Any]:
    """As it is kept, and listed by ``/v1/responses/{id}/input_items``."""
    plain: dict[str, Any] = msgspec.to_builtins(item)
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        plain["content"] = [{"type": kind, "text": item.content}]
    return plain


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


def _effort(reasoning: Reasoning | None) -> str | None:
    if reasoning is None or reasoning.effort is None:
        return None
    return "high" if reasoning.effort in ("xhigh", "max") else reasoning.effort


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
