"""What was measured: figures with their spread, goals they are held against, and the report."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import hotswap


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one contender, measured one or more times."""

    name: str
    contender: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return _number(self.median)
        spread = f"{_number(min(self.values))} to {_number(max(self.values))}"
        return f"{_number(self.median)} ({spread})"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound from the issue and what was measured: a ratio within one run, or a plain figure."""

    name: str
    measured: float
    bound: float
    at_least: bool
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "**not met**"
        measured = f"{self.measured:.2f} {self.unit}"
        return f"| {self.name} | {measured} | {sign} {self.bound:g} {self.unit} | {verdict} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of a benchmark."""

    title: str
    about: dict[str, str]
    figures: tuple[Figure, ...]
    goals: tuple[Goal, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "about": self.about,
            "figures": [
                {
                    "name": figure.name,
                    "contender": figure.contender,
                    "unit": figure.unit,
                    "median": figure.median,
                    "values": list(figure.values),
                }
                for figure in self.figures
            ],
            "goals": [
                {
                    "name": goal.name,
                    "measured": goal.measured,
                    "bound": goal.bound,
                    "at_least": goal.at_least,
                    "unit": goal.unit,
                    "met": goal.met,
                }
                for goal in self.goals
            ],
        }

    def __str__(self) -> str:
        """Markdown: a table of the figures, a column for each contender, and one of the goals."""
        parts = [f"## {self.title}", "\n".join(f"- {k}: {v}" for k, v in self.about.items())]
        parts.append(_figure_table(self.figures))
        if self.goals:
            head = "| goal | measured | bound | |\n|---|---|---|---|\n"
            parts.append(head + "\n".join(map(str, self.goals)))
        return "\n\n".join(parts)

    def publish(self, path: Path | None) -> None:
        """Print the tables and, given a path, write everything there as JSON."""
        print(self)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_json(), indent=1) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A goal before anything is measured. Figures are named by their name and contender."""

    figure: tuple[str, str]
    beside: tuple[str, str] | None = None
    """The goal is about the ratio to this one's median; None: about the figure as it is."""
    bound: float
    at_least: bool = False


def judge(wanted: Iterable[Wanted], figures: Iterable[Figure]) -> tuple[Goal, ...]:
    """The goals whose figures were measured."""
    found = {(figure.name, figure.contender): figure for figure in figures}

    def goals() -> Iterator[Goal]:
        for goal in wanted:
            ours = found.get(goal.figure)
            if ours is not None and goal.beside is None:
                yield Goal(ours.name, ours.median, goal.bound, goal.at_least, ours.unit)
            elif ours is not None and goal.beside in found:
                theirs = found[goal.beside]
                other = theirs.contender if theirs.name == ours.name else theirs.name
                ratio = ours.median / theirs.median
                yield Goal(f"{ours.name} / {other}", ratio, goal.bound, goal.at_least)

    return tuple(goals())


def _figure_table(figures: Sequence[Figure]) -> str:
    contenders = list(dict.fromkeys(figure.contender for figure in figures))
    rows: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        rows.setdefault(f"{figure.name} ({figure.unit})", {})[figure.contender] = figure
    lines = ["| | " + " | ".join(contenders) + " |", "|---" * (len(contenders) + 1) + "|"]
    for name, cells in rows.items():
        texts = (str(cells[contender]) if contender in cells else "" for contender in contenders)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Noise:
    """How much of the machine others used since this object was made. Processes that have ended
    and were not waited for by this one count as others."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_s = _machine_busy_s()
        self._own_s = _own_busy_s()

    def foreign_cores(self) -> float:
        others = (_machine_busy_s() - self._busy_s) - (_own_busy_s() - self._own_s)
        return max(0.0, others / (time.monotonic() - self._began))


_BUSY_KINDS = ("user", "nice", "system", "irq", "softirq", "steal")


def _machine_busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind) for kind in _BUSY_KINDS))


def _own_busy_s() -> float:
    own = psutil.Process()
    times = [own.cpu_times(), *(child.cpu_times() for child in own.children(recursive=True))]
    return float(sum(sum(t[:4]) for t in times))


def about_this_run(noise: Noise, **more: str) -> dict[str, str]:
    """Date, hardware and versions, and how quiet the machine was."""
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{_processor()}, {cores} cores, {memory:.0f} GiB",
        "versions": f"hotswap {hotswap.__version__} ({_commit()}), torch {version('torch')}, "
        f"transformers {version('transformers')}, Python {platform.python_version()}",
        "other processes used": f"{noise.foreign_cores():.2f} cores",
        **more,
    }


def _processor() -> str:
    """The model's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    """What is measured, as git names it; where there is no repository, nothing names it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "no commit"
