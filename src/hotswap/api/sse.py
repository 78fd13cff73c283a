"""Server-sent events over raw ASGI, and noticing who left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Send

from hotswap.api.dialect import EVENT_STREAM
from hotswap.api.errors import ClientGone, leaf_of
from hotswap.api.outbox import Outbox
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.errors import HotswapError

_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def comment(text: str) -> bytes:
    """A line that clients skip; whatever ``text`` holds, it stays one line."""
    return f": {_one_line(text)}\n\n".encode(errors="replace")


def progress_text(snapshot: SwapSnapshot) -> str:
    progress = snapshot.progress
    if progress is None:
        return "waiting"
    text = f"loading {_one_line(progress.model[:200])} {progress.value:.0%}"
    if progress.stage == "waiting" and snapshot.resident is not None:
        return f"{text}, waiting for answers of {_one_line(snapshot.resident.id[:200])}"
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


class EventStream:
    """The sending side. The 200 goes out with the first event, not before."""

    def __init__(self, send: Send, media_type: str = EVENT_STREAM) -> None:
        self._send = send
        self._headers = [(b"content-type", media_type.encode()), *_HEADERS]
        self.started = False

    async def write(self, data: bytes) -> None:
        await self._write(data, more=True)

    async def finish(self, data: bytes = b"") -> None:
        """Write the last ``data``, and end the answer."""
        await self._write(data, more=False)

    async def send_from(self, outbox: Outbox, failure: Callable[[HotswapError], bytes]) -> None:
        """Send what comes to the outbox; last, what ``failure`` makes of the error it closed with.

        Raises:
            HotswapError: it closed with one before anything was sent.
        """
        while True:
            await outbox.filled()
            error = outbox.error
            if error and not self.started:
                raise error
            body = outbox.take()
            if outbox.drained:
                break
            await self.write(body)
        await self.finish(body + failure(error) if error else body)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.started:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._headers}
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[TaskGroup]:
    """A task group that is cancelled when the client leaves. The request body has been read.

    Raises:
        ClientGone: it left.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield tasks
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise leaf_of(group) from None
    if gone:
        raise ClientGone
