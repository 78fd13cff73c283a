"""What came back for a question whose answer is known, and what is wrong with it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.client import chunks

_REFUSALS = (429, 503)
_RETRY_AFTER_S = range(1, 61)


class Fault(StrEnum):
    """None of these may ever happen."""

    LOST = "requests lost"
    """There is no answer, or one that nobody should get."""
    TRUNCATED = "answers truncated"
    DUPLICATED = "answers duplicated"
    """Something came twice."""
    STRANGER = "answers from the wrong model"
    CHANGED = "answers that changed"
    HASTY = "refusals without Retry-After"


@dataclass(frozen=True, slots=True)
class Known:
    """A greedy answer as it was the first time."""

    text: str
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """On one answer. Without faults it is one of these: the right answer, a refusal that says when
    to come again, or an error that is told in a stream."""

    faults: frozenset[Fault] = frozenset()
    refused: bool = False
    told_late: bool = False
    retry_after_s: float = 0.0
    id: str = ""
    known: Known | None = None
    """What was answered."""


def judge_answer(received: bytes, model: str, known: Known | None) -> Verdict:
    """
    Args:
        received: all that came on the connection.
        model: who was asked.
        known: None: it is the first time.
    """
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 ") or len(head) < 12:
        return Verdict(faults=frozenset({Fault.LOST}))
    status, headers = int(head[9:12]), _headers(head)
    whole = _whole(body, headers)
    if whole is None:
        return Verdict(faults=frozenset({Fault.TRUNCATED}))
    if status in _REFUSALS:
        return _refusal(headers)
    if status != 200:
        return Verdict(faults=frozenset({Fault.LOST}))
    if headers.get("content-type", "").startswith("text/event-stream"):
        return _streamed(whole, model, known)
    document = json.loads(whole)
    heard = _Heard(done=1)
    heard.take_choice(document["choices"][0], document["choices"][0]["message"])
    heard.take_rest(document)
    return heard.verdict(model, known)


def _headers(head: bytes) -> Mapping[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _whole(body: bytes, headers: Mapping[str, str]) -> bytes | None:
    """What the body says, if all of it is there."""
    if headers.get("transfer-encoding") == "chunked":
        return b"".join(chunks(body)) if body.endswith(b"\r\n0\r\n\r\n") else None
    return body if len(body) == int(headers.get("content-length", -1)) else None


def _refusal(headers: Mapping[str, str]) -> Verdict:
    written = headers.get("retry-after", "")
    if not written.isdecimal() or int(written) not in _RETRY_AFTER_S:
        return Verdict(faults=frozenset({Fault.HASTY}), refused=True)
    return Verdict(refused=True, retry_after_s=float(written))


def _streamed(body: bytes, model: str, known: Known | None) -> Verdict:
    heard = _Heard()
    for line in body.split(b"\n"):
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]":
            heard.done += 1
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            heard.told_late = True
            continue
        heard.take_rest(event)
        for choice in event["choices"]:
            heard.take_choice(choice, choice["delta"])
    return heard.verdict(model, known)


@dataclass(slots=True)
class _Heard:
    """An answer, put together."""

    text: str = ""
    done: int = 0
    roles: int = 0
    reasons: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    tokens: int = 0
    told_late: bool = False

    def take_choice(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        self.text += message.get("content") or ""
        self.roles += "role" in message
        if choice.get("finish_reason"):
            self.reasons.append(choice["finish_reason"])

    def take_rest(self, event: Mapping[str, Any]) -> None:
        self.models.add(event["model"])
        self.ids.add(event["id"])
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]

    def verdict(self, model: str, known: Known | None) -> Verdict:
        faults = set()
        if self.models - {model}:
            faults.add(Fault.STRANGER)
        if max(self.done, self.roles, len(self.reasons), len(self.ids)) > 1:
            faults.add(Fault.DUPLICATED)
        if not self.done or (not self.reasons and not self.told_late):
            faults.add(Fault.TRUNCATED)
        if self.told_late:
            return Verdict(faults=frozenset(faults), told_late=True)
        said = Known(self.text, self.tokens, self.reasons[0] if self.reasons else "")
        if not faults and known is not None and said != known:
            faults.add(Fault.CHANGED)
        return Verdict(faults=frozenset(faults), id=next(iter(self.ids), ""), known=said)
