"""Answers of ``/v1/responses`` that may be looked up and continued, for as long as there is room.

They are kept as the JSON that they are sent as: that is what they cost, and the garbage collector
has nothing to look at.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Any

import msgspec

from hotswap.api.errors import ResponseNotFound

MAX_RESPONSES = 4096
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer: what it was given, whole conversation included, and what it said."""

    input: bytes
    """A JSON list of items."""
    response: bytes
    """A JSON object."""

    @property
    def size_bytes(self) -> int:
        return len(self.input) + len(self.response)

    def items(self) -> list[dict[str, Any]]:
        """What was given."""
        items: list[dict[str, Any]] = msgspec.json.decode(self.input)
        return items

    def output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = msgspec.json.decode(self.response)["output"]
        return output


class ResponseStore:
    """The least recently used one goes first. From any thread."""

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._secret = secrets.token_bytes(32)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = Lock()
        self.size_bytes = 0

    def suffix(self, key: str) -> str:
        """What ids of an answer end with. Who knows other ids cannot guess it: it opens a
        conversation."""
        return blake2b(key.encode(), key=self._secret, digest_size=16).hexdigest()

    def keep(self, name: str, kept: Kept) -> None:
        """Unless it alone would take all the room."""
        if kept.size_bytes > self._max_bytes:
            return
        with self._lock:
            self._forget(name)
            self._kept[name] = kept
            self.size_bytes += kept.size_bytes
            while self.size_bytes > self._max_bytes or len(self._kept) > self._max_responses:
                self._forget(next(iter(self._kept)))

    def find(self, name: str) -> Kept | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def get(self, name: str) -> Kept:
        """As `find`. Raises: ResponseNotFound."""
        kept = self.find(name)
        if kept is None:
            raise _not_found(name)
        return kept

    def delete(self, name: str) -> None:
        """Raises: ResponseNotFound."""
        with self._lock:
            if not self._forget(name):
                raise _not_found(name)

    def item(self, name: str) -> Mapping[str, Any] | None:
        """An item of an answer's output, by the item's id."""
        suffix = name.split("_")[1] if name.count("_") == 2 else ""
        kept = self.find(f"resp_{suffix}")
        output = kept.output() if kept else []
        return next((item for item in output if item["id"] == name), None)

    def _forget(self, name: str) -> bool:
        kept = self._kept.pop(name, None)
        self.size_bytes -= kept.size_bytes if kept else 0
        return kept is not None


def _not_found(name: str) -> ResponseNotFound:
    return ResponseNotFound(f"there is no response {name[:200]!r} here, or not any more")
