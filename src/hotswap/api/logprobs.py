"""Log-probabilities of tokens, as most dialects write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hotswap.contracts.answers import TokenLogprob

_LEAST = -9999.0
"""What OpenAI writes for minus infinity, which JSON cannot."""


def written(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


def token_logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Each token with the likeliest ones beside it."""
    return [{**_one(token), "top_logprobs": list(map(_one, token.top))} for token in tokens]


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": written(token.logprob), "bytes": list(token.raw)}
