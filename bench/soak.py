"""A long life of a server in a few minutes, and what must not have happened in it.

    python -m bench.soak [--minutes 10] [--clients 16] [--models DIR [DIR ...]] [--json FILE]

Clients ask three models in turn and at random, greedily, streaming and not. Some leave in the
middle of an answer, some read slowly. Somebody unloads, loads, parks and wakes models meanwhile.
If anything is lost, truncated, duplicated, answered by the wrong model or otherwise than the first
time, or refused without a word when to come again, the exit status is 1.

Before that, and while nothing else is asked, streams are measured beside clients that do not read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from bench.answers import Fault, Known, Verdict, judge_answer
from bench.client import LOOPBACK, BadAnswer, request
from bench.exchange import exchange
from bench.figures import Figure, Noise, Report, Wanted, about_this_run, judge
from bench.probe import probing
from bench.regression import FEWEST_SAMPLES, slope
from bench.servers import Server, ServerKind, hotswap, serving
from bench.stalled import shares
from hotswap.demo import MODELS_DIR

OURS = hotswap().name
PROMPTS = (
    *("What is 45 + 27?", "What is 8 * 7?", "What is 90 - 36?"),
    *("Tell me a story about a small dragon.", "Tell me a story about a boat."),
)
MOST_TOKENS = 64
LEAVING = SLOW = 0.05
"""Shares of the requests."""
_READ_BYTES = 1 << 16
_SLOW_READ_BYTES = 128
_SLOW_PAUSE_S = 0.05
_SAMPLE_PAUSE_S = 1.0
_WARM_SHARE = 0.2
"""Of the time, at its beginning, in which everything that is made once is made."""
_LONGEST_PATIENCE_S = 2.0
"""Clients come again sooner than they are told, or there would be little load."""
_ORDER_PAUSES_S = (1.0, 5.0)
_DRAIN_S = 30.0
_TOLD = 20
"""Different complaints."""
LAG_BOUND_S = 0.05
RESIDENT, THREADS, DESCRIPTORS = (
    "resident memory per minute",
    "threads per minute",
    "file descriptors per minute",
)
LAG = "99 % of probes answered within"
SHARE = "tokens/s beside stalled readers, as a share of those beside others"
SHARE_BOUND = 0.95
_SHARED_MODEL = 1
"""The one that tells stories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    minutes: float = 10.0
    clients: int = 16
    models: tuple[Path, ...] = ()
    """Directories; none: the demo models, and one of them a second time."""
    rounds: int = 5
    """Of streams beside clients that do not read."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's process at one moment."""

    minute: float
    resident_bytes: int
    threads: int
    descriptors: int


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    happened: Counter[str] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    shares: tuple[float, ...] = ()
    swaps: int = 0
    leaked_bytes: int = 0


