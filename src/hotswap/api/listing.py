"""The model listing: ``/v1/models``, ``/models`` and one model by name."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hotswap.api.documents import json_response
from hotswap.contracts import ModelListing, ModelService


class ListingRoutes:
    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._listings: tuple[ModelListing, ...] = ()
        self._response = _response(self._listings)
        """What is sent for as long as the service gives out the same listings."""

    async def all(self, _: Request) -> Response:
        listings = await self._service.models()
        if listings != self._listings:
            self._listings, self._response = listings, _response(listings)
        return self._response

    async def one(self, request: Request) -> Response:
        """The name may hold slashes, raw or encoded: the server has decoded the path."""
        return json_response(entry(await self._service.model(request.path_params["name"])))


def _response(listings: tuple[ModelListing, ...]) -> Response:
    return json_response({"object": "list", "data": [entry(one) for one in listings]})


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
