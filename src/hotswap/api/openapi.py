"""The table's rows, and ``/openapi.json``, which is generated from them and from the types that
decode requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec import Struct
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hotswap import __version__
from hotswap.api.errors import (
    STATUS,
    Envelope,
    anthropic_envelope,
    envelope,
    envelope_on,
    is_temporary,
    ollama_envelope,
)

JSON = "application/json"
_PATH_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_SCHEMAS = "#/components/schemas/{name}"
_REFUSALS = sorted(set(STATUS.values()) - {405})  # a method that is not there is no operation
_REASONS = {
    400: "The request can never work as it stands.",
    401: "A key is missing, or is none of this server's.",
    403: "The key does not open this route.",
    404: "There is no such model.",
    408: "The body stopped coming.",
    413: "The body is too large.",
    415: "The body is a form.",
    422: "The model's files are unusable.",
    429: "The queue is full.",
    500: "Nobody foresaw this; the server's log has it.",
    502: "What came from the Hub is not what it says it is.",
    503: "It may work later.",
    504: "The Hub does not answer.",
    507: "The disk has no room for the model.",
}


class ErrorDetails(Struct):
    message: str
    type: str
    param: str | None
    code: str


class LoadingState(Struct):
    model: str
    state: str
    progress: float
    eta_seconds: float | None


class ErrorAnswer(Struct):
    error: ErrorDetails
    loading: LoadingState | msgspec.UnsetType = msgspec.UNSET


class AnthropicErrorDetails(Struct):
    type: str
    message: str


class AnthropicErrorAnswer(Struct):
    type: Literal["error"]
    error: AnthropicErrorDetails


class OllamaErrorAnswer(Struct):
    error: str


_ERROR_ANSWERS: Mapping[Envelope, type[Struct]] = {
    envelope: ErrorAnswer,
    anthropic_envelope: AnthropicErrorAnswer,
    ollama_envelope: OllamaErrorAnswer,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One row: how a route is reached, who answers, what it takes and what it gives."""

    method: Literal["GET", "POST", "DELETE", "HEAD"]
    path: str
    """As Starlette writes it."""
    endpoint: Any
    summary: str
    _: KW_ONLY
    request: type[Struct] | tuple[type[Struct], ...] = ()
    """What a JSON body is decoded into, one of several perhaps; (): the route takes none."""
    answer: Any = dict[str, Any]
    """The type of a JSON answer; None: it is empty, or not JSON."""
    media_type: str = JSON
    stream: str | None = None
    """Media type of the answer to ``"stream": true``."""
    body_required: bool = True
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Query parameters and what each may be, its default first; empty: any text."""
    middleware: Sequence[Middleware] = ()

    @property
    def requests(self) -> tuple[type[Struct], ...]:
        return self.request if isinstance(self.request, tuple) else (self.request,)

    def route(self) -> Route:
        return Route(
            self.path, self.endpoint, methods=[self.method], middleware=list(self.middleware)
        )


class OpenApiRoute:
    """``/openapi.json``: described when it is first asked for."""

    def __init__(self, operations: Iterable[Operation], *, keyed: bool) -> None:
        self._operations = tuple(operations)
        self._keyed = keyed

    async def document(self, _: Request) -> Response:
        return Response(self._body, media_type=JSON)

    @cached_property
    def _body(self) -> bytes:
        return msgspec.json.encode(describe(self._operations, keyed=self._keyed))


def describe(operations: Sequence[Operation], *, keyed: bool) -> dict[str, Any]:
    """The OpenAPI document of ``operations``; ``keyed``: they need an API key."""
    types: list[Any] = [*_ERROR_ANSWERS.values()]
    types += [one for row in operations for one in (*row.requests, row.answer) if one is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        path = paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", row.path), {})
        path[row.method.lower()] = _operation(row, schema_of)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "hotswap", "version": __version__},
        "paths": paths,
        "components": {"schemas": _without_null_defaults(components)},
    }
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _operation(row: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": row.summary,
        "parameters": [*_path_parameters(row.path), *_query_parameters(row.query)],
        "responses": _responses(row, schema_of),
    }
    bodies = [schema_of[one] for one in row.requests]
    if bodies:
        content = {JSON: {"schema": {"anyOf": bodies} if len(bodies) > 1 else bodies[0]}}
        described["requestBody"] = {"required": row.body_required, "content": content}
    return described


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(path)
    ]


def _query_parameters(query: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "schema": _query_schema(values)}
        for name, values in query.items()
    ]


def _query_schema(values: Sequence[str]) -> dict[str, Any]:
    return {"enum": list(values), "default": values[0]} if values else {"type": "string"}


def _responses(row: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if row.answer is not None:
        content[row.media_type] = {"schema": schema_of[row.answer]}
    elif row.media_type != JSON:
        content[row.media_type] = {}
    if row.stream is not None:
        content[row.stream] = {}
    refusal = {JSON: {"schema": schema_of[_ERROR_ANSWERS[envelope_on(row.path)]]}}
    refusals = {str(status): _refusal(status, refusal) for status in _REFUSALS}
    return {"200": {"description": "The answer.", "content": content}, **refusals}


def _refusal(status: int, content: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": _REASONS[status], "content": content}
    if is_temporary(status):
        seconds = {"type": "integer", "minimum": 1, "maximum": 60}
        described["headers"] = {"Retry-After": {"required": True, "schema": seconds}}
    return described


def _without_null_defaults(schema: Any) -> Any:
    """That ``null`` is unset everywhere need not be repeated at every field."""
    if isinstance(schema, list):
        return [_without_null_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_null_defaults(value)
        for key, value in schema.items()
        if not (key == "default" and value is None)
    }
