"""Rules that the dialects share, whatever they call their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hotswap.errors import InvalidRequest


def refuse_not_honoured(
    fields: Mapping[str, Any],
    names: Mapping[str, tuple[Any, ...]],
    instead: Mapping[str, str] | None = None,
) -> None:
    """Fields that we know and cannot honour may be there as long as they ask for nothing.

    Args:
        names: of these fields, and what each may be besides null, false and empty.
        instead: what to use for some of them.

    Raises:
        InvalidRequest: names a field that asks for something.
    """
    for name, values in names.items():
        value = fields.get(name)
        if asks_for_something(value) and value not in values:
            what = "not supported with this value" if values else "not supported"
            use = f"; use {instead[name]}" if instead and name in instead else ""
            raise InvalidRequest(f"{name}: {what}{use}", param=name)


def asks_for_something(value: Any) -> bool:
    # By identity, because 0 asks for something where False does not.
    return value is not None and value is not False and value not in ("", [], {})


def effort_of(asked: str | None) -> str | None:
    """In the words of `hotswap.contracts.requests.ChatPrompt`: OpenAI's and Anthropic's
    newest models know more than chat templates do."""
    return "high" if asked in ("xhigh", "max") else asked


def top_k_of(asked: int | None) -> int | None:
    """-1 is off, as 0 is."""
    return 0 if asked == -1 else asked


def seed_of(asked: int | None) -> int | None:
    """-1 is none."""
    return None if asked == -1 else asked


def stops_of(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    return (asked,) if isinstance(asked, str) else tuple(asked or ())


def logprobs_of(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """As `hotswap.contracts.requests.GenerationRequest` has them.

    Raises:
        InvalidRequest: the second is asked for without the first.
    """
    if logprobs:
        return top_logprobs or 0
    if top_logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return None
