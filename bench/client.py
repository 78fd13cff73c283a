"""Enough of an HTTP/1.1 client to measure servers with: a full one costs more per event than a
fast server, and would be what is measured.

While a stream runs, its bytes are only kept; they are looked into when it has ended.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LOOPBACK = "127.0.0.1"

_CONTENT = re.compile(rb'"content": ?"[^"]')
"""The first text in a stream of chat completion chunks."""
_READ_BYTES = 1 << 16


class BadAnswer(Exception):
    """A server answered something else than was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """One streamed answer. Times are of the performance counter."""

    began: float
    first: float
    """When its first text came."""
    last: float
    prompt_tokens: int
    tokens: int


async def stream_chat(port: int, model: str, text: str, new_tokens: int) -> Streamed:
    """One greedy chat completion.

    Raises:
        BadAnswer: it failed, or does not have as many tokens as were asked for.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    began = time.perf_counter()
    writer.write(request("POST", "/v1/chat/completions", json.dumps(body).encode(), "close"))
    first = last = 0.0
    received = bytearray()
    while data := await reader.read(_READ_BYTES):
        last = time.perf_counter()
        received += data
        if not first and _CONTENT.search(received):
            first = last
    writer.close()
    usage = _usage(bytes(received))
    if not first or usage["completion_tokens"] != new_tokens:
        raise BadAnswer(f"{new_tokens} tokens were asked for and {usage} came")
    return Streamed(
        began=began,
        first=first,
        last=last,
        prompt_tokens=usage["prompt_tokens"],
        tokens=usage["completion_tokens"],
    )


class Connection:
    """A connection that is kept for one GET after the other, and renewed where the server ends it
    (Hypercorn does after 1,000). Use as an async context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = False

    async def __aenter__(self) -> Connection:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def get(self, path: str) -> int:
        """Read the answer to its end; its status. Understands answers with a Content-Length."""
        if self._ended:
            self._writer.close()
            await self._open()
        self._writer.write(request("GET", path, b"", "keep-alive"))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", head)
        if length is None:
            raise BadAnswer(f"GET {path}: no Content-Length")
        await self._reader.readexactly(int(length[1]))
        self._ended = re.search(rb"\r\nconnection: *close", head) is not None
        return int(head.split(maxsplit=2)[1])

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(LOOPBACK, self._port)
        self._ended = False


def request(method: str, path: str, body: bytes, connection: str) -> bytes:
    """Its bytes; ``connection`` is what is to become of it behind the answer."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _usage(response: bytes) -> dict[str, Any]:
    """Of a whole response with chunked server-sent events.

    Raises:
        BadAnswer: it is none, or tells of an error.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise BadAnswer(response[:500].decode(errors="replace"))
    found: dict[str, Any] = {}
    for line in b"".join(chunks(body)).splitlines():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise BadAnswer(str(event["error"]))
        found = event.get("usage") or found
    if not found:
        raise BadAnswer("a stream without its usage")
    return found


def chunks(body: bytes) -> Iterator[bytes]:
    """What is in the chunks of a body in chunked transfer coding."""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        yield rest[:length]
        body = rest[length + 2 :]
