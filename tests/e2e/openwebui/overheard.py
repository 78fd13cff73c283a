"""The command `hotswap`, which writes down what it is asked and what it answers.

    python tests/e2e/openwebui/overheard.py FILE [arguments of hotswap]

FILE gets a line of JSON for each thing that happens to a request: it was asked, began to be
answered, was left by its client, ended. `Overheard` reads them.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

_numbers = itertools.count()


@dataclass
class Exchange:
    """A request and its answer. Times are monotonic, in seconds: the same in every process."""

    asked_at: float
    method: str
    path: str
    body: Any
    """JSON; None: there was none."""
    status: int | None = None
    answer: str = ""
    left_at: float | None = None
    """When the client went away before all was sent."""
    ended_at: float | None = None

    @property
    def took_s(self) -> float:
        """Until all was sent; infinite, where that did not happen."""
        return math.inf if self.ended_at is None else self.ended_at - self.asked_at

    @property
    def events(self) -> list[Any]:
        """Of a stream; "[DONE]" as that text."""
        lines = [line.removeprefix("data: ") for line in self.answer.split("\n")]
        return [_value(line) for line in lines if line and not line.startswith(":")]

    @property
    def choices(self) -> list[Any]:
        """Of a stream's chunks."""
        return [event["choices"][0] for event in self.events if "choices" in event]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content", "") for choice in self.choices)

    @property
    def finish_reason(self) -> str | None:
        return self.choices[-1]["finish_reason"] if self.choices else None


@dataclass
class Overheard:
    file: Path
    _read: int = 0
    _exchanges: dict[int, Exchange] = field(default_factory=dict)

    def exchanges(self, path: str = "", method: str = "POST") -> list[Exchange]:
        """In the order in which they were asked, those for paths that end with ``path``."""
        self._read_on()
        found = sorted(self._exchanges.values(), key=lambda exchange: exchange.asked_at)
        return [one for one in found if one.method == method and one.path.endswith(path)]

    def _read_on(self) -> None:
        with self.file.open() as file:
            file.seek(self._read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):  # it is being written
                    return
                self._take(**json.loads(line))
                self._read = file.tell()

    def _take(self, number: int, at: float, **said: Any) -> None:
        if "method" in said:
            self._exchanges[number] = Exchange(asked_at=at, **said)
            return
        exchange = self._exchanges[number]
        exchange.answer += said.pop("piece", "")
        if said.pop("left", False):
            exchange.left_at = at
        if said.pop("ended", False):
            exchange.ended_at = at
        exchange.status = said.pop("status", exchange.status)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Overhearing:
    """An ASGI app in front of another one."""

    def __init__(self, app: Any, file: Path) -> None:
        self._app = app
        self._file = file.open("a", buffering=1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        heard = _Heard(scope, receive, send, partial(self._note, next(_numbers)))
        await self._app(scope, heard.receive, heard.send)

    def _note(self, number: int, **said: Any) -> None:
        self._file.write(json.dumps({"number": number, "at": time.monotonic(), **said}) + "\n")


class _Heard:
    """One request."""

    def __init__(self, scope: Any, receive: Any, send: Any, note: Callable[..., None]) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._note = note
        self._body: list[bytes] = []
        self._asked = False
        self._over = False

    async def receive(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body.append(message["body"])
            if not message["more_body"]:
                self._ask()
        elif not self._over:
            self._note(left=True)
        return message

    async def send(self, message: Any) -> None:
        self._ask()  # not everybody reads a body
        if message["type"] == "http.response.start":
            self._note(status=message["status"])
        else:
            self._over = not message.get("more_body")
            self._note(piece=message.get("body", b"").decode(), ended=self._over)
        await self._send(message)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            text = b"".join(self._body).decode()
            body = _value(text) if text else None
            self._note(method=self._scope["method"], path=self._scope["path"], body=body)


def main() -> None:
    from hotswap import server
    from hotswap.__main__ import command
    from hotswap.api.app import create_app

    file = Path(sys.argv.pop(1))

    def overheard_app(*arguments: Any) -> Any:
        return Overhearing(create_app(*arguments), file)

    vars(server)["create_app"] = overheard_app
    command()


if __name__ == "__main__":
    main()
