"""Measures how long hotswap takes from one model to another one, beside the usual ways.

    python -m bench.swap [--transformers VENV/bin/transformers] [--shape q06] [--quick]
                         [--json FILE] [--plot FILE.png]

Two models of one shape, A to B to A, from the request for B while A is resident to B's first token
over HTTP. Cold from disk means that the page cache was told to drop B's files
(`posix_fadvise(DONTNEED)`), which needs no root but works only for clean pages that no process
maps. How everything is measured and what it is held against is told in docs/performance.md.

The part "stress" swaps under load with faults in between. If anything is lost, changed or left
behind there, the exit status is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import stress
from bench.checkpoints import DEFAULT_MODELS, SEEDS, SHAPES, checkpoint
from bench.figures import Figure, Noise, Report, about_this_run, judge
from bench.gantt import Row, plot
from bench.gpu_device import device_name
from bench.pairs import OURS, Models
from bench.swap_goals import goals
from bench.swap_parts import ALONE, PARTS, Bench, Findings, Settings
from hotswap.demo import MODELS_DIR

DEMO = "demo"
"""The two bundled models. They answer as briefly as they have learnt to, so that they are good
for the stress only."""

_DRAINED_TOKENS = {"tiny": 512, "small": 128, "q06": 32, "q8b": 128}
"""Per shape, answers that take a second at most on two cores."""
_PLOTTED = 20
"""Swaps of each kind."""
_TOLD = 20
"""Different complaints."""


def quick(settings: Settings) -> Settings:
    """Every figure, none of them worth quoting."""
    return replace(settings, rounds=1, probe_swaps=2, swaps=20, faults=4)


def run(settings: Settings) -> tuple[Report, Findings]:
    """Measure, and hold what was measured against the goals."""
    noise = Noise()
    with tempfile.TemporaryDirectory() as home:
        findings = Bench(settings, Path(home)).measure()
    about = about_this_run(
        noise,
        models=" and ".join(settings.models.names),
        device=device_name(settings.device),
        **findings.notes,
    )
    wanted = [
        *goals(settings.shape, settings.device, settings.probe_swaps),
        *stress.checks(OURS),
    ]
    figures = tuple(findings.figures)
    title = f"Swaps, {settings.shape} on {settings.device}"
    report = Report(title=title, about=about, figures=figures, goals=judge(wanted, figures))
    return report, findings


def failed_checks(figures: Sequence[Figure]) -> list[str]:
    """What the stress has found, one line for each check that was not met."""
    return [str(check) for check in judge(stress.checks(OURS), figures) if not check.met]


def plotted(rows: Sequence[Row], each: int = _PLOTTED) -> list[Row]:
    """The first ones of each kind."""
    kinds = dict.fromkeys(row.kind for row in rows)
    return [row for kind in kinds for row in [r for r in rows if r.kind == kind][:each]]


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    parts = tuple(arguments.parts or (["stress"] if arguments.shape == DEMO else PARTS))
    if arguments.shape == DEMO and parts != ("stress",):
        parser.error(f"--shape {DEMO} is for --parts stress only")
    # Asked to end, it ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = Settings(
        shape=arguments.shape,
        models=_models(arguments.models, arguments.shape),
        device=arguments.device,
        transformers=arguments.transformers,
        parts=parts,
        rounds=arguments.rounds,
        drained_tokens=_DRAINED_TOKENS.get(arguments.shape, 0),
        swaps=arguments.swaps,
        clients=arguments.clients,
    )
    if arguments.quick:
        settings = quick(settings)
    report, findings = run(settings)
    report.publish(arguments.json)
    if arguments.plot is not None and findings.rows:
        plot(plotted(findings.rows), report.title, arguments.plot)
    for complaint, times in Counter(findings.complaints).most_common(_TOLD):
        print(f"{times} x {complaint}", file=sys.stderr)
    if failed_checks(findings.figures):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, DEMO], default="q06")
    parser.add_argument("--models", type=Path, default=DEFAULT_MODELS, metavar="DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--transformers", type=Path, metavar="FILE", help="the command of another environment"
    )
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, ALONE))
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--swaps", type=int, default=100, metavar="N", help="of the stress")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="of the stress")
    parser.add_argument("--quick", action="store_true", help="a smoke test of every part")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a bar for each swap")
    return parser


def _models(folder: Path, shape: str) -> Models:
    if shape == DEMO:
        demo = MODELS_DIR / "hotswap"
        return Models((demo / "sums", demo / "tales"))
    first, second = (checkpoint(folder, shape, seed) for seed in SEEDS)
    return Models((first, second))


if __name__ == "__main__":
    main()
