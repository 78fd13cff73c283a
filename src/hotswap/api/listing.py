"""The model listing: ``/v1/models``, ``/models`` and one model by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hotswap.api.documents import json_response
from hotswap.api.headers import is_anthropic
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.service import ModelService


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
        return self._responses[is_anthropic(request.scope)]

    async def one(self, request: Request) -> Response:
        """The name may hold slashes, raw or encoded: the server has decoded the path."""
        written = anthropic_entry if is_anthropic(request.scope) else entry
        return json_response(written(await self._service.model(request.path_params["name"])))


def _responses(listings: tuple[ModelListing, ...]) -> dict[bool, Response]:
    """By whether the client is Anthropic's."""
    page = {
        "has_more": False,
        "first_id": listings[0].id if listings else None,
        "last_id": listings[-1].id if listings else None,
    }
    ours = {"object": "list", "data": [entry(one) for one in listings]}
    theirs = {"object": "list", "data": [anthropic_entry(one) for one in listings], **page}
    return {False: json_response(ours), True: json_response(theirs)}


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
