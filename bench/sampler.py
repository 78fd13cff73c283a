"""Measures our sampler beside the others that draw from the same logits.

    python -m bench.sampler [--json FILE] [--rows N ...] [--vocab N ...] [--dtypes NAME ...]
                            [--filters on off] [--rounds N] [--quick]

On a CUDA device if there is one, else on the CPU. "One read" is the floor: the largest of each row,
for which all logits are read once. Logits are normal with a deviation of 3, the temperature is 0.7,
and with filters top-k is 50 and top-p 0.95.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bench.figures import Figure, Noise, Report, Wanted, about_this_run, judge
from bench.gpu_device import device_name
from bench.kernels import call_times_us
from bench.rounds import rounds, turn, warm_up
from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.sampler import sampler_on

ROWS = (1, 8, 32, 128, 256)
VOCABS = (32_000, 128_256, 151_936)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_TEMPERATURE, _TOP_K, _TOP_P = 0.7, 50, 0.95
_FLOOR, _OURS, _TRANSFORMERS = "one read", "hotswap", "transformers"
_COMPILED = "torch compiled"

Draw = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Task:
    """What is drawn from."""

    rows: int
    vocab: int
    dtype: str
    filters: bool

    @property
    def name(self) -> str:
        return (
            f"{self.rows} x {self.vocab:,}, {self.dtype}, filters {'on' if self.filters else 'off'}"
        )

    def logits(self, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(self.rows, self.vocab, generator=generator) * 3
        return logits.to(device, DTYPES[self.dtype])

    @property
    def top_k(self) -> int:
        return _TOP_K if self.filters else 0

    @property
    def top_p(self) -> float:
        return _TOP_P if self.filters else 1.0


def read_once(_task: Task, logits: Tensor) -> Draw:
    return lambda: logits.amax(-1)


def ours(task: Task, logits: Tensor) -> Draw:
    """Whole on the CPU; on CUDA what is in the decode graph."""
    params = DrawParams(temperature=_TEMPERATURE, top_k=task.top_k, top_p=task.top_p)
    rows = [SamplingRow(params, seed=i, position=7) for i in range(task.rows)]
    sampler: Any = sampler_on(logits.device)
    if logits.is_cuda:
        sampler.prepare(rows, task.vocab)
        return lambda: sampler.launch(logits, None)
    return lambda: sampler.draw(logits, rows).results()


def transformers(task: Task, logits: Tensor) -> Draw:
    """The processors that `generate` makes of these parameters, softmax and multinomial."""
    chain: Any = LogitsProcessorList([TemperatureLogitsWarper(_TEMPERATURE)])
    if task.filters:
        chain.extend([TopKLogitsWarper(_TOP_K), TopPLogitsWarper(_TOP_P)])
    ids = torch.zeros(task.rows, 1, dtype=torch.int64, device=logits.device)
    return lambda: torch.multinomial(chain(ids, logits.float()).softmax(-1), 1)


def sorting(task: Task, logits: Tensor) -> Draw:
    """One sort for both filters, and an exponential race instead of multinomial."""
    return lambda: _sorted_draw(logits, task.top_k, task.top_p)


def compiled(task: Task, logits: Tensor) -> Draw:
    draw = torch.compile(_sorted_draw, dynamic=False)
    return lambda: draw(logits, task.top_k, task.top_p)


def flashinfer(task: Task, logits: Tensor) -> Draw:
    from flashinfer import sampling  # type: ignore[import-not-found]  # noqa: PLC0415 - where it is

    def draw() -> object:
        scaled = logits.float() / _TEMPERATURE
        if not task.filters:
            return sampling.sampling_from_logits(scaled)
        return sampling.top_k_top_p_sampling_from_logits(
            scaled, _TOP_K, _TOP_P, filter_apply_order="top_k_first"
        )

    return draw


def pivots(task: Task, logits: Tensor) -> Draw:
    from bench.pivot import PivotSampler  # noqa: PLC0415 - needs Triton

    sampler = PivotSampler(task.rows, task.vocab, logits.device)
    return lambda: sampler.draw(logits, _TEMPERATURE, task.top_k, task.top_p)


def _sorted_draw(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    scaled = logits.float() / _TEMPERATURE
    if not top_k and top_p >= 1:
        probabilities = scaled.softmax(-1)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)
    ordered, ids = scaled.sort(dim=-1, descending=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    places = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)
    return ids.gather(1, places[:, None])[:, 0]


CONTENDERS: dict[str, Callable[[Task, Tensor], Draw]] = {
    _OURS: ours,
    _TRANSFORMERS: transformers,
    "torch sort": sorting,
    _COMPILED: compiled,
    "FlashInfer": flashinfer,
    "pivots": pivots,
    _FLOOR: read_once,
}


def left_out(device: torch.device) -> dict[str, str]:
    """Contenders that cannot run here, and why."""
    reasons = {}
    if device.type != "cuda":
        reasons = dict.fromkeys((_COMPILED, "FlashInfer", "pivots"), "for CUDA")
    elif find_spec("flashinfer") is None:
        reasons = {"FlashInfer": "not installed"}
    return reasons


def measure(tasks: Iterator[Task], device: torch.device, count: int) -> tuple[Figure, ...]:
    """Microseconds of each contender, and times the floor of the same task."""
    figures: list[Figure] = []
    names = tuple(name for name in CONTENDERS if name not in left_out(device))
    for task in tasks:
        logits = task.logits(device)
        draws = {name: CONTENDERS[name](task, logits) for name in names}
        if not _compiles(draws.get(_COMPILED)):
            del draws[_COMPILED]
        times = _cuda_times(draws) if device.type == "cuda" else _cpu_times(draws, count)
        taken = [Figure(task.name, name, "us", tuple(times[name])) for name in draws]
        floor = next(figure.median for figure in taken if figure.contender == _FLOOR)
        figures += taken
        figures += [
            Figure(task.name, figure.contender, "x one read", (figure.median / floor,))
            for figure in taken
        ]
    return tuple(figures)


def _compiles(draw: Draw | None) -> bool:
    """Torch's compiler has no code for one long row in some releases (2.11 on an H100)."""
    if draw is None:
        return True
    from torch._inductor.exc import InductorError  # noqa: PLC0415 - seconds

    try:
        draw()
    except InductorError as error:
        print(f"{_COMPILED}: {error}", file=sys.stderr)
        return False
    return True


