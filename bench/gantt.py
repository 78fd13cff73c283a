"""Swaps as bars: what each phase took, one bar for each swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GAP = "gap"
"""Not a phase but a span over some: until the new model could answer."""
AFTER_GAP = "first_token"
"""The gap ends where this phase begins."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of a swap, in seconds since its request."""

    name: str
    begin_s: float
    length_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One swap as the server tells it, and its first token as the client saw it."""

    kind: str
    number: int
    timings: Mapping[str, float]
    measured_s: float


def phase_bars(timings: Mapping[str, float]) -> tuple[Bar, ...]:
    """The phases end to end, in their order."""
    bars, end = [], 0.0
    for name, length in timings.items():
        if name != GAP:
            bars.append(Bar(name, end, length))
            end += length
    return tuple(bars)


def gap_bar(timings: Mapping[str, float]) -> Bar | None:
    """The gap under the phases; None where the server told none."""
    if GAP not in timings:
        return None
    before = [bar.length_s for bar in phase_bars(timings) if bar.name != AFTER_GAP]
    return Bar(GAP, sum(before) - timings[GAP], timings[GAP])


def plot(rows: Sequence[Row], title: str, file: Path) -> None:
    """Write a PNG: a bar for each row, a line under it for the gap, a mark at the first token.

    Raises:
        ImportError: matplotlib, which only this function needs, is not installed.
    """
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    names = list(dict.fromkeys(name for row in rows for name in row.timings if name != GAP))
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    canvas = Canvas(figsize=(10, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = canvas.subplots()
    for height, row in enumerate(rows):
        for bar in phase_bars(row.timings):
            axes.barh(height, 1e3 * bar.length_s, 0.6, 1e3 * bar.begin_s, color=colours[bar.name])
        gap = gap_bar(row.timings)
        if gap is not None:
            below = height + 0.38
            axes.hlines(below, 1e3 * gap.begin_s, 1e3 * (gap.begin_s + gap.length_s), "black")
        axes.plot(1e3 * row.measured_s, height, "k|", markersize=12)
    for name, colour in colours.items():
        axes.barh(0, 0, color=colour, label=name)
    axes.plot([], [], "k|", markersize=12, label="first token, as the client saw it")
    axes.set_yticks(range(len(rows)), [f"{row.kind} {row.number}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms since the request")
    axes.set_title(title)
    axes.margins(y=0.01)
    canvas.legend(loc="outside lower center", ncols=(len(colours) + 2) // 2)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, format="png", dpi=100)
