"""What wraps every request: its id, its line in the log, and an answer whatever happens."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from hotswap.api.body import Incoming
from hotswap.api.dialect import random_id
from hotswap.api.errors import ClientGone, error_response, presentable
from hotswap.api.headers import header
from hotswap.api.traffic import Traffic
from hotswap.contracts.progress import Progress

_access = logging.getLogger("hotswap.access")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SEND_DEADLINE_S = 60.0


class Edge:
    """The outermost layer, of HTTP requests only; there are no websockets here.

    Every answer carries ``x-request-id``. One that comes early reads what the client is still
    sending, so that it arrives. A client that takes nothing for a minute counts as gone.
    """

    def __init__(self, app: ASGIApp, *, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await WebSocketClose()(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(scope, receive, send, request_id)
        started = time.perf_counter()
        try:
            with exchange.lifetime:
                await self._app(scope, exchange.incoming, exchange.send)
        except ClientGone:
            pass  # nobody is left to answer; the line below tells how far it went
        finally:
            importance = _importance(scope["method"], exchange.status)
            if importance >= logging.INFO:
                self._traffic.answered(exchange.status)
            _access.log(
                importance,
                "%s %s %s %.1f ms %s",
                scope["method"],
                repr(scope["path"][:200]),
                exchange.status or "gone",
                (time.perf_counter() - started) * 1000,
                request_id,
            )


class _Exchange:
    """One request's two directions."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.incoming = Incoming(receive, scope)
        self.status: int | None = None
        self.lifetime = anyio.CancelScope()
        """Ends, and the exchange in it, when the client takes nothing for too long."""
        self._send = send
        self._request_id = request_id
        self._closable = scope["http_version"].startswith("1")
        self._early = False
        """The client has not sent all of a body that nobody wants."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = await self._begun(message)
        elif self._early and not message.get("more_body", False):
            await self._end_early(message)
            return
        await self._deliver(message)

    async def _end_early(self, message: Message) -> None:
        """An answer that has ended closes the connection, so its end waits. By its length the
        client knows that it has all of it."""
        if self._closable:
            await self._deliver({**message, "more_body": True})
            await self.incoming.linger()
            message = {"type": "http.response.body"}
        async with anyio.create_task_group() as tasks:
            # The server cannot end a request while its queue is full of a body.
            tasks.start_soon(self.incoming.skip)
            await self._deliver(message)
            tasks.cancel_scope.cancel()

    async def _begun(self, message: Message) -> Message:
        status = self.status = message["status"]
        headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        if status >= 400 or self.incoming.announced:
            await self.incoming.discard()
            self._early = not self.incoming.complete
            if self._closable and (self._early or self.incoming.ambiguous):
                headers.append((b"connection", b"close"))
        return {**message, "headers": headers}

    async def _deliver(self, message: Message) -> None:
        # One scope and its deadline moved: a scope for each send costs as much as the send.
        self.lifetime.deadline = anyio.current_time() + _SEND_DEADLINE_S
        try:
            await self._send(message)
        finally:
            self.lifetime.deadline = math.inf


def _importance(method: str, status: int | None) -> int:
    """Of a line in the log. Dashboards and load balancers look every second; what they see when
    all is well is for who looks for it."""
    well = status is not None and status < 400
    return logging.DEBUG if well and method in ("GET", "HEAD") else logging.INFO


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if _SANE_ID.fullmatch(given) else random_id()


class ErrorEnvelope:
    """Turns what is raised further in into an answer. Inside CORS, so that a browser sees it."""

    def __init__(self, app: ASGIApp, *, loading: Callable[[], Progress | None]) -> None:
        self._app = app
        self._loading = loading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except ClientGone:
            raise
        except Exception as raised:
            error = presentable(raised, scope["state"]["request_id"])
            if not started:  # else the connection is cut, which is all that can be said now
                answer = error_response(scope, error, self._loading())
                await answer(scope, receive, send)
