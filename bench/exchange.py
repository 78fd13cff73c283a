"""One request and its JSON answer, where the time that a client takes does not matter."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.client import LOOPBACK

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What came back."""

    status: int
    body: Any


async def exchange(
    port: int, method: str, path: str, body: Mapping[str, Any] | None = None
) -> Exchanged:
    """Over a connection of its own, in a thread.

    Raises:
        OSError, http.client.HTTPException: there is no answer.
        json.JSONDecodeError: it is not JSON.
    """
    return await asyncio.to_thread(_exchange, port, method, path, body)


def _exchange(port: int, method: str, path: str, body: Mapping[str, Any] | None) -> Exchanged:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_TIMEOUT_S)
    sent = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json", "Connection": "close"}
    try:
        connection.request(method, path, sent, headers)
        response = connection.getresponse()
        return Exchanged(response.status, json.loads(response.read()))
    finally:
        connection.close()
