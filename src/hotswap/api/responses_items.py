"""The items that a conversation of `/v1/responses` is made of: as clients send them, as they are
kept, and as messages for chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.api.openai_messages import (
    InputTextPart,
    OutputTextPart,
    RefusalPart,
    TextPart,
    content_text,
)
from hotswap.api.responses_store import ResponseStore
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
Input = str | Annotated[list[Item | ItemReference], Meta(min_length=1)]


def typed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the type of every item, which clients leave out of messages and references."""
    given = fields.get("input")
    return {**fields, "input": list(map(_typed_item, given))} if isinstance(given, list) else fields


def _typed_item(item: Any) -> Any:
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return {**item, "type": "item_reference" if item.get("role") is None else "message"}


def conversation(given: Input, previous: str | None, store: ResponseStore) -> list[Item]:
    """Its items from the beginning.

    Args:
        given: what is new of it.
        previous: the response that it goes on from.

    Raises:
        InvalidRequest: what is referred to is not kept here.
    """
    earlier = _earlier(previous, store)
    if isinstance(given, str):
        return [*earlier, MessageItem("user", given)]
    return [*earlier, *_referred(given, store)]


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


def message_mappings(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """As chat templates take them. Instructions and system messages before all else are one
    message: templates take one."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        if isinstance(item, FunctionCallOutputItem):
            output = content_text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            _hear(messages, item)
        else:
            _speak(messages, item)
    return messages


def _hear(messages: list[dict[str, Any]], item: MessageItem) -> None:
    text = content_text(item.content)
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
            last["reasoning_content"] = content_text(item.content or item.summary)
        case MessageItem():
            last["content"] = content_text(item.content)
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


def plain(item: Item) -> dict[str, Any]:
    """As it is kept, and listed by ``/v1/responses/{id}/input_items``."""
    fields: dict[str, Any] = msgspec.to_builtins(item)
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        fields["content"] = [{"type": kind, "text": item.content}]
    return fields
