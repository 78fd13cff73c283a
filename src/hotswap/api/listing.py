"""The model listing: ``/v1/models``, ``/models`` and one model by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from hotswap.api.documents import json_response
from hotswap.api.headers import is_anthropic
from hotswap.api.query import single
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.service import ModelService
from hotswap.errors import InvalidRequest

PAGING = ("limit", "after_id", "before_id")
"""Query parameters that Anthropic's clients turn pages with."""
_MOST = 1000
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class _Paging:
    limit: int | None = None
    """None: all."""
    after: str | None = None
    before: str | None = None
    """The ids that the page begins after and ends before; the one next to them is always shown."""


class ListingRoutes:
    """A client that says it is Anthropic's finds that API's fields beside OpenAI's."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._listings: tuple[ModelListing, ...] = ()
        self._responses = _responses(self._listings)
        """What is sent for as long as the service gives out the same listings."""

    async def all(self, request: Request) -> Response:
        listings = await self._service.models()
        if listings != self._listings:
            self._listings, self._responses = listings, _responses(listings)
        theirs = is_anthropic(request.scope)
        if theirs and request.query_params.keys() & PAGING:
            return _page(listings, _paging(request.query_params))
        return self._responses[theirs]

    async def one(self, request: Request) -> Response:
        """The name may hold slashes, raw or encoded: the server has decoded the path."""
        written = anthropic_entry if is_anthropic(request.scope) else entry
        return json_response(written(await self._service.model(request.path_params["name"])))


def _responses(listings: tuple[ModelListing, ...]) -> dict[bool, Response]:
    """By whether the client is Anthropic's."""
    ours = {"object": "list", "data": [entry(one) for one in listings]}
    return {False: json_response(ours), True: _page(listings, _Paging())}


def _paging(asked: QueryParams) -> _Paging:
    """
    Raises:
        InvalidRequest: names the query parameter.
    """
    limit, after, before = (single(asked, name) for name in PAGING)
    if limit is not None and not (_NUMBER.fullmatch(limit) and 1 <= int(limit) <= _MOST):
        raise InvalidRequest(f"limit: must be a whole number from 1 to {_MOST}", param="limit")
    if after and before:
        raise InvalidRequest("before_id: not together with after_id", param="before_id")
    return _Paging(int(limit) if limit else None, after or None, before or None)


def _page(listings: Sequence[ModelListing], paging: _Paging) -> Response:
    """Anthropic's answer.

    Raises:
        InvalidRequest: there is no such model to go on from.
    """
    ids = [one.id for one in listings]
    begin, end = 0, len(listings)
    if paging.after is not None:
        begin = _place(ids, paging.after, "after_id") + 1
    if paging.before is not None:
        end = _place(ids, paging.before, "before_id")
    left = max(0, end - begin - paging.limit) if paging.limit is not None else 0
    if paging.before is not None:
        begin += left
    else:
        end -= left
    shown = listings[begin:end]
    return json_response(
        {
            "object": "list",
            "data": [anthropic_entry(one) for one in shown],
            "has_more": left > 0,
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
        }
    )


def _place(ids: Sequence[str], id: str, param: str) -> int:
    if id not in ids:
        raise InvalidRequest(f"{param}: there is no model {id[:200]!r}", param=param)
    return ids.index(id)


def entry(listing: ModelListing) -> dict[str, Any]:
    return {
        "id": listing.id,
        "object": "model",
        "created": listing.created_unix,
        "owned_by": listing.owned_by,
        "aliases": listing.aliases,
        "loaded": listing.status == "loaded",
        "status": {"value": listing.status, **_details(listing)},
        "max_model_len": listing.max_model_len,
        "task": listing.task,
    }


def anthropic_entry(listing: ModelListing) -> dict[str, Any]:
    created = datetime.fromtimestamp(listing.created_unix, UTC)
    return {
        **entry(listing),
        "type": "model",
        "display_name": listing.id,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": listing.max_model_len,
    }


def status_event(listing: ModelListing) -> bytes:
    """The status of one model as a server-sent event."""
    event = {
        "model": listing.id,
        "event": "model_status",
        "data": {"status": listing.status, **_details(listing)},
    }
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _details(listing: ModelListing) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if listing.error is not None:
        details |= {"failed": True, "error": listing.error}
    if listing.progress is not None:
        details["progress"] = {"stage": listing.progress.stage, "value": listing.progress.value}
    return details
