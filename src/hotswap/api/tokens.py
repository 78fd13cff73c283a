"""``/tokenize`` and ``/detokenize``, as vLLM has them. They load no model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from hotswap.api.body import read_object
from hotswap.api.documents import json_response
from hotswap.api.fields import TokenId, decode
from hotswap.api.openai import parse_chat, parse_completion
from hotswap.api.openai_messages import Message
from hotswap.api.sse import while_connected
from hotswap.api.tools import MAX_TOOLS, Choice, Tool
from hotswap.contracts.requests import ChatPrompt, GenerationRequest, Prompt
from hotswap.contracts.service import ModelService
from hotswap.errors import InvalidRequest

MAX_TOKENS = 1 << 20
"""To be written as text in one request."""


class TokenizeText(Struct):
    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Struct):
    """The fields of a chat that its prompt is written from."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class Detokenize(Struct):
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]
    model: str | None = None


class TokenizeAnswer(Struct):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Struct):
    prompt: str


class TokenRoutes:
    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def tokenize(self, request: Request) -> Response:
        asked, texts = await read_object(request.receive, request.scope, _parse)
        async with while_connected(request.receive):
            found = await self._service.tokenize(asked, texts=texts)
        (ids,) = found.ids
        return json_response(
            TokenizeAnswer(
                count=len(ids),
                max_model_len=await self._max_model_len(found.model),
                tokens=list(ids),
                token_strs=list(found.texts[0]) if texts else None,
            )
        )

    async def _max_model_len(self, model: str) -> int | None:
        """From the listing, which has the resident model even if its files are gone; models that
        embed are in none."""
        listings = await self._service.models()
        listed = next((one for one in listings if one.id == model), None)
        return (listed or await self._service.model(model)).max_model_len

    async def detokenize(self, request: Request) -> Response:
        asked = await read_object(
            request.receive, request.scope, lambda fields: decode(fields, Detokenize)
        )
        async with while_connected(request.receive):
            _, text = await self._service.detokenize(asked.model, asked.tokens)
        return json_response(DetokenizeAnswer(text))


def _parse(fields: dict[str, Any]) -> tuple[GenerationRequest, bool]:
    """The completion that would have this prompt, and whether its tokens' texts are wanted.

    Raises:
        InvalidRequest: names the field.
    """
    if fields.get("messages") is None:
        text = decode(fields, TokenizeText)
        return parse_completion(fields).request, bool(text.return_token_strs)
    if fields.get("prompt") is not None:
        raise InvalidRequest("messages: not together with prompt", param="messages")
    # In a chat this means that the last message is continued; here that nothing follows it.
    bare = fields.get("add_generation_prompt") is False and not fields.get("continue_final_message")
    request = parse_chat({**fields, "add_generation_prompt": None} if bare else fields).request
    if bare:
        request = replace(request, prompts=tuple(map(_unanswered, request.prompts)))
    return request, bool(decode(fields, TokenizeChat).return_token_strs)


def _unanswered(prompt: Prompt) -> Prompt:
    return replace(prompt, answered=False) if isinstance(prompt, ChatPrompt) else prompt
