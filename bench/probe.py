"""Asks a server whether it lives, from a process of its own, which nothing else keeps busy.

    python -m bench.probe PORT [PATH]

Every 20 ms, whether or not the last answer has come: how long each took, counted from when it was
due, is printed as a JSON list of seconds when the standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.client import BadAnswer, Connection

PAUSE_S = 0.02


async def probe(port: int, path: str, ends: asyncio.Event) -> list[float]:
    """Seconds that each probe took.

    Raises:
        BadAnswer: one was not answered with 200.
    """
    waits: list[float] = []
    due = time.perf_counter()
    async with Connection(port) as connection:
        while not ends.is_set():
            status = await connection.get(path)
            if status != 200:
                raise BadAnswer(f"GET {path}: {status}")
            waits.append(time.perf_counter() - due)
            due += PAUSE_S
            with suppress(TimeoutError):
                await asyncio.wait_for(ends.wait(), max(0.0, due - time.perf_counter()))
    return waits


@contextmanager
def probing(port: int, path: str) -> Iterator[list[float]]:
    """Probe for as long as the block lasts; what is yielded is filled behind it.

    Raises:
        BadAnswer: the probing ended early; it has said why.
    """
    waits: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-m", "bench.probe", str(port), path],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield waits
        finally:
            told, _ = process.communicate()
    if process.returncode:
        raise BadAnswer(f"probing {path} ended with {process.returncode}")
    waits += json.loads(told)


async def _main(port: int, path: str = "/livez") -> None:
    ends = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ends.set)  # its end can be read
    print(json.dumps(await probe(port, path, ends)))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), *sys.argv[2:]))
