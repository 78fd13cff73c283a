"""Tells the server to stop at random moments and sees whether anybody loses an answer by it.

    python -m bench.stops [--times 200] [--seed 0]

Each time `hotswap demo` is started, brought to one of the moments below, and sent SIGTERM a random
while later. It must exit with 0, and soon; a stream that has begun must come to its own end, which
all of these do well within the drain time; a request that waits must be answered or be told (503).
If that is not so once, the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import LOOPBACK

SUMS, TALES = "hotswap/sums", "hotswap/tales"
STREAMS = 3
TALE_TOKENS = 400
LONGEST_WAIT_S = 0.3
"""Between a moment and the signal."""
EXIT_S = 30.0
"""How long stopping may take; what runs takes a second or two."""

_READY = re.compile(rb"ready at http://[^:]+:(\d+)")
_LISTENS = re.compile(rb"starting hotswap \S+ at http://[^:]+:(\d+)")


@dataclass
class Stop:
    """One start, moment and stop."""

    moment: str
    exit_code: int | None = None
    """None: it did not stop in time."""
    seconds: float = 0.0
    """From the signal to the exit."""
    answers: list[str] = field(default_factory=list)
    """"whole", "told" (503), "unheard" (the connection ended before the server said anything) or
    "cut". All of them are of requests that the server has read before the signal."""
    log: str = ""

    @property
    def in_order(self) -> bool:
        return self.exit_code == 0 and set(self.answers) <= {"whole", "told"}


class Server:
    """A server process, as far as this program talks to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.output = bytearray()
        self._written = asyncio.Condition()

    async def follow(self) -> None:
        """Keep what it writes, to its end."""
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(4096):
            async with self._written:
                self.output += data
                self._written.notify_all()
        async with self._written:
            self._written.notify_all()

    async def says(self, pattern: re.Pattern[bytes]) -> None:
        """Wait for a line that tells the port."""
        async with asyncio.timeout(EXIT_S), self._written:
            await self._written.wait_for(lambda: pattern.search(self.output))
        found = pattern.search(self.output)
        assert found is not None
        self.port = int(found[1])


@dataclass
class Asking:
    """A request and what came of it."""

    task: asyncio.Task[str]
    begun: asyncio.Event
    """The server has said something."""


class Round:
    """One server, brought to its moment."""

    def __init__(self, server: Server, tasks: asyncio.TaskGroup) -> None:
        self.server = server
        self.asked: list[Asking] = []
        self._tasks = tasks

    def ask(self, model: str, *, stream: bool) -> Asking:
        begun = asyncio.Event()
        task = self._tasks.create_task(_answer(self.server.port, model, begun, stream=stream))
        asking = Asking(task, begun)
        self.asked.append(asking)
        return asking

    async def heard(self) -> None:
        """What was asked so far has been read by the server: it was sent before these."""
        for _ in range(3):
            status, _ = await _exchange(self.server.port, b"GET", b"/livez", b"", asyncio.Event())
            assert status == 200

    async def phase(self) -> str:
        port = self.server.port
        _, answer = await _exchange(port, b"GET", b"/health", b"", asyncio.Event())
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["phase"])


Moment = Callable[[Round], Coroutine[Any, Any, None]]


async def idle(run: Round) -> None:
    await run.server.says(_READY)


async def importing(run: Round) -> None:
    """It listens, and imports torch; a request waits for it."""
    await run.server.says(_LISTENS)
    run.ask(SUMS, stream=False)
    await run.heard()


async def streaming(run: Round) -> None:
    """Streams of the model that is there."""
    await run.server.says(_READY)
    for asking in [run.ask(SUMS, stream=True) for _ in range(STREAMS)]:
        await asking.begun.wait()


async def loading(run: Round) -> None:
    """Another model is wanted, and nobody uses the one that is there."""
    await run.server.says(_READY)
    run.ask(TALES, stream=True)
    await run.heard()


async def draining(run: Round) -> None:
    """Another model is wanted, and the one that is there ends its answers first."""
    await streaming(run)
    waiting = run.ask(TALES, stream=True)
    while not waiting.begun.is_set():
        if await run.phase() == "draining":
            break


MOMENTS: dict[str, Moment] = {
    moment.__name__: moment for moment in (idle, importing, streaming, loading, draining)
}


async def stop_once(name: str, wait_s: float, home: Path) -> Stop:
    """Start a server, bring it to a moment, wait, and tell it to stop."""
    stop = Stop(name)
    async with _server(home) as server, asyncio.TaskGroup() as tasks:
        run = Round(server, tasks)
        await MOMENTS[name](run)
        await asyncio.sleep(wait_s)
        told = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(EXIT_S):
                stop.exit_code = await server.process.wait()
        except TimeoutError:
            server.process.kill()
        stop.seconds = time.perf_counter() - told
    stop.answers = [asking.task.result() for asking in run.asked]
    stop.log = server.output.decode(errors="replace")
    return stop


async def stops(times: int, seed: int, report: Callable[[Stop], None]) -> list[Stop]:
    """As many stops, at each moment in turn."""
    chosen = random.Random(seed)
    made = []
    with tempfile.TemporaryDirectory() as home:
        for number in range(times):
            name = list(MOMENTS)[number % len(MOMENTS)]
            stop = await stop_once(name, chosen.uniform(0.0, LONGEST_WAIT_S), Path(home))
            report(stop)
            made.append(stop)
    return made


@asynccontextmanager
async def _server(home: Path) -> AsyncIterator[Server]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HOTSWAP_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hotswap", "demo", "--host", LOOPBACK, "--port", "0"),
        *("--patience-s", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )
    server = Server(process)
    following = asyncio.create_task(server.follow())
    try:
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await following


async def _answer(port: int, model: str, begun: asyncio.Event, *, stream: bool) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a small dragon."}],
        "max_tokens": TALE_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }
    try:
        status, received = await _exchange(
            port, b"POST", b"/v1/chat/completions", json.dumps(body).encode(), begun
        )
    except ConnectionError:
        status, received = 0, b""
    if status == 503:
        return "told"
    if not status:
        return "unheard"
    whole = b"data: [DONE]" if stream else b'"finish_reason"'
    if whole in received and b'"error"' not in received:
        return "whole"
    return "cut"


async def _exchange(
    port: int, method: bytes, path: bytes, body: bytes, begun: asyncio.Event
) -> tuple[int, bytes]:
    """Status and everything that came; status 0 where nothing came."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(
            b"%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (method, path, LOOPBACK.encode(), len(body), body)
        )
        received = bytearray()
        while data := await reader.read(1 << 16):
            received += data
            begun.set()
    finally:
        begun.set()
        writer.close()
    return (int(received.split(maxsplit=2)[1]) if received else 0), bytes(received)


def tell(stop: Stop) -> None:
    """One line for a stop, and its log where it was not in order."""
    verdict = "" if stop.in_order else "  NOT IN ORDER\n" + stop.log
    counted = ", ".join(f"{count} {what}" for what, count in Counter(stop.answers).items())
    print(
        f"{stop.moment:10} exit {stop.exit_code} after {stop.seconds:.2f} s  {counted}{verdict}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    made = asyncio.run(stops(asked.times, asked.seed, tell))
    bad = [stop for stop in made if not stop.in_order]
    answers = Counter(answer for stop in made for answer in stop.answers)
    print(f"{len(made)} stops, {len(bad)} not in order; answers: {dict(answers)}; ", end="")
    print(f"slowest exit {max(stop.seconds for stop in made):.2f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
