"""What the router refuses: paths that no route has, and methods that a route does not take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hotswap.api.errors import error_response
from hotswap.errors import HotswapError, InvalidRequest, MethodNotAllowed, RouteNotFound

MANAGEMENT_PATHS = frozenset(
    (
        "/v1/load_model",
        "/v1/unload_model",
        "/models/load",
        "/models/unload",
        "/models/sse",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
    )
)
_MISTYPED = re.compile(r"(/+[A-Za-z0-9_-]{1,32}){1,6}/*")
"""What may be a slip: names and nothing else. Who looks for holes asks for files, with a dot."""
_LONGEST = 64
_ALIKE = 0.85
"""How alike a slip and a path must be: most begin alike."""


class Unrouted:
    """Answers, in the envelope, for the routes that there are."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._near = NearPaths(route.path for route in self._routes)

    async def answer(self, request: Request, raised: Exception) -> Response:
        assert isinstance(raised, HTTPException)
        path, headers = request.scope["path"], dict(raised.headers or {})
        error: HotswapError
        if raised.status_code == 404:
            error = RouteNotFound(self._no_route(path))
        elif raised.status_code == 405:
            allowed = self._allowed(path)
            headers["Allow"] = ", ".join(allowed)
            error = MethodNotAllowed(
                f"this route does not take that method; it takes {' or '.join(allowed)}"
            )
        else:
            error = InvalidRequest(raised.detail)
        return error_response(request.scope, error, headers=headers)

    def _no_route(self, path: str) -> str:
        if path in MANAGEMENT_PATHS:  # there, they would have been found
            return "there is no such route; --dev-mode or --admin-key opens the management routes"
        near = self._near.find(path)
        return f"there is no such route; did you mean {near}?" if near else "there is no such route"

    def _allowed(self, path: str) -> list[str]:
        """Each method has a route of its own."""
        matching = (route.methods or () for route in self._routes if route.path_regex.match(path))
        return sorted({method for methods in matching for method in methods})


class NearPaths:
    """Finds the path that a mistyped one was to be."""

    def __init__(self, paths: Iterable[str]) -> None:
        fixed = {path for path in paths if path != "/" and "{" not in path}
        self._known = {_steps(path): path for path in sorted(fixed)}
        """Of those without parameters, by their steps."""

    def find(self, path: str) -> str | None:
        """Takes well under a millisecond, whatever comes."""
        if len(path) > _LONGEST or not _MISTYPED.fullmatch(path):
            return None
        steps = _steps(path.lower())
        kin = [known for known in self._known if _is_kin(steps, known)]
        if kin:
            return self._known[
                min(kin, key=lambda one: (abs(len(one) - len(steps)), one[0] != "v1"))
            ]
        written = {"/".join(known): known for known in self._known}
        close = difflib.get_close_matches("/".join(steps), written, n=1, cutoff=_ALIKE)
        return self._known[written[close[0]]] if close else None


def _steps(path: str) -> tuple[str, ...]:
    return tuple(step for step in path.split("/") if step)


def _is_kin(steps: Sequence[str], known: Sequence[str]) -> bool:
    """One is the other's end, or ``steps``, if they are several, the beginning of ``known``."""
    least = min(len(steps), len(known))
    is_end = steps[-least:] == known[-least:]
    return is_end or (1 < len(steps) < len(known) and known[: len(steps)] == steps)
