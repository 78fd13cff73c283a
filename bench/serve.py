"""Measures hotswap over HTTP, beside ``transformers serve`` and its continuous batching.

    python -m bench.serve [--transformers VENV/bin/transformers] [--shape q06] [--quick]
                          [--json FILE]

The servers run side by side, one awake at a time, and take turns; every figure is the median of
the rounds. How each is measured and what it is held against is told in docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench import servers
from bench.checkpoints import DEFAULT_MODELS, SHAPES, TOKEN_IDS, checkpoint
from bench.client import BadAnswer, Connection, Streamed, stream_chat
from bench.figures import Figure, Noise, Report, Wanted, about_this_run, judge
from bench.prompts import TEMPLATE_TOKENS, WORDS
from bench.rounds import rounds, turn, warm_up
from bench.servers import Server
from bench.worker import Worker

_ALONE = "engine alone"
_PROBE_PAUSE_S = 0.01


def _first_token(prompt_tokens: int) -> str:
    return f"first token, {prompt_tokens}-token prompt"


def _streams(count: int) -> str:
    return f"{count} stream{'s' * (count > 1)}"


def _listing(connections: int) -> str:
    return f"GET /v1/models, {connections} connections"


def _late(streams: int) -> str:
    return f"99 % of probes beside {streams} streams answered within"


_MEMORY = "resident memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and how often."""

    shape: str
    model: Path
    transformers: Path | None = None
    """The command; None: hotswap alone."""
    parts: tuple[str, ...] = ("first token", "streams", "memory", "listing", "many streams")
    streams: tuple[int, ...] = (1, 4, 16)
    many_streams: int = 64
    prompt_tokens: int = 34
    long_prompt_tokens: int = 410
    new_tokens: int = 48
    connections: int = 16
    listing_s: float = 3.0
    rounds: int = 3


def quick(settings: Settings) -> Settings:
    """Every figure, none of them worth quoting."""
    return replace(settings, streams=(1, 4), many_streams=8, new_tokens=8, listing_s=0.2, rounds=1)


