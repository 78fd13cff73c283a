"""What came of the requests so far, counted where all dialects meet; `/metrics` tells of it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate

from hotswap.api.dialect import Stamp

_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""From an answer that had only to be begun to one whose model was read from a slow disk."""
_GONE = "gone"
"""For whoever left before there was a status."""


class Traffic:
    """Counts only; on the event loop, which all of its callers are on."""

    def __init__(self) -> None:
        # What is alerted on is there from the start: a rate needs a zero to begin from.
        self._statuses = Counter(dict.fromkeys(("200", "429", "500", "503", _GONE), 0))
        self._first_tokens = [0] * (len(_BOUNDS_S) + 1)
        self._first_token_s = 0.0

    def answered(self, status: int | None) -> None:
        """Args: status: None: nobody waited for one."""
        self._statuses[_GONE if status is None else str(status)] += 1

    def ended(self, stamp: Stamp) -> None:
        """An answer, whole or not; it counts if a token had come."""
        if stamp.first is not None:
            waited_s = stamp.first - stamp.asked
            self._first_tokens[bisect_left(_BOUNDS_S, waited_s)] += 1
            self._first_token_s += waited_s

    @property
    def statuses(self) -> Mapping[str, int]:
        return self._statuses

    @property
    def first_token_s(self) -> float:
        """Seconds from request to first token, of all answers together."""
        return self._first_token_s

    def first_tokens_within(self) -> Iterator[tuple[str, int]]:
        """How many took so many seconds at most, by these seconds; the last are all of them."""
        return zip((*map(str, _BOUNDS_S), "+Inf"), accumulate(self._first_tokens), strict=True)
