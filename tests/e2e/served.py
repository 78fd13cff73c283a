"""Start the `hotswap` command as its user would and talk to it over loopback."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai

START_TIMEOUT_S = 120.0


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """What it has written so far, both streams."""
    _written: threading.Condition = field(default_factory=threading.Condition)
    url: str = ""

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._written:
                self.lines.append(line.rstrip("\n"))
                self._written.notify_all()
        with self._written:
            self._written.notify_all()

    def wait_for_line(
        self, pattern: str, timeout_s: float = START_TIMEOUT_S, *, nth: int = 1
    ) -> re.Match[str]:
        """The first line that matches, or the ``nth`` one, as soon as it is written."""

        def found() -> re.Match[str] | None:
            matches = filter(None, (re.search(pattern, line) for line in self.lines))
            return next(itertools.islice(matches, nth - 1, None), None)

        with self._written:
            self._written.wait_for(lambda: found() or self.process.poll() is not None, timeout_s)
            match = found()
        assert match, f"no line like {pattern!r} in:\n" + "\n".join(self.lines)
        return match

    def openai(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=120, **options)

    def status(self) -> dict[str, Any]:
        with self.http() as http:
            status: dict[str, Any] = http.get("/status").json()
        return status

    def resident(self) -> str | None:
        """Id of the model on the device."""
        resident = self.status()["resident"]
        return None if resident is None else str(resident["id"])

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Ask until the server's own account of itself fits."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.status()

    def terminate(self, timeout_s: float = 60.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean one: no settings and no Hub cache of whoever runs the tests."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HOTSWAP_", "HF_", "HUGGINGFACE_"))
    }
    return {**kept, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", **(extra or {})}


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("hotswap")), *arguments]


@contextmanager
def serving(
    *arguments: str,
    home: Path,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
    launcher: Sequence[str] = (),
    stdin: int | None = None,
) -> Iterator[Server]:
    """A server on a free port; with ``ready``, waits until it says what to do next.

    Args:
        launcher: What is started, followed by the arguments, in the place of the command.
        stdin: Its standard input, where that is not the tests' own.
    """
    words = [*arguments, "--port", "0"]
    process = subprocess.Popen(
        [*launcher, *words] if launcher else command(*words),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(home, env),
    )
    server = Server(process)
    reader = threading.Thread(target=server.read, daemon=True)
    reader.start()
    try:
        if ready:
            server.url = server.wait_for_line(r"ready at (http://127\.0\.0\.1:\d+)").group(1)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()
