"""Answers of ``/v1/responses`` that are kept: looked at, listed by what went in, deleted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from hotswap.api.documents import json_response
from hotswap.api.fields import decode
from hotswap.api.query import single, truth
from hotswap.api.responses_store import ResponseStore
from hotswap.errors import InvalidRequest


class Page(Struct):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


class KeptResponses:
    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def one(self, request: Request) -> Response:
        if truth(request.query_params, "stream"):
            raise InvalidRequest("stream: a kept response comes in one piece", param="stream")
        kept = self._store.get(request.path_params["name"])
        return Response(kept.response, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._store.delete(name)
        return json_response({"id": name, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """Those of the conversation before it among them."""
        page = _page(request)
        items = self._store.get(request.path_params["name"]).items()
        if page.order == "desc":
            items.reverse()
        rest = _after(items, page.after)
        data = rest[: page.limit]
        return json_response(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(rest) > len(data),
            }
        )


def _page(request: Request) -> Page:
    asked = {name: single(request.query_params, name) for name in Page.__struct_fields__}
    fields: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if fields.get("limit", "").isdecimal():
        fields["limit"] = int(fields["limit"][:9])
    return decode(fields, Page)


def _after(items: list[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    if name is None:
        return items
    places = [i for i, item in enumerate(items) if item["id"] == name]
    if not places:
        raise InvalidRequest(f"after: there is no item {name[:200]!r}", param="after")
    return items[places[0] + 1 :]
