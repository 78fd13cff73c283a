"""OpenAI's embeddings: texts in, a list of vectors out."""

from __future__ import annotations

import base64
import sys
from array import array
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from msgspec import Meta, Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotswap.api.body import read_object
from hotswap.api.dialect import Lasting
from hotswap.api.fields import Count, TokenId, decode
from hotswap.api.sse import while_connected
from hotswap.contracts.answers import Embeddings
from hotswap.contracts.requests import EmbeddingRequest, TextPrompt, TokenPrompt
from hotswap.contracts.service import ModelService

MAX_TEXTS = 2048
MAX_TOKENS = 1 << 20
"""Of a text that is given as token ids."""
_THREAD_FROM_NUMBERS = 16 << 10
"""Writing out more than this would hold up every stream."""

Text = Annotated[str, Meta(min_length=1)]
Ids = Annotated[list[TokenId], Meta(min_length=1)]


class EmbeddingBody(Lasting, kw_only=True):
    """A body of ``/v1/embeddings``."""

    input: Text | Annotated[list[Text | TokenId | Ids], Meta(min_length=1, max_length=MAX_TOKENS)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    truncate: bool | None = None


class _Texts(Struct):
    input: Annotated[list[Text], Meta(max_length=MAX_TEXTS)]


class _IdLists(Struct):
    input: Annotated[list[Ids], Meta(max_length=MAX_TEXTS)]


class _Ids(Struct):
    input: Ids


class EmbeddingAnswer(Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Struct):
    """What `embeddings_document` writes, for ``/openapi.json``."""

    object: Literal["list"]
    data: list[EmbeddingAnswer]
    model: str
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """One parsed request."""

    request: EmbeddingRequest
    as_text: bool
    """Each vector in base64, its numbers in single precision with the lowest byte first."""


class EmbeddingEndpoint:
    """An ASGI app for the route."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await read_object(receive, scope, parse_embedding)
        request = replace(call.request, request_id=scope["state"]["request_id"])
        async with while_connected(receive):
            found = await self._service.embed(request)
            if sum(map(len, found.vectors)) < _THREAD_FROM_NUMBERS:
                body = embeddings_document(found, as_text=call.as_text)
            else:
                body = await to_thread.run_sync(
                    lambda: embeddings_document(found, as_text=call.as_text)
                )
        await Response(body, media_type="application/json")(scope, receive, send)


def parse_embedding(fields: dict[str, Any]) -> EmbeddingCall:
    """A body of ``/v1/embeddings``.

    Raises:
        InvalidRequest: names the field.
    """
    body = decode(fields, EmbeddingBody)
    request = EmbeddingRequest(
        prompts=_prompts(body),
        model=body.model,
        dimensions=body.dimensions,
        truncate=bool(body.truncate),
        keep_alive_s=body.keep_alive_s(),
    )
    return EmbeddingCall(request, as_text=body.encoding_format == "base64")


def embeddings_document(found: Embeddings, *, as_text: bool) -> bytes:
    """The answer to a request."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _in_base64(vector) if as_text else vector.tolist(),
        }
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return msgspec.json.encode(
        {"object": "list", "data": data, "model": found.model, "usage": usage}
    )


def _in_base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()


def _prompts(body: EmbeddingBody) -> tuple[TextPrompt | TokenPrompt, ...]:
    """The four forms of an input; decoded a second time, as the form that its beginning has."""
    given = body.input
    if isinstance(given, str):
        return (TextPrompt(given),)
    fields = {"input": given}
    if isinstance(given[0], str):
        return tuple(map(TextPrompt, decode(fields, _Texts).input))
    if isinstance(given[0], list):
        return tuple(TokenPrompt(tuple(ids)) for ids in decode(fields, _IdLists).input)
    return (TokenPrompt(tuple(decode(fields, _Ids).input)),)