class Soak:
    """One run against one server, which is awake meanwhile."""

    def __init__(self, server: Server, models: Sequence[str], settings: Settings) -> None:
        self._server = server
        self._models = models
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._process = psutil.Process(server.process.pid)
        self._known: dict[tuple[str, str], Known] = {}
        self._ids: set[str] = set()
        self._began = 0.0
        self.outcome = Outcome()

    async def run(self) -> None:
        """Raises: BadAnswer: it does not answer even before there is any load."""
        for model in self._models:
            for prompt in PROMPTS:
                verdict = await self._asked(model, prompt, stream=False)
                if verdict.known is None or verdict.faults:
                    raise BadAnswer(f"{model}: {prompt}: {verdict}")
                self._known[model, prompt] = verdict.known
        teller = self._models[_SHARED_MODEL]
        self.outcome.shares = await shares(self._server.port, teller, self._settings.rounds)
        self._began = time.monotonic()
        ends = self._began + 60 * self._settings.minutes
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.clients):
                group.create_task(self._keep_asking(ends))
            group.create_task(self._keep_ordering(ends))
            group.create_task(self._keep_sampling(ends))
        status = (await exchange(self._server.port, "GET", "/status")).body
        self.outcome.swaps = status["swaps"]

    # -- clients

    async def _keep_asking(self, ends: float) -> None:
        model = self._random.choice(self._models)
        while time.monotonic() < ends:
            if self._random.random() < 0.3:
                model = self._random.choice(self._models)
            prompt = self._random.choice(PROMPTS)
            manner = self._random.random()
            if manner < LEAVING:
                await self._leave(model, prompt)
            else:
                await self._ask(model, prompt, slow=manner < LEAVING + SLOW)

    async def _ask(self, model: str, prompt: str, *, slow: bool) -> None:
        """Until it is answered."""
        while True:
            stream = slow or self._random.random() < 0.7
            verdict = await self._asked(model, prompt, stream=stream, slow=slow)
            self._note(verdict, f"{model}: {prompt}")
            if not verdict.refused:
                break
            await asyncio.sleep(min(verdict.retry_after_s, _LONGEST_PATIENCE_S))
        self.outcome.happened["answers to slow readers"] += slow

    def _note(self, verdict: Verdict, what: str) -> None:
        faults = set(verdict.faults)
        if verdict.id in self._ids:
            faults.add(Fault.DUPLICATED)
        if verdict.id:
            self._ids.add(verdict.id)
        kind = "refusals" if verdict.refused else "answers"
        self.outcome.happened["errors told in a stream" if verdict.told_late else kind] += 1
        self.outcome.faults.update(faults)
        self.outcome.complaints += [f"{fault}: {what}: {verdict.known}" for fault in faults]

    async def _asked(self, model: str, prompt: str, *, stream: bool, slow: bool = False) -> Verdict:
        known = self._known.get((model, prompt))
        return judge_answer(await self._received(model, prompt, stream, slow), model, known)

    async def _received(self, model: str, prompt: str, stream: bool, slow: bool) -> bytes:
        """All that comes, also where the connection breaks."""
        received = bytearray()
        with suppress(ConnectionError):  # what is missing will be missed
            reader, writer = await self._connected(model, prompt, stream, slow)
            try:
                while data := await reader.read(_SLOW_READ_BYTES if slow else _READ_BYTES):
                    received += data
                    if slow:
                        await asyncio.sleep(_SLOW_PAUSE_S)
            finally:
                writer.close()
        return bytes(received)

    async def _leave(self, model: str, prompt: str) -> None:
        """Without waiting for the end of the answer, or for its beginning."""
        self.outcome.happened["clients that left"] += 1
        reader, writer = await self._connected(model, prompt, stream=True, slow=False)
        with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self._random.uniform(0.0, 0.5)):
                await reader.readexactly(self._random.randrange(1, 4000))
        writer.close()

    async def _connected(
        self, model: str, prompt: str, stream: bool, slow: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": MOST_TOKENS,
            "temperature": 0,
            "stream": stream,
            "stream_options": {"include_usage": True} if stream else None,
        }
        limit = 4 * _SLOW_READ_BYTES if slow else _READ_BYTES
        reader, writer = await asyncio.open_connection(LOOPBACK, self._server.port, limit=limit)
        writer.write(request("POST", "/v1/chat/completions", json.dumps(body).encode(), "close"))
        return reader, writer

    # -- whoever else is there

    async def _keep_ordering(self, ends: float) -> None:
        while time.monotonic() < ends:
            await asyncio.sleep(self._random.uniform(*_ORDER_PAUSES_S))
            path, body = self._random.choice(
                (
                    ("/v1/unload_model", {"drain_timeout_s": _DRAIN_S}),
                    ("/v1/unload_model", {"drain_timeout_s": _DRAIN_S, "park": False}),
                    ("/v1/load_model", {"model": self._random.choice(self._models)}),
                    ("/models/load", {"model": self._random.choice(self._models)}),
                    ("/sleep?level=1", None),
                    ("/wake_up", None),
                )
            )
            status = await self._ordered(path, body)
            self.outcome.happened["orders" if status == 200 else "orders refused"] += 1
            if status not in (200, 503):
                self.outcome.faults[Fault.LOST] += 1
                self.outcome.complaints.append(f"{path} {body}: {status}")

    async def _ordered(self, path: str, body: Any) -> int:
        raw = b"" if body is None else json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(LOOPBACK, self._server.port)
        writer.write(request("POST", path, raw, "close"))
        answer = await reader.read()
        writer.close()
        return int(answer[9:12] or 0)

    async def _keep_sampling(self, ends: float) -> None:
        while time.monotonic() < ends:
            self.outcome.samples.append(self._sample())
            status = (await exchange(self._server.port, "GET", "/status")).body
            leaked = (status["memory"] or {}).get("leaked_bytes", 0)
            self.outcome.leaked_bytes = max(self.outcome.leaked_bytes, leaked)
            await asyncio.sleep(_SAMPLE_PAUSE_S)

    def _sample(self) -> Sample:
        with self._process.oneshot():
            return Sample(
                (time.monotonic() - self._began) / 60,
                self._process.memory_info().rss,
                self._process.num_threads(),
                self._process.num_fds(),
            )


