"""Everything that is to be known from two short visits to a machine with a GPU.

    python -m bench.gpu [--out DIR] [--steps small|large]

The first visit runs the tests marked ``gpu``, swaps, the sampler, the engine on a 0.6B shape and
the kernels; ``--steps large`` is the second one, with an 8B shape and continuous batching. Each
step has a limit, whatever becomes of the others, and a visit takes nine and a half minutes at most.
On a fresh machine much of that is the compiling of kernels. ``gpu.json`` holds the figures,
``gpu.log`` all that was printed; without --out they go to $OUT, or else to the current directory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from bench.checkpoints import DEFAULT_MODELS
from bench.gpu_device import NO_DEVICE, device_name

VISIT_S = 570.0
SMALL, LARGE = "small", "large"
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Step:
    """A command of this Python's, and the seconds it may take."""

    name: str
    words: tuple[str, ...]
    limit_s: float
    reports: bool = True
    """It takes ``--json``."""


def visits(models: Path) -> dict[str, tuple[Step, ...]]:
    """The steps of each."""
    engine = ("-m", "bench.engine", "--device", "cuda", "--models", str(models))
    swap = ("-m", "bench.swap", "--device", "cuda", "--models", str(models))
    sampler = (
        "--vocab",
        "151936",
        "--dtypes",
        "bf16",
        "--filters",
        "on",
        "--rows",
        "1",
        "32",
        "128",
    )
    few = ("--parts", "throughput", "draws", "--contenders", "hotswap", "generate", "--rounds", "2")
    sizes = ("--sequences", "1", "8", "32", "64")
    batching = ("--parts", "throughput", "--contenders", "hotswap", "continuous batching")
    swaps = ("--shape", "q06", "--parts", "swaps", "floors", "--rounds", "2")
    return {
        SMALL: (
            Step("tests", ("-m", "pytest", "-m", "gpu"), 150, reports=False),
            Step("swaps", (*swap, *swaps), 160),
            Step("sampler", ("-m", "bench.sampler", *sampler), 80),
            Step("0.6B", (*engine, "--shape", "q06", *sizes, *few), 140),
            Step("kernels", ("-m", "bench.kernels"), 40),
        ),
        LARGE: (
            Step("8B swaps", (*swap, "--shape", "q8b", "--parts", "alone", "floors"), 200),
            Step("8B", (*engine, "--shape", "q8b", *sizes, *few), 200),
            Step("batching", (*engine, "--shape", "q06", "--sequences", "32", *batching), 170),
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a step. ``report`` is None where it left none."""

    name: str
    verdict: str
    seconds: float
    report: dict[str, Any] | None


def visit(out: Path, steps: Sequence[Step]) -> Iterator[Outcome]:
    """Take the steps, one after the other, until the visit is over."""
    over = time.monotonic() + VISIT_S
    with (out / "gpu.log").open("w") as log:
        for step in steps:
            yield take(step, out, log, min(step.limit_s, over - time.monotonic()))


def take(step: Step, out: Path, log: IO[str], limit_s: float) -> Outcome:
    report = out / f".{step.name}.json"
    words = (*step.words, "--json", str(report)) if step.reports else step.words
    print(f"\n### {step.name}: {' '.join(words)}", file=log, flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
    )
    try:
        status = process.wait(max(0.0, limit_s))
        verdict = "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        verdict = f"stopped after {limit_s:.0f} s"
    found = None
    if report.exists():
        found = json.loads(report.read_text())
        report.unlink()
    seconds = time.monotonic() - began
    return Outcome(name=step.name, verdict=verdict, seconds=seconds, report=found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("OUT", "."))
    parser.add_argument("--out", type=Path, default=default, metavar="DIR")
    parser.add_argument("--models", type=Path, default=DEFAULT_MODELS, metavar="DIR")
    parser.add_argument("--steps", choices=(SMALL, LARGE), default=SMALL)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    print(device_name("cuda"))
    for outcome in visit(arguments.out, visits(arguments.models)[arguments.steps]):
        print(f"{outcome.name}: {outcome.verdict}, {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
        # After each step: what has been measured outlives a visit that is cut short.
        found = {"device": device_name("cuda"), "steps": [asdict(o) for o in outcomes]}
        (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print((arguments.out / "gpu.log").read_text())
    return 0 if all(outcome.verdict == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
