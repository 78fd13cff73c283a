"""Whether clients that do not read what they asked for slow down those that do."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from contextlib import ExitStack

from bench.client import LOOPBACK, BadAnswer, request

STREAMS = 4
TOKENS = 200
_READ_BYTES = 1 << 16
_SMALL_BUFFER_BYTES = 4096


async def shares(port: int, model: str, rounds: int) -> tuple[float, ...]:
    """In each round the tokens/s of some streams beside as many stalled ones, as a share of what
    they get beside ones like themselves: both compute the same."""
    await _rate(port, model, stalled=False)
    found = []
    for _ in range(rounds):
        beside_stalled = await _rate(port, model, stalled=True)
        found.append(beside_stalled / await _rate(port, model, stalled=False))
    return tuple(found)


async def _rate(port: int, model: str, *, stalled: bool) -> float:
    """Tokens/s of the median stream."""
    with ExitStack() as leaving:
        for _ in range(STREAMS if stalled else 0):
            connection = leaving.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
            connection.connect((LOOPBACK, port))
            connection.sendall(_asked(model))
        reading = STREAMS if stalled else 2 * STREAMS
        seconds = await asyncio.gather(*(stream(port, model) for _ in range(reading)))
    return TOKENS / statistics.median(seconds)


async def stream(port: int, model: str) -> float:
    """Seconds from its first to its last byte.

    Raises:
        BadAnswer: it is not whole.
    """
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(_asked(model))
    received = await reader.read(_READ_BYTES)
    began = time.perf_counter()
    while data := await reader.read(_READ_BYTES):
        received += data
    writer.close()
    if b"data: [DONE]" not in received:
        raise BadAnswer(received[:500].decode(errors="replace"))
    return time.perf_counter() - began


def _asked(model: str) -> bytes:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return request("POST", "/v1/chat/completions", json.dumps(body).encode(), "close")