def figures(outcome: Outcome) -> Iterator[Figure]:
    """What is to be known of a run."""
    happened = outcome.happened
    for name in ("answers", "answers to slow readers", "clients that left", "refusals"):
        yield Figure(name, OURS, "requests", (happened[name],))
    yield Figure(
        "errors told in a stream", OURS, "requests", (happened["errors told in a stream"],)
    )
    yield Figure("orders", OURS, "orders", (happened["orders"],))
    yield Figure("orders refused", OURS, "orders", (happened["orders refused"],))
    yield Figure("swaps", OURS, "swaps", (outcome.swaps,))
    for fault in Fault:
        yield Figure(fault, OURS, "requests", (outcome.faults[fault],))
    yield Figure("bytes left behind by a teardown", OURS, "B", (outcome.leaked_bytes,))
    yield from _slopes(outcome.samples)
    if outcome.shares:
        yield Figure(SHARE, OURS, "x", outcome.shares)
    if len(outcome.lags_s) > 1:
        hundredths = statistics.quantiles(outcome.lags_s, n=100)
        yield Figure("half of the probes answered within", OURS, "s", (hundredths[49],))
        yield Figure(LAG, OURS, "s", (hundredths[98],))
        yield Figure("all probes answered within", OURS, "s", (max(outcome.lags_s),))


def _slopes(samples: Sequence[Sample]) -> Iterator[Figure]:
    """Each with its 95 % interval, once everything has warmed up."""
    warm = samples[int(_WARM_SHARE * len(samples)) :]
    if len(warm) < FEWEST_SAMPLES:
        return
    minutes = [sample.minute for sample in warm]
    for name, unit, values in (
        (RESIDENT, "MB", [sample.resident_bytes / 1e6 for sample in warm]),
        (THREADS, "threads", [float(sample.threads) for sample in warm]),
        (DESCRIPTORS, "descriptors", [float(sample.descriptors) for sample in warm]),
    ):
        fitted = slope(minutes, values)
        yield Figure(name, OURS, unit, (fitted.low, fitted.value, fitted.high))


def checks() -> Iterator[Wanted]:
    """What must hold after any time, and decides over the exit status."""
    for fault in Fault:
        yield Wanted(figure=(fault, OURS), bound=0)


def goals() -> Iterator[Wanted]:
    """Those, and what depends on the machine."""
    yield from checks()
    yield Wanted(figure=(LAG, OURS), bound=LAG_BOUND_S)
    yield Wanted(figure=(SHARE, OURS), bound=SHARE_BOUND, at_least=True)


def run(settings: Settings) -> tuple[Report, Outcome]:
    """Start a server, use it for so long, and tell what came of it."""
    noise = Noise()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        served = home / "served"
        models = _written(served, settings.models or _demo_models())
        kind = _managed(served)
        with serving(kind, served / models[0], home) as server, server.awake():
            soak = Soak(server, models, settings)
            with probing(server.port, kind.live_path) as lags_s:
                asyncio.run(soak.run())
            soak.outcome.lags_s = lags_s
    found = tuple(figures(soak.outcome))
    about = about_this_run(
        noise,
        models=", ".join(models),
        load=f"{settings.clients} clients for {settings.minutes:g} minutes",
    )
    report = Report(title="Soak", about=about, figures=found, goals=judge(goals(), found))
    return report, soak.outcome


def _managed(served: Path) -> ServerKind:
    """Our server with the models of a directory, and open to orders."""
    kind = hotswap()
    flags = ("--models-dir", str(served), "--enable-on-demand-loading", "--dev-mode")
    return replace(kind, command=(*kind.command, *flags))


def _demo_models() -> tuple[Path, ...]:
    return MODELS_DIR / "hotswap" / "sums", MODELS_DIR / "hotswap" / "tales"


def _written(served: Path, models: Sequence[Path]) -> list[str]:
    """A directory with three models, of which some may be the same: copies, because a directory
    that is reached by two names is one model."""
    names = [f"{model.name}-{number}" for number, model in enumerate([*models, *models][:3])]
    for name, model in zip(names, [*models, *models], strict=False):
        shutil.copytree(model, served / name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings()
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--clients", type=int, default=defaults.clients)
    parser.add_argument("--models", type=Path, nargs="+", default=(), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, metavar="N")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    # Asked to end, it ends its server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report, outcome = run(
        Settings(
            minutes=arguments.minutes,
            clients=arguments.clients,
            models=tuple(arguments.models),
            rounds=arguments.rounds,
            seed=arguments.seed,
        )
    )
    report.publish(arguments.json)
    for complaint, times in Counter(outcome.complaints).most_common(_TOLD):
        print(f"{times} x {complaint}", file=sys.stderr)
    if not all(goal.met for goal in judge(checks(), report.figures)):
        sys.exit(1)


if __name__ == "__main__":
    main()
