"""How many tokens a request's prompt is, asked before it is sent to be answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.types import Receive, Scope, Send

from hotswap.api.body import read_object
from hotswap.api.documents import json_response
from hotswap.api.sse import while_connected
from hotswap.contracts.requests import GenerationRequest
from hotswap.contracts.service import ModelService


class TokenCount:
    """An ASGI app for the route of one dialect; ``fields`` stand beside the number."""

    def __init__(
        self,
        service: ModelService,
        parse: Callable[[dict[str, Any]], GenerationRequest],
        **fields: Any,
    ) -> None:
        self._service = service
        self._parse = parse
        self._fields = fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parsed = await read_object(receive, scope, self._parse)
        request = replace(parsed, request_id=scope["state"]["request_id"])
        async with while_connected(receive):
            tokenized = await self._service.tokenize(request)
        count = sum(map(len, tokenized.ids))
        await json_response({**self._fields, "input_tokens": count})(scope, receive, send)
