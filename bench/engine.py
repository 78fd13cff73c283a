"""Measures our engine without HTTP, beside transformers' engines and the memory's bandwidth.

    python -m bench.engine [--shape q06] [--quick] [--json FILE]

Contenders run in processes of their own and take turns, each round in another order; every figure
is the median of the rounds. How each is measured and what it is held against is told in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench.checkpoints import DEFAULT_MODELS, SHAPES, TOKEN_IDS, checkpoint
from bench.figures import Figure, Noise, Report, Wanted, about_this_run, judge
from bench.gpu_device import device_name
from bench.rounds import rounds, turn, warm_up
from bench.worker import Worker

ENGINES = ("hotswap", "generate", "continuous batching")
"""Contenders that generate; the fourth, "memory", reads."""
GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 0.7, "top_k": 50, "top_p": 0.95}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and how often."""

    model: Path
    device: str = "cpu"
    parts: tuple[str, ...] = ("throughput", "draws", "first token", "reuse", "interruption")
    sequences: tuple[int, ...] = (1, 4, 16, 64)
    drawn_sequences: tuple[int, ...] = (1, 32)
    prompt_tokens: int = 32
    new_tokens: int = 32
    first_token_prompts: tuple[int, ...] = (34, 410)
    reused_tokens: int = 2000
    tail_tokens: int = 20
    intruder_tokens: int = 4000
    rounds: int = 3
    contenders: tuple[str, ...] = ENGINES


def quick(settings: Settings) -> Settings:
    """Every figure, none of them worth quoting."""
    return replace(
        settings,
        sequences=(1, 4),
        drawn_sequences=(1, 4),
        prompt_tokens=8,
        new_tokens=8,
        first_token_prompts=(34,),
        reused_tokens=256,
        intruder_tokens=1024,
        rounds=1,
    )