def _cpu_times(draws: dict[str, Draw], count: int) -> dict[str, list[float]]:
    for draw in draws.values():
        warm_up(_seconds, draw)
    times: dict[str, list[float]] = {name: [] for name in draws}
    for order in rounds(tuple(draws), count):
        for name in order:
            times[name].append(turn(_seconds, draws[name]) * 1e6)
    return times


def _cuda_times(draws: dict[str, Draw]) -> dict[str, list[float]]:
    """Replays of graphs; the processors of transformers as they are used, without one."""
    return {
        name: _event_times_us(draw) if name == _TRANSFORMERS else list(call_times_us(draw))
        for name, draw in draws.items()
    }


def _event_times_us(draw: Draw) -> list[float]:
    times = []
    for _ in range(15):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        draw()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return times


def _seconds(draw: Draw) -> float:
    began = time.perf_counter()
    draw()
    return time.perf_counter() - began


def goals(device: torch.device) -> Iterator[Wanted]:
    """Of issue 4, and of section 2 of the design for an H200."""
    if device.type != "cuda":
        for rows in (1, 16):
            for dtype in DTYPES:
                name = Task(rows, 151_936, dtype, True).name
                yield Wanted(figure=(name, _OURS), beside=(name, _TRANSFORMERS), bound=0.2)
        return
    for rows, bound_us in ((1, 25), (32, 40), (128, 60)):
        name = Task(rows, 151_936, "bf16", True).name
        yield Wanted(figure=(name, _OURS), bound=bound_us)
        yield Wanted(figure=(name, _OURS), beside=(name, _TRANSFORMERS), bound=0.1)
        for rival in (_COMPILED, "FlashInfer", "pivots"):
            yield Wanted(figure=(name, _OURS), beside=(name, rival), bound=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="N")
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS, metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--filters", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one small task, for a smoke test")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.vocab, arguments.rounds = [1], [2_000], 1
        arguments.dtypes = ["bf16"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    noise = Noise()
    tasks = (
        Task(rows, vocab, dtype, filters == "on")
        for vocab in arguments.vocab
        for rows in arguments.rows
        for dtype in arguments.dtypes
        for filters in arguments.filters
    )
    figures = measure(tasks, device, arguments.rounds)
    hardware = {"device": device_name("cuda")} if device.type == "cuda" else {}
    missing = {"left out": ", ".join(f"{k} ({why})" for k, why in left_out(device).items())}
    about = about_this_run(noise, **hardware, **missing)
    microseconds = [figure for figure in figures if figure.unit == "us"]
    Report(
        title="Samplers; ours on CUDA: what is in the decode graph",
        about=about,
        figures=figures,
        goals=judge(goals(device), microseconds),
    ).publish(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
