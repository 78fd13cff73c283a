"""Many swaps under load, with faults in between, and what must not have changed after them."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.client import LOOPBACK, BadAnswer
from bench.exchange import exchange
from bench.figures import Figure, Wanted
from bench.regression import slope
from bench.servers import Server, ServerFailed

SETTLED_AFTER_SWAPS = 10
"""By then everything that is made once has been made."""
FEWEST_SWAPS_FOR_SLOPE = 100
SLOPE_BOUND_MB = 1.0

_ANSWER_TOKENS = 8
_PROMPTS = 4
_BURST = 8
"""More requests at once than clients."""
_STATUS_PAUSE_S = 0.02
_SETTLE_TIMEOUT_S = 20.0
_SETTLED_S = 1.0
_BROKEN_BYTES = 100_000
_REFUSALS = (range(400, 500), range(503, 504))

SLOPE, LOST, CHANGED = "resident memory per 100 swaps", "requests lost", "answers that changed"
UNTOLD, THREADS, DESCRIPTORS = "faults not told", "threads more", "file descriptors more"
LEAKED, ALARMS = "bytes left behind by a teardown", "false alarms of the watchdog"


@dataclass(frozen=True, slots=True)
class Sample:
    """A server's process at one moment."""

    swaps: int
    resident_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked while the models change."""

    models: tuple[str, str]
    candidates: tuple[str, ...]
    """Prompts to choose the clearest from."""
    broken: tuple[str, ...]
    """Models whose load must fail, each asked for once."""
    swaps: int = 100
    clients: int = 4


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    answers: int = 0
    faults: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    """Faults that were answered as if there were none, or not as the caller's or the model's."""
    leaked_bytes: int = 0
    """The most that the server reported."""
    alarms: list[str] = field(default_factory=list)
    """What the watchdog found: all of them false, because no fault is one of an engine."""
    samples: list[Sample] = field(default_factory=list)


def write_broken(served: Path, model: Path, count: int) -> tuple[str, ...]:
    """Models that cannot be loaded, in turn with half of their weights' file, with a config of
    another model, and with numbers that are none, which is found out on the device, when the model
    before it has left. Each is asked for once: after a failure the server refuses for a while
    without trying again.

    Returns:
        Their names.
    """
    names = tuple(f"broken-{number}" for number in range(count))
    for number, name in enumerate(names):
        folder = served / name
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        (_truncate, _misfit, _spoil)[number % 3](folder)
    return names


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.resolve()
    weights.unlink()
    size = min(_BROKEN_BYTES, whole.stat().st_size // 2)
    with whole.open("rb") as source:
        weights.write_bytes(source.read(size))


def _misfit(folder: Path) -> None:
    config = folder / "config.json"
    told = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**told, "hidden_size": 2 * told["hidden_size"]}))


def _spoil(folder: Path) -> None:
    """Its last norm is NaN in all types of numbers."""
    weights = folder / "model.safetensors"
    whole = weights.resolve()
    weights.unlink()
    shutil.copyfile(whole, weights)
    with weights.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))["model.norm.weight"]["data_offsets"]
        file.seek(8 + size + begin)
        file.write(b"\xff" * (end - begin))


class Stress:
    """One run against one server, which is awake meanwhile."""

    def __init__(self, server: Server, load: Load, seed: int = 0) -> None:
        self._server = server
        self._load = load
        self._random = random.Random(seed)
        self._process = psutil.Process(server.process.pid)
        self._swaps = 0
        self._prompts: list[str] = []
        self._known: dict[tuple[str, str], str] = {}
        self._outcome = Outcome()
        self._due = list(fault_swaps(load.swaps, len(load.broken)))

    async def run(self) -> Outcome:
        """Swap under load until there were enough swaps, and compare what is left.

        Raises:
            ServerFailed: the server ended.
        """
        with ThreadPoolExecutor(self._load.clients + _BURST) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            await self._choose_prompts()
            await self._until(SETTLED_AFTER_SWAPS)
            self._outcome.samples = [await self._at_rest()]
            await self._until(self._load.swaps)
            self._outcome.samples.append(await self._at_rest())
        return self._outcome

    async def _choose_prompts(self) -> None:
        """Those whose greedy answers are the clearest. How many rows a product has decides over
        its last bits, and so over the next token where two are almost equally likely; between
        random weights that is often so.

        Raises:
            BadAnswer: a prompt has no answer, before anything is asked under load.
        """
        margins = dict.fromkeys(self._load.candidates, math.inf)
        for model in self._load.models:
            for prompt in margins:
                status, answer = await self._post(model, prompt, logprobs=True, top_logprobs=2)
                if status != 200:
                    raise BadAnswer(f"{model}: {status} {answer}")
                margins[prompt] = min(margins[prompt], margin(answer))
        self._prompts = sorted(margins, key=lambda prompt: -margins[prompt])[:_PROMPTS]

    async def _until(self, swaps: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.clients):
                group.create_task(self._keep_asking(swaps))
            while self._swaps < swaps:
                await self._look()
                while self._due and self._swaps >= self._due[0]:
                    self._due.pop(0)
                    group.create_task(self._fault())
                await asyncio.sleep(_STATUS_PAUSE_S)

    async def _look(self) -> None:
        """Note what the server has become with its last swaps."""
        status = await self._status()
        self._outcome.alarms += status["problems"]
        memory = status["memory"]
        if memory is not None and self._swaps >= SETTLED_AFTER_SWAPS:
            self._outcome.leaked_bytes = max(self._outcome.leaked_bytes, memory["leaked_bytes"])
        if status["swaps"] > self._swaps:
            self._swaps = status["swaps"]
            self._outcome.samples.append(self._sample())

    async def _keep_asking(self, swaps: int) -> None:
        while self._swaps < swaps:
            await self._ask(self._random.choice(self._load.models))

    async def _ask(self, model: str) -> None:
        prompt = self._random.choice(self._prompts)
        status, answer = await self._post(model, prompt)
        if status != 200:
            self._outcome.lost.append(f"{model}: {status} {answer}")
            return
        text = answer["choices"][0]["message"]["content"]
        if self._known.setdefault((model, prompt), text) != text:
            self._outcome.changed.append(f"{model}: {prompt}: {text}")
        self._outcome.answers += 1

    async def _fault(self) -> None:
        """A model that cannot be loaded, and a client that does not wait for its answer."""
        model = self._load.broken[self._outcome.faults]
        self._outcome.faults += 1
        leaving = asyncio.create_task(self._hang_up(self._random.choice(self._load.models)))
        status, answer = await self._post(model, self._prompts[0])
        await leaving
        if not any(status in refusals for refusals in _REFUSALS):
            self._outcome.untold.append(f"{model}: {status} {answer}")

    async def _hang_up(self, model: str) -> None:
        body = json.dumps(self._body(model, self._prompts[0])).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {LOOPBACK}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection(LOOPBACK, self._server.port)
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def _post(self, model: str, prompt: str, **more: Any) -> tuple[int, Any]:
        """Status and answer; a connection that breaks counts as status 0."""
        path, body = "/v1/chat/completions", {**self._body(model, prompt), **more}
        try:
            answer = await exchange(self._server.port, "POST", path, body)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            if self._server.process.poll() is not None:
                raise ServerFailed(f"the server ended: {error!r}") from error
            return 0, repr(error)
        return answer.status, answer.body

    def _body(self, model: str, prompt: str) -> dict[str, Any]:
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": _ANSWER_TOKENS,
            "temperature": 0,
        }

    async def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await exchange(self._server.port, "GET", "/status")).body
        return status

    async def _at_rest(self) -> Sample:
        """With the first model resident and nobody asking: when threads and descriptors have not
        changed for a second. Before that more is asked at once than at any other time, so that
        pools of threads are as large as they get."""
        for model in reversed(self._load.models * 2):
            await asyncio.gather(*(self._ask(model) for _ in range(self._load.clients + _BURST)))
        await self._look()
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        sample, since = self._sample(), time.monotonic()
        while time.monotonic() < min(deadline, since + _SETTLED_S):
            await asyncio.sleep(_STATUS_PAUSE_S)
            now = self._sample()
            if (now.threads, now.descriptors) != (sample.threads, sample.descriptors):
                since = time.monotonic()
            sample = now
        return sample

    def _sample(self) -> Sample:
        with self._process.oneshot():
            return Sample(
                self._swaps,
                self._process.memory_info().rss,
                self._process.num_threads(),
                self._process.num_fds(),
            )


def margin(answer: Mapping[str, Any]) -> float:
    """By how much an answer's tokens are likelier than the next best ones, in the logarithm, where
    that is least. ``answer`` is a chat completion with the two best ones of each token."""
    tokens = answer["choices"][0]["logprobs"]["content"]
    return min(
        float(first["logprob"]) - float(second["logprob"])
        for first, second in (token["top_logprobs"] for token in tokens)
    )


def fault_swaps(swaps: int, faults: int) -> Iterator[int]:
    """Behind which swaps the faults come: evenly between the tenth and the last one."""
    span = swaps - SETTLED_AFTER_SWAPS
    for number in range(faults):
        yield SETTLED_AFTER_SWAPS + span * (number + 1) // (faults + 1)


def figures(outcome: Outcome, contender: str) -> list[Figure]:
    """What the checks are about. The first sample is the one of the tenth swap, the last one that
    of the end, both at rest."""
    first, *between, last = outcome.samples

    def figure(name: str, unit: str, *values: float) -> Figure:
        return Figure(name, contender, unit, values)

    found = [
        figure("swaps under load", "swaps", last.swaps),
        figure("answers", "answers", outcome.answers),
        figure("faults", "faults", outcome.faults),
        figure(LOST, "requests", len(outcome.lost)),
        figure(CHANGED, "answers", len(outcome.changed)),
        figure(UNTOLD, "faults", len(outcome.untold)),
        figure(LEAKED, "B", outcome.leaked_bytes),
        figure(ALARMS, "alarms", len(outcome.alarms)),
        figure(THREADS, "threads", last.threads - first.threads),
        figure(DESCRIPTORS, "descriptors", last.descriptors - first.descriptors),
    ]
    if last.swaps >= FEWEST_SWAPS_FOR_SLOPE:
        hundreds = [sample.swaps / 100 for sample in between]
        megabytes = [sample.resident_bytes / 1e6 for sample in between]
        fitted = slope(hundreds, megabytes)
        found.append(figure(SLOPE, "MB", fitted.low, fitted.value, fitted.high))
    return found


def checks(contender: str) -> Iterator[Wanted]:
    """What must hold after any number of swaps."""
    for name in (LOST, CHANGED, UNTOLD, LEAKED, ALARMS, THREADS, DESCRIPTORS):
        yield Wanted(figure=(name, contender), bound=0)
    yield Wanted(figure=(SLOPE, contender), bound=SLOPE_BOUND_MB)


def link_models(served: Path, models: Sequence[Path]) -> tuple[str, str]:
    """A directory with nothing but these two models; their names in it."""
    served.mkdir()
    for model in models:
        (served / model.name).symlink_to(model.resolve())
    first, second = (model.name for model in models)
    return first, second