class Bench:
    """The contenders of one run, and what they are asked."""

    def __init__(self, settings: Settings, workers: dict[str, Worker], seed: int = 0) -> None:
        self._settings = settings
        self._workers = workers
        self._random = random.Random(seed)

    def prompt(self, tokens: int) -> list[int]:
        """One that no contender has seen, so that no prefix cache knows it."""
        return self._random.choices(TOKEN_IDS, k=tokens)

    def measure(self) -> tuple[Figure, ...]:
        parts: dict[str, Callable[[], list[Figure]]] = {
            "throughput": self.throughput,
            "draws": self.draws,
            "first token": self.first_token,
            "reuse": self.reuse,
            "interruption": self.interruption,
        }
        for name in self._settings.contenders:
            warm_up(self.generate, name, 1, self._settings.new_tokens)
        return tuple(figure for part in self._settings.parts for figure in parts[part]())

    def generate(self, name: str, sequences: int, new_tokens: int) -> float:
        """Seconds for ``new_tokens`` of each of ``sequences`` fresh prompts."""
        prompts = [self.prompt(self._settings.prompt_tokens) for _ in range(sequences)]
        answer = self._workers[name].ask("generate", prompts=prompts, new_tokens=new_tokens)
        return float(answer["seconds"])

    def throughput(self) -> list[Figure]:
        """Tokens/s. Answers of one token take the prompts' time; longer ones take the time of the
        further tokens on top, whatever a contender does around its steps."""
        settings = self._settings
        figures: list[Figure] = []
        for sequences in settings.sequences:
            prefill: dict[str, list[float]] = {name: [] for name in settings.contenders}
            decode: dict[str, list[float]] = {name: [] for name in settings.contenders}
            floor: list[float] = []
            for name in settings.contenders:
                self.generate(name, sequences, 2)
            for order in self._rounds():
                for name in order:
                    first = turn(self.generate, name, sequences, 1)
                    whole = turn(self.generate, name, sequences, 1 + settings.new_tokens)
                    prefill[name].append(sequences * settings.prompt_tokens / first)
                    decode[name].append(sequences * settings.new_tokens / (whole - first))
                floor.append(sequences / turn(self._read))
            several = _several(sequences)
            for label, rates in (("prefill", prefill), ("decode", decode)):
                figures += [
                    Figure(f"{label}, {several}", name, "tokens/s", tuple(values))
                    for name, values in rates.items()
                ]
            figures.append(Figure(f"decode, {several}", "memory", "tokens/s", tuple(floor)))
        return figures

    def draws(self) -> list[Figure]:
        """Our tokens/s where they are drawn, beside those of greedy answers in the same rounds."""
        settings, figures = self._settings, list[Figure]()
        kinds = {"hotswap": DRAWN, "hotswap, greedy": GREEDY}
        for sequences in settings.drawn_sequences:
            rates: dict[str, list[float]] = {name: [] for name in kinds}
            for name in (*kinds, *kinds):  # a GPU records a step when it comes again
                self._answer(sequences, 3, kinds[name])
            for order in rounds(tuple(kinds), settings.rounds):
                for name in order:
                    first = turn(self._answer, sequences, 1, kinds[name])
                    whole = turn(self._answer, sequences, 1 + settings.new_tokens, kinds[name])
                    rates[name].append(sequences * settings.new_tokens / (whole - first))
            figures += [
                Figure(f"decode with draws, {_several(sequences)}", name, "tokens/s", tuple(values))
                for name, values in rates.items()
            ]
        return figures

    def first_token(self) -> list[Figure]:
        """Our engine's first token beside a bare forward of as long a prompt."""
        figures = []
        for tokens in self._settings.first_token_prompts:
            ours, bare = [], []
            for _ in self._rounds():
                ours.append(turn(self._first, tokens))
                bare.append(turn(self._prefill, tokens))
            name = f"first token, {tokens}-token prompt"
            figures.append(Figure(name, "hotswap", "s", tuple(ours)))
            figures.append(Figure(name, "bare forward", "s", tuple(bare)))
        return figures

    def reuse(self) -> list[Figure]:
        """A prompt, and the same one again with another tail."""
        settings = self._settings
        fresh, again = [], []
        for _ in self._rounds():
            shared = self.prompt(settings.reused_tokens)
            fresh.append(self._first(settings.tail_tokens, shared))
            again.append(turn(self._first, settings.tail_tokens, shared))
        prompt = f"{settings.reused_tokens}-token prompt"
        return [
            Figure(f"first token, {prompt}", "hotswap", "s", tuple(fresh)),
            Figure(f"first token, {prompt} again", "hotswap", "s", tuple(again)),
        ]

    def interruption(self) -> list[Figure]:
        """The longest gap in a running answer while a long prompt comes in between, beside a bare
        forward of as many tokens as our engine computes in one step meanwhile."""
        settings = self._settings
        gaps, quiet, bare = [], [], []
        for _ in self._rounds():
            answer = self._workers["hotswap"].ask(
                "interrupt",
                prompt=self.prompt(settings.prompt_tokens),
                new_tokens=settings.intruder_tokens,
                intruder=self.prompt(settings.intruder_tokens),
            )
            gaps.append(max(answer["gaps_s"]))
            quiet.append(max(answer["quiet_s"]))
            bare.append(turn(self._prefill, answer["step_tokens_beside"]))
        prompt = f"{settings.intruder_tokens}-token prompt"
        return [
            Figure("longest gap in an answer", "hotswap", "s", tuple(quiet)),
            Figure(f"longest gap beside a {prompt}", "hotswap", "s", tuple(gaps)),
            Figure(f"longest gap beside a {prompt}", "bare forward", "s", tuple(bare)),
        ]

    def _answer(self, sequences: int, new_tokens: int, sampling: Mapping[str, float]) -> float:
        """Seconds for ``new_tokens`` of our engine for each of ``sequences`` fresh prompts."""
        prompts = [self.prompt(self._settings.prompt_tokens) for _ in range(sequences)]
        answer = self._workers["hotswap"].ask(
            "generate", prompts=prompts, new_tokens=new_tokens, sampling=sampling
        )
        return float(answer["seconds"])

    def _rounds(self) -> Iterator[tuple[str, ...]]:
        return rounds(self._settings.contenders, self._settings.rounds)

    def _first(self, tokens: int, behind: Sequence[int] = ()) -> float:
        """Seconds to our first token after ``behind`` and so many fresh ones."""
        prompt = [*behind, *self.prompt(tokens)]
        answer = self._workers["hotswap"].ask("generate", prompts=[prompt], new_tokens=1)
        return float(answer["seconds"])

    def _prefill(self, tokens: int) -> float:
        """Seconds of a bare forward of so many tokens."""
        answer = self._workers["generate"].ask("prefill", prompt=self.prompt(tokens))
        return float(answer["seconds"])

    def _read(self) -> float:
        return float(self._workers["memory"].ask("read")["seconds"])


