"""Query parameters: one value each, and a known one. What would be ignored is refused."""

from __future__ import annotations

from starlette.datastructures import QueryParams

from hotswap.errors import InvalidRequest

TRUTH = {"false": False, "true": True, "0": False, "1": True}


def single(query: QueryParams, name: str) -> str | None:
    """The value of a parameter; None: it is not there.

    Raises:
        InvalidRequest: it is there several times, and who reads the first of them does something
            else than who reads the last.
    """
    values = query.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(f"{name}: may be given once, not {len(values)} times", param=name)
    return values[0] if values else None


def truth(query: QueryParams, name: str) -> bool | None:
    """Whether a parameter says yes; None: it is not there.

    Raises:
        InvalidRequest: it says something else, or is there several times.
    """
    written = single(query, name)
    if written is None:
        return None
    meaning = TRUTH.get(written.lower())
    if meaning is None:
        raise InvalidRequest(f"{name}: must be one of {', '.join(TRUTH)}", param=name)
    return meaning
