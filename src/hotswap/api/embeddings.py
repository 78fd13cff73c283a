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
from hotswap.api.fields import Count, TokenId, decode, duration_s
from hotswap.api.sse import while_connected
from hotswap.contracts import EmbeddingRequest, Embeddings, ModelService, TextPrompt, TokenPrompt
from hotswap.errors import InvalidRequest

MAX_TEXTS = 2048
_THREAD_FROM_NUMBERS = 16 << 10
"""Writing out more than this would hold up every stream."""

Text = Annotated[str, Meta(min_length=1)]
Ids = Annotated[list[TokenId], Meta(min_length=1)]


class Body(Struct, kw_only=True):
    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    truncate: bool | None = None
    keep_alive: float | str | None = None
    ttl: float | None = None


class _Texts(Struct):
    input: Annotated[list[Text], Meta(max_length=MAX_TEXTS)]


class _Text(Struct):
    input: Text


class _IdLists(Struct):
    input: Annotated[list[Ids], Meta(max_length=MAX_TEXTS)]


class _Ids(Struct):
    input: Ids


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
    body = decode(fields, Body)
    request = EmbeddingRequest(
        prompts=_prompts(body.input),
        model=body.model,
        dimensions=body.dimensions,
        truncate=bool(body.truncate),
        keep_alive_s=_keep_alive_s(body),
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


def _keep_alive_s(body: Body) -> float | None:
    if body.keep_alive is not None:
        return duration_s(body.keep_alive, "keep_alive")
    return None if body.ttl is None else duration_s(body.ttl, "ttl")


def _prompts(given: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    fields = {"input": given}
    if isinstance(given, str):
        return (TextPrompt(decode(fields, _Text).input),)
    if not isinstance(given, list) or not given:
        raise InvalidRequest(
            "input: expected a string, strings, token ids, or lists of token ids", param="input"
        )
    if isinstance(given[0], str):
        return tuple(map(TextPrompt, decode(fields, _Texts).input))
    if isinstance(given[0], list):
        return tuple(TokenPrompt(tuple(ids)) for ids in decode(fields, _IdLists).input)
    return (TokenPrompt(tuple(decode(fields, _Ids).input)),)
