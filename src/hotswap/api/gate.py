"""Who may come in. One layer outside the router: what it does not know, it refuses."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from hotswap.api.headers import ambiguous_length, header
from hotswap.config import ServerConfig, is_loopback
from hotswap.errors import InvalidApiKey, InvalidRequest, NotPermitted, Overloaded

OPEN_PATHS = frozenset(("/health", "/livez", "/readyz"))
_HOST = re.compile(r"(?:\[([0-9a-f:.]*:[0-9a-f:.]*)\]|([^:\[\]]*?)\.?)(?::[0-9]{1,5})?")
"""A name, or an IPv6 address in brackets, and perhaps a port."""
_LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


class Caller(IntEnum):
    """What a request has shown of itself."""

    UNKNOWN = 0
    USER = 1
    ADMIN = 2


class Gate:
    """Checks framing, ``Host`` and key of every request; unknown routes included."""

    def __init__(self, app: ASGIApp, *, server: ServerConfig) -> None:
        self._app = app
        self._users = tuple(key.encode() for key in server.api_keys)
        self._admins = (server.admin_key.encode(),) if server.admin_key else ()
        self._hosts = _known_hosts(server)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if ambiguous_length(scope):
            raise InvalidRequest("content-length and transfer-encoding exclude each other")
        self._check_host(scope)
        caller = self._caller(scope)
        scope["state"]["caller"] = caller
        if self._users and caller is Caller.UNKNOWN and scope["path"] not in OPEN_PATHS:
            raise InvalidApiKey("a valid API key is needed, as bearer token or x-api-key")

    def _check_host(self, scope: Scope) -> None:
        """A page of a foreign site whose name was rebound to 127.0.0.1 must not get through."""
        if self._hosts is None:
            return
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not given:
            raise NotPermitted("a Host header is needed, as HTTP/1.1 has it")
        for host in given:
            if _host_name(host) not in self._hosts:
                raise NotPermitted(
                    f"the Host header {host[:200]!r} is not one of this server; "
                    "list its origin in --cors-origins to allow it"
                )

    def _caller(self, scope: Scope) -> Caller:
        given = _presented(scope)
        if _any_equal(given, self._admins):
            return Caller.ADMIN
        return Caller.USER if _any_equal(given, self._users) else Caller.UNKNOWN


class Crowd:
    """Lets in no more requests at a time than there may be, the health of the server aside. Each
    holds a connection, and a body that may be large."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app = app
        self._most = most
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._inside >= self._most:
            raise Overloaded(f"{self._inside} requests are in hand, and there may be no more")
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1


class Management:
    """Wraps a management route: in dev mode for whoever came in, else for the admin key."""

    def __init__(self, app: ASGIApp, *, dev_mode: bool) -> None:
        self._app = app
        self._dev_mode = dev_mode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["state"]["caller"]
        if not self._dev_mode and caller is not Caller.ADMIN:
            if caller is Caller.USER:
                raise NotPermitted("this route needs the admin key")
            raise InvalidApiKey("this route needs the admin key")
        await self._app(scope, receive, send)


def _presented(scope: Scope) -> list[bytes]:
    keys = [header(scope, b"x-api-key")]
    scheme, _, token = header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        keys.append(token.strip())
    return [key.encode("latin-1") for key in keys if key]


def _any_equal(given: Iterable[bytes], known: Sequence[bytes]) -> bool:
    matches = [hmac.compare_digest(one, other) for one in given for other in known]
    return any(matches)  # after all of them, so that the time does not tell which one matched


def _known_hosts(server: ServerConfig) -> frozenset[str] | None:
    """Host names that a request may use; None: any."""
    if not is_loopback(server.host) or "*" in server.cors_origins:
        return None
    origins = (urlsplit(origin).hostname for origin in server.cors_origins)
    return _LOCAL_NAMES | {server.host.lower()} | {name for name in origins if name}


def _host_name(host: str) -> str | None:
    """``host`` without port and brackets; None: it is no host."""
    match = _HOST.fullmatch(host.lower())
    return match and (match[1] or match[2])