def _several(sequences: int) -> str:
    return f"{sequences} sequence{'s' * (sequences > 1)}"


def run(settings: Settings) -> Report:
    """Start the contenders, measure, and hold what was measured against the goals."""
    noise = Noise()
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, settings.model, settings.device))
            for name in (*settings.contenders, "memory")
        }
        figures = Bench(settings, workers).measure()
        about = about_this_run(
            noise, model=settings.model.name, device=device_name(settings.device)
        )
    title = f"The engine, {settings.model.name} on {settings.device}"
    return Report(title=title, about=about, figures=figures, goals=judge(goals(settings), figures))


def goals(settings: Settings) -> Iterator[Wanted]:
    """Those of the issue that are about the engine."""

    def wanted(name: str, theirs: str, bound: float, *, at_least: bool = False) -> Wanted:
        ours, beside = (name, "hotswap"), (name, theirs)
        return Wanted(figure=ours, beside=beside, bound=bound, at_least=at_least)

    if settings.device != "cpu":
        yield wanted("decode, 1 sequence", "generate", 8, at_least=True)
        yield wanted("decode, 1 sequence", "memory", 0.75, at_least=True)
        yield wanted("decode, 32 sequences", "continuous batching", 2.5, at_least=True)
    for tokens in settings.first_token_prompts:
        yield wanted(f"first token, {tokens}-token prompt", "bare forward", 1.2)
    fresh = f"first token, {settings.reused_tokens}-token prompt"
    yield Wanted(
        figure=(fresh, "hotswap"), beside=(f"{fresh} again", "hotswap"), bound=10, at_least=True
    )
    gap = f"longest gap beside a {settings.intruder_tokens}-token prompt"
    yield wanted(gap, "bare forward", 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings(model=Path())
    parser.add_argument("--shape", choices=list(SHAPES), default="q06")
    parser.add_argument("--models", type=Path, default=DEFAULT_MODELS, metavar="DIR")
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--parts", nargs="+", choices=defaults.parts, default=defaults.parts)
    parser.add_argument("--sequences", nargs="+", type=int, default=defaults.sequences, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=defaults.new_tokens, metavar="N")
    parser.add_argument(
        "--contenders", nargs="+", choices=defaults.contenders, default=defaults.contenders
    )
    parser.add_argument("--rounds", type=int, default=defaults.rounds, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a smoke test of every part")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    settings = Settings(
        model=checkpoint(arguments.models, arguments.shape),
        device=arguments.device,
        parts=tuple(arguments.parts),
        sequences=tuple(arguments.sequences),
        new_tokens=arguments.new_tokens,
        rounds=arguments.rounds,
        contenders=tuple(arguments.contenders),
    )
    if arguments.quick:
        settings = quick(settings)
    run(settings).publish(arguments.json)


if __name__ == "__main__":
    main()
