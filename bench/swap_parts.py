"""The parts of `bench.swap`, each with the processes that it needs."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import page_cache, stress
from bench.checkpoints import SEEDS
from bench.client import stream_chat
from bench.figures import Figure
from bench.gantt import Row
from bench.pairs import (
    OURS,
    PRETRAINED,
    TRANSFORMERS,
    HotswapPair,
    Models,
    Pair,
    PretrainedPair,
    ServedPair,
    TransformersPair,
    hotswap,
    transformers,
)
from bench.prompts import Prompts
from bench.rounds import rounds, turn, warm_up
from bench.servers import ServerKind, serving
from bench.swap_goals import (
    BARE,
    CACHED,
    COPY,
    DISK,
    GAP_PARKED,
    GAP_PREFETCHED,
    LIVE,
    PARKED,
    RESIDENT,
    SLEEP_WAKE,
    START,
    above,
    probe,
)
from bench.worker import Worker

PARTS = ("swaps", "drain", "probes", "disk", "start", "floors", "stress")
ALONE = "alone"
"""Another part: parked models without anybody beside them, where a device does not hold those of
two contenders."""

_PARKING, _COLD = "parking", "cold"
"""Our server twice: as it comes, and with no memory for parked models."""
_MS = 1e3
_GAPS = 3
"""Of a round: there is a whole answer before each."""
_CANDIDATES = 16
"""Prompts that the stress chooses from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and how often."""

    shape: str
    models: Models
    device: str = "cpu"
    transformers: Path | None = None
    """The command; None: not beside it."""
    parts: tuple[str, ...] = PARTS
    rounds: int = 3
    prompt_tokens: int = 34
    drained_tokens: int = 128
    """Of the answer that runs when the other model is asked for."""
    probe_swaps: int = 20
    swaps: int = 100
    faults: int = 20
    clients: int = 4


@dataclass(slots=True)
class Findings:
    """What the parts have found so far."""

    figures: list[Figure] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """A swap each, for the plot."""
    complaints: list[str] = field(default_factory=list)
    """What the stress found, told one by one."""
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, contender: str, seconds: list[float]) -> None:
        self.figures.append(Figure(name, contender, "ms", tuple(_MS * s for s in seconds)))


class Bench:
    """One run. Measures in milliseconds; ``home`` takes logs and what is written meanwhile."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings = settings
        self._home = home
        self._prompts = Prompts(settings.prompt_tokens)
        self.findings = Findings()

    def measure(self) -> Findings:
        parts: dict[str, Callable[[], None]] = {
            "disk": self.disk,
            "start": self.start,
            "floors": self.floors,
            "stress": self.stress,
        }
        with ExitStack() as stack:
            self._side_by_side(stack)
        for name, part in parts.items():
            if name in self._settings.parts:
                part()
        return self.findings

    def _side_by_side(self, stack: ExitStack) -> None:
        """The parts that need the same processes."""
        wanted = set(self._settings.parts)
        if ALONE in wanted:
            with ExitStack() as alone:
                self.alone(self._served(alone, (_PARKING,)))
        if not wanted & {"swaps", "drain", "probes"}:
            return
        pairs = self._pairs(stack, (_PARKING, _COLD))
        if "swaps" in wanted:
            self.swaps(pairs)
        if "drain" in wanted:
            self.drain(pairs)
        if "probes" in wanted:
            self.probes(pairs)

    def swaps(self, pairs: Mapping[str, Pair]) -> None:
        """From memory: the page cache's, or what the server has kept."""
        resident: dict[str, list[float]] = {name: [] for name in pairs}
        swapped: dict[str, list[float]] = {name: [] for name in pairs}
        touched: list[float] = []
        for order in rounds(tuple(pairs), self._settings.rounds):
            for name in order:
                resident[name].append(turn(pairs[name].resident_s))
                swapped[name].append(turn(pairs[name].swap_s))
            touched.append(turn(page_cache.touch_s, self._settings.models.paths[1]))
        for name in pairs:
            contender = _contender(name)
            if name != _COLD:
                alone = BARE if name == PRETRAINED else contender
                self.findings.add(RESIDENT, alone, resident[name])
            row = PARKED if name == _PARKING else CACHED
            self.findings.add(row, contender, swapped[name])
            if name != TRANSFORMERS:
                self.findings.add(
                    above(row), contender, _differences(swapped[name], resident[name])
                )
        self._add_rate("touching a file in the page cache", touched)
        self._tell_phases(pairs)

    def alone(self, pairs: Mapping[str, Pair]) -> None:
        """Swaps to parked models."""
        pair, resident, swapped = pairs[_PARKING], [], []
        _warm(pair)
        for _ in range(self._settings.rounds):
            resident.append(turn(pair.resident_s))
            swapped.append(turn(pair.swap_s))
        self.findings.add(RESIDENT, OURS, resident)
        self.findings.add(PARKED, OURS, swapped)
        self.findings.add(above(PARKED), OURS, _differences(swapped, resident))
        self._tell_phases(pairs)

    def drain(self, pairs: Mapping[str, Pair]) -> None:
        """The next model is asked for while the one before it answers."""
        for name, row in ((_PARKING, GAP_PARKED), (_COLD, GAP_PREFETCHED)):
            pair = _ours(pairs[name])
            gaps, resident = [], []
            for _ in range(self._settings.rounds):
                resident.append(turn(pair.resident_s))
                tokens = self._settings.drained_tokens
                gaps.append(statistics.median(pair.gap_s(tokens) for _ in range(_GAPS)))
            self.findings.add(row, OURS, gaps)
            self.findings.add(above(row), OURS, _differences(gaps, resident))

    def probes(self, pairs: Mapping[str, Pair]) -> None:
        """Health probes beside swaps; of our two servers the worse."""
        swaps = self._settings.probe_swaps
        worst = {
            name: pair.worst_probe_s(swaps)
            for name, pair in pairs.items()
            if isinstance(pair, ServedPair)
        }
        if TRANSFORMERS in worst:
            self.findings.add(probe(swaps), TRANSFORMERS, [worst.pop(TRANSFORMERS)])
        self.findings.add(probe(swaps), OURS, [max(worst.values())])

    def disk(self) -> None:
        """With the files dropped before each swap. A contender that keeps the other model mapped
        leaves nothing to measure."""
        found: dict[str, list[float]] = {}
        read: list[float] = []
        try:
            with ExitStack() as stack:
                self._measure_disk(self._pairs(stack, (_COLD,)), found)
            model = self._settings.models.paths[1]
            for _ in range(self._settings.rounds):
                page_cache.drop(model)
                read.append(page_cache.read_s(model))
        except page_cache.StillCached as error:
            self.findings.notes[DISK] = f"not measured: {error}"
            return
        for name, seconds in found.items():
            self.findings.add(DISK, _contender(name), seconds)
        self._add_rate("reading a file from disk", read)

    def _measure_disk(self, pairs: Mapping[str, Pair], found: dict[str, list[float]]) -> None:
        """The other contenders hold the model that is left: nobody may map what is dropped.

        Raises:
            StillCached: somebody does.
        """
        for order in rounds(tuple(pairs), self._settings.rounds):
            for name in order:
                target = 1 - pairs[name].resident
                for other in pairs.values():
                    if other.resident == target:
                        other.swap_s()
                page_cache.drop(self._settings.models.paths[target])
                found.setdefault(name, []).append(pairs[name].swap_s())

    def start(self) -> None:
        """From the start of a process to its health, and to the first token of its first model."""
        live: dict[str, list[float]] = {}
        first: dict[str, list[float]] = {}
        for order in rounds(tuple(self._kinds((_COLD,))), self._settings.rounds):
            for name in order:
                live_s, first_s = self._start_s(name)
                live.setdefault(name, []).append(live_s)
                first.setdefault(name, []).append(first_s)
        for name, seconds in live.items():
            self.findings.add(LIVE, _contender(name), seconds)
            self.findings.add(START, _contender(name), first[name])

    def _start_s(self, name: str) -> tuple[float, float]:
        kind = self._kinds((_COLD,))[name]
        began = time.perf_counter()
        with serving(kind, self._settings.models.paths[0], self._home) as server:
            live_s = time.perf_counter() - began
            with server.awake():
                model = self._names(name)[0]
                answer = asyncio.run(stream_chat(server.port, model, self._prompts.text(), 2))
        return live_s, answer.first - began

    def floors(self) -> None:
        """What a GPU could do, and what others do on it."""
        settings = self._settings
        if settings.device == "cpu":
            self.findings.notes[SLEEP_WAKE] = "not measured, there is no CUDA device in this run"
            return
        copies, cycles = [], []
        with Worker("sleep wake", settings.models.paths[0], settings.device) as worker:
            for _ in range(1 + settings.rounds):
                cycle = worker.ask("cycle")
                cycles.append(cycle["sleep_s"] + cycle["wake_s"])
                copies.append(float(worker.ask("copy")["seconds"]))
        self.findings.add(SLEEP_WAKE, SLEEP_WAKE, cycles[1:])
        self.findings.add(COPY, COPY, copies[1:])
        self._add_rate(COPY, copies[1:])

    def stress(self) -> None:
        """Many swaps under load, with faults."""
        settings = self._settings
        served = self._home / "served"
        names = stress.link_models(served, settings.models.paths)
        broken = stress.write_broken(served, settings.models.paths[0], settings.faults)
        kind = hotswap(served, settings.device, patience_s="0")
        load = stress.Load(
            models=names,
            candidates=tuple(self._prompts.text() for _ in range(_CANDIDATES)),
            broken=broken,
            swaps=settings.swaps,
            clients=settings.clients,
        )
        with serving(kind, served / names[0], self._home) as server, server.awake():
            outcome = asyncio.run(stress.Stress(server, load).run())
        self.findings.figures += stress.figures(outcome, OURS)
        self.findings.complaints += [
            *(*outcome.lost, *outcome.changed, *outcome.untold, *outcome.alarms),
        ]

    def _kinds(self, ours: tuple[str, ...]) -> dict[str, ServerKind]:
        settings = self._settings
        models_dir = settings.models.paths[0].parent
        kinds = {
            _PARKING: hotswap(models_dir, settings.device),
            _COLD: hotswap(models_dir, settings.device, park_memory="0"),
        }
        found = {name: kinds[name] for name in ours}
        if settings.transformers is not None:
            found[TRANSFORMERS] = transformers(settings.transformers, settings.device)
        return found

    def _pairs(self, stack: ExitStack, ours: tuple[str, ...]) -> dict[str, Pair]:
        """The contenders, warm."""
        settings = self._settings
        pairs = self._served(stack, ours)
        worker = stack.enter_context(Worker(PRETRAINED, settings.models.paths[0], settings.device))
        pairs[PRETRAINED] = PretrainedPair(worker, settings.models, self._prompts)
        for pair in pairs.values():
            _warm(pair)
        return pairs

    def _served(self, stack: ExitStack, ours: tuple[str, ...]) -> dict[str, Pair]:
        """Those that are servers."""
        settings = self._settings
        pairs: dict[str, Pair] = {}
        for name, kind in self._kinds(ours).items():
            server = stack.enter_context(serving(kind, settings.models.paths[0], self._home))
            names = self._names(name)
            if name == TRANSFORMERS:
                pairs[name] = TransformersPair(server, names, self._prompts)
            else:
                parks = name == _PARKING
                pairs[name] = HotswapPair(server, names, self._prompts, parks=parks)
        return pairs

    def _names(self, name: str) -> tuple[str, str]:
        """What a contender's server calls the models."""
        models = self._settings.models
        first, second = (str(path) for path in models.paths)
        return (first, second) if name == TRANSFORMERS else models.names

    def _tell_phases(self, pairs: Mapping[str, Pair]) -> None:
        """What our servers say of their swaps."""
        for name, row in ((_PARKING, PARKED), (_COLD, CACHED)):
            if name not in pairs:
                continue
            pair = _ours(pairs[name])
            for phase in dict.fromkeys(phase for swap in pair.timings for phase in swap):
                seconds = [swap[phase] for swap in pair.timings if phase in swap]
                self.findings.add(f"{row}: {phase}", OURS, seconds)
            self.findings.rows += [
                Row(name, number, timings, measured)
                for number, (timings, measured) in enumerate(
                    zip(pair.timings, pair.measured_s, strict=True), 1
                )
            ]

    def _add_rate(self, name: str, seconds: list[float]) -> None:
        size = page_cache.weight_bytes(self._settings.models.paths[1])
        rates = tuple(size / 1e9 / s for s in seconds)
        self.findings.figures.append(Figure(name, "floor", "GB/s", rates))
        self.findings.add(name, "floor", seconds)


def _warm(pair: Pair) -> None:
    """Both models have been asked, and each has been left, before anything counts."""
    for _ in SEEDS:
        warm_up(pair.resident_s)
        pair.visit()
    warm_up(pair.swap_s)
    pair.forget()


def _contender(name: str) -> str:
    return OURS if name in (_PARKING, _COLD) else name


def _ours(pair: Pair) -> HotswapPair:
    assert isinstance(pair, HotswapPair)
    return pair


def _differences(first: list[float], second: list[float]) -> list[float]:
    """Round by round."""
    return [a - b for a, b in zip(first, second, strict=True)]
