"""JSON answers of the routes that tell about the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def encode(value: Any) -> bytes:
    """``value``, which may hold the frozen types of `hotswap.contracts`, as JSON."""
    return msgspec.json.encode(value, enc_hook=_plain)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        encode(value), status_code=status, headers=headers, media_type="application/json"
    )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