class Bench:
    """The servers of one run, the first of them ours, and what they are asked."""

    def __init__(self, settings: Settings, running: Sequence[Server], seed: int = 0) -> None:
        self._settings = settings
        self._servers = {server.kind.name: server for server in running}
        self._ours = running[0]
        self._random = random.Random(seed)

    def measure(self) -> tuple[Figure, ...]:
        parts: dict[str, Callable[[], list[Figure]]] = {
            "first token": self.first_token,
            "streams": self.streams,
            "memory": self.memory,
            "listing": self.listing,
            "many streams": self.many_streams,
        }
        for server in self._servers.values():
            warm_up(self._wall_s, server, 1)
        return tuple(figure for part in self._settings.parts for figure in parts[part]())

    def first_token(self) -> list[Figure]:
        """Of fresh prompts, and of one that our server has just answered."""
        settings = self._settings
        figures = []
        for tokens in (settings.prompt_tokens, settings.long_prompt_tokens):
            found: dict[str, list[float]] = {name: [] for name in self._servers}
            again: list[float] = []
            for order in self._rounds():
                for name in order:
                    found[name].append(turn(self._first_s, self._servers[name], tokens))
                text = self.text(tokens)
                self._first_s(self._ours, tokens, text)
                again.append(turn(self._first_s, self._ours, tokens, text))
            name = _first_token(tokens)
            figures += [Figure(name, key, "s", tuple(values)) for key, values in found.items()]
            figures.append(Figure(f"{name} again", self._ours.kind.name, "s", tuple(again)))
        return figures

    def streams(self) -> list[Figure]:
        """Tokens/s of all streams together, their prompts included. A server without batching
        answers one after the other, so that more than one stream tells nothing about it."""
        figures = []
        for count in self._settings.streams:
            asked = tuple(
                name for name, server in self._servers.items() if count == 1 or server.kind.batches
            )
            found: dict[str, list[float]] = {name: [] for name in asked}
            for order in rounds(asked, self._settings.rounds):
                for name in order:
                    seconds = turn(self._wall_s, self._servers[name], count)
                    found[name].append(count * self._settings.new_tokens / seconds)
            figures += [
                Figure(_streams(count), name, "tokens/s", tuple(values))
                for name, values in found.items()
            ]
        return figures

    def memory(self) -> list[Figure]:
        return [
            Figure(_MEMORY, name, "GB", (server.resident_bytes / 1e9,))
            for name, server in self._servers.items()
        ]

    def listing(self) -> list[Figure]:
        settings = self._settings
        found: dict[str, list[float]] = {name: [] for name in self._servers}
        for order in self._rounds():
            for name in order:
                server = self._servers[name]
                with server.awake():
                    answered = asyncio.run(
                        _count_listings(server.port, settings.connections, settings.listing_s)
                    )
                found[name].append(answered / settings.listing_s)
        name = _listing(settings.connections)
        return [Figure(name, key, "requests/s", tuple(values)) for key, values in found.items()]

    def many_streams(self) -> list[Figure]:
        """Our server beside our engine alone, and how long the server's event loop lets a trivial
        request wait meanwhile."""
        settings, count = self._settings, self._settings.many_streams
        served, alone = [], []
        waits: list[float] = []
        with Worker("hotswap", settings.model, "cpu") as engine:

            def alone_s(sequences: int) -> float:
                prompts = [self._ids(settings.prompt_tokens) for _ in range(sequences)]
                answer = engine.ask("generate", prompts=prompts, new_tokens=settings.new_tokens)
                return float(answer["seconds"])

            warm_up(alone_s, 1)
            alone_s(count)
            self._wall_s(self._ours, count)
            for _ in range(settings.rounds):
                alone.append(count * settings.new_tokens / turn(alone_s, count))
                seconds = turn(self._wall_s, self._ours, count, waits)
                served.append(count * settings.new_tokens / seconds)
        ours = self._ours.kind.name
        late = statistics.quantiles(waits, n=100)[98]
        return [
            Figure(_streams(count), ours, "tokens/s", tuple(served)),
            Figure(_streams(count), _ALONE, "tokens/s", tuple(alone)),
            Figure(_late(count), ours, "s", (late,)),
        ]

    def text(self, tokens: int) -> str:
        """A message that no server has seen, of so many tokens in its template."""
        return " ".join(self._random.choices(WORDS, k=tokens - TEMPLATE_TOKENS))

    def _ids(self, tokens: int) -> list[int]:
        """As long a prompt for an engine."""
        return self._random.choices(TOKEN_IDS, k=tokens)

    def _rounds(self) -> Iterator[tuple[str, ...]]:
        return rounds(tuple(self._servers), self._settings.rounds)

    def _first_s(self, server: Server, tokens: int, text: str | None = None) -> float:
        """Seconds to the first token after a fresh prompt, or after ``text``."""
        asked = self.text(tokens) if text is None else text
        with server.awake():
            [answer] = asyncio.run(_stream_all(server, [asked], 2, None))
        _expect_prompt(tokens, answer)
        return answer.first - answer.began

    def _wall_s(self, server: Server, count: int, waits: list[float] | None = None) -> float:
        """Seconds for ``count`` streams; ``waits`` takes how long probes waited meanwhile."""
        texts = [self.text(self._settings.prompt_tokens) for _ in range(count)]
        with server.awake():
            answers = asyncio.run(_stream_all(server, texts, self._settings.new_tokens, waits))
        for answer in answers:
            _expect_prompt(self._settings.prompt_tokens, answer)
        return max(a.last for a in answers) - min(a.began for a in answers)


def _expect_prompt(tokens: int, answer: Streamed) -> None:
    if answer.prompt_tokens != tokens:
        raise BadAnswer(f"a prompt of {answer.prompt_tokens} tokens instead of {tokens}")


async def _stream_all(
    server: Server, texts: Sequence[str], new_tokens: int, waits: list[float] | None
) -> list[Streamed]:
    async with asyncio.TaskGroup() as group:
        probing = None if waits is None else group.create_task(_probe(server, waits))
        answers = await asyncio.gather(
            *(stream_chat(server.port, server.model, text, new_tokens) for text in texts)
        )
        if probing is not None:
            probing.cancel()
    return answers


async def _probe(server: Server, waits: list[float]) -> None:
    """Until cancelled."""
    async with Connection(server.port) as connection:
        with suppress(asyncio.CancelledError):
            while True:
                began = time.perf_counter()
                await connection.get(server.kind.live_path)
                waits.append(time.perf_counter() - began)
                await asyncio.sleep(_PROBE_PAUSE_S)


async def _count_listings(port: int, connections: int, seconds: float) -> int:
    """Listings that came within so many seconds, over connections that are kept."""

    async def ask() -> int:
        answered = 0
        async with Connection(port) as connection:
            while time.perf_counter() < end:
                status = await connection.get("/v1/models")
                if status != 200:
                    raise BadAnswer(f"GET /v1/models: {status}")
                answered += 1
        return answered

    end = time.perf_counter() + seconds
    return sum(await asyncio.gather(*(ask() for _ in range(connections))))


def run(settings: Settings) -> Report:
    """Start the servers, measure, and hold what was measured against the goals."""
    noise = Noise()
    kinds = [servers.hotswap()]
    if settings.transformers is not None:
        kinds += servers.both_transformers(settings.transformers)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = [
            stack.enter_context(servers.serving(kind, settings.model, home)) for kind in kinds
        ]
        figures = Bench(settings, running).measure()
        about = about_this_run(noise, model=settings.model.name)
    title = f"Over HTTP, {settings.model.name}"
    return Report(title=title, about=about, figures=figures, goals=judge(goals(settings), figures))


_STREAM_GOALS = {"tiny": {1: 3.0, 4: 2.5, 16: 2.2}, "q06": {1: 2.3, 4: 2.8, 16: 3.0}}
"""Per shape and number of streams, tokens/s as a multiple of either mode's of the rival."""


def goals(settings: Settings) -> Iterator[Wanted]:
    """Those of the issue that are about the server."""
    ours = servers.hotswap().name
    plain, batching = (kind.name for kind in servers.both_transformers(Path()))

    def wanted(name: str, theirs: str, bound: float, *, at_least: bool = False) -> Wanted:
        return Wanted(figure=(name, ours), beside=(name, theirs), bound=bound, at_least=at_least)

    for count, bound in _STREAM_GOALS.get(settings.shape, {}).items():
        for theirs in (plain, batching):
            yield wanted(_streams(count), theirs, bound, at_least=True)
    yield wanted(_first_token(settings.prompt_tokens), plain, 1.0)
    yield wanted(_first_token(settings.long_prompt_tokens), plain, 0.95)
    yield wanted(_listing(settings.connections), plain, 2, at_least=True)
    yield wanted(_streams(settings.many_streams), _ALONE, 0.95, at_least=True)
    yield Wanted(figure=(_late(settings.many_streams), ours), bound=0.05)
    if settings.shape == "q06":
        yield Wanted(figure=(_MEMORY, ours), bound=1.9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings(shape="q06", model=Path())
    parser.add_argument("--shape", choices=list(SHAPES), default=defaults.shape)
    parser.add_argument("--models", type=Path, default=DEFAULT_MODELS, metavar="DIR")
    parser.add_argument(
        "--transformers", type=Path, metavar="FILE", help="the command of another environment"
    )
    parser.add_argument("--parts", nargs="+", choices=defaults.parts, default=defaults.parts)
    parser.add_argument("--streams", nargs="+", type=int, default=defaults.streams, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=defaults.new_tokens, metavar="N")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a smoke test of every part")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    # Asked to end, it ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = Settings(
        shape=arguments.shape,
        model=checkpoint(arguments.models, arguments.shape),
        transformers=arguments.transformers,
        parts=tuple(arguments.parts),
        streams=tuple(arguments.streams),
        new_tokens=arguments.new_tokens,
        rounds=arguments.rounds,
    )
    if arguments.quick:
        settings = quick(settings)
    run(settings).publish(arguments.json)


if __name__ == "__main__":
    main()
