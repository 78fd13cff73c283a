"""How long others wait for the event loop while a server swaps, streams and reads huge prompts.

    python -m bench.lag [--seconds 12] [--rounds 1] [--json FILE]

The demo models; a process of its own asks for `/livez` every 20 ms. Each load alone, then all of
them together.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bench.client import BadAnswer
from bench.exchange import exchange
from bench.figures import Figure, Noise, Report, Wanted, about_this_run, judge
from bench.probe import probing
from bench.servers import Server, ServerKind, hotswap, serving
from bench.stalled import stream
from hotswap.demo import MODELS_DIR

OURS = hotswap().name
SUMS, TALES = "hotswap/sums", "hotswap/tales"
PROMPT_BYTES = 1 << 20
LAG_BOUND_S = 0.05
_STREAMS = 4
_WORDS = ("a ", "The quick brown fox jumps over the lazy dog. ")
"""Of which the huge prompts are made: as many words as will go in, and ordinary text."""

Load = Callable[[Server], Awaitable[None]]


async def read_huge_prompt(server: Server, words: str) -> None:
    """It is too long for any of the models, which is seen from the prompt itself.

    Raises:
        BadAnswer: it was not refused for that.
    """
    content = words * (PROMPT_BYTES // len(words))
    body = {"model": TALES, "prompt": content}
    answer = await exchange(server.port, "POST", "/v1/completions", body)
    if answer.status != 400 or answer.body["error"]["code"] != "context_length_exceeded":
        raise BadAnswer(str(answer)[:500])


async def swap(server: Server) -> None:
    """To one model and to the other.

    Raises:
        BadAnswer
    """
    for model in (SUMS, TALES):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is 45 + 27?"}],
            "max_tokens": 4,
        }
        answer = await exchange(server.port, "POST", "/v1/chat/completions", body)
        if answer.status != 200:
            raise BadAnswer(str(answer)[:500])


async def four_streams(server: Server) -> None:
    await asyncio.gather(*(stream(server.port, TALES) for _ in range(_STREAMS)))


def loads() -> Mapping[str, tuple[Load, ...]]:
    """By name, what goes on at the same time, each again and again."""
    huge: tuple[Load, ...] = tuple(
        lambda server, words=words: read_huge_prompt(server, words)  # type: ignore[misc]
        for words in _WORDS
    )
    return {
        "nothing": (),
        "prompts of 1 MB, two clients": huge,
        "a swap at every request": (swap,),
        "four streams": (four_streams,),
        "swaps and prompts of 1 MB": (swap, *huge),
        "streams and prompts of 1 MB": (four_streams, *huge),
        "all of it": (swap, four_streams, *huge),
    }


async def keep(server: Server, going_on: tuple[Load, ...], seconds: float) -> None:
    ends = time.monotonic() + seconds

    async def again(load: Load) -> None:
        while time.monotonic() < ends:
            await load(server)

    async with asyncio.TaskGroup() as group:
        for load in going_on:
            group.create_task(again(load))
        group.create_task(asyncio.sleep(seconds))


def figures(lags_s: Mapping[str, list[list[float]]]) -> Iterator[Figure]:
    """
    Args:
        lags_s: By load, of each round the seconds that each probe took.
    """
    for name, rounds in lags_s.items():
        for told, share in (("half", 0.5), ("99 %", 0.99), ("all", 1.0)):
            yield Figure(
                f"{name}: {told} of probes answered within",
                OURS,
                "s",
                tuple(sorted(waits)[round(share * (len(waits) - 1))] for waits in rounds),
            )


def goals() -> Iterator[Wanted]:
    for name in loads():
        yield Wanted(figure=(f"{name}: 99 % of probes answered within", OURS), bound=LAG_BOUND_S)


def run(seconds: float, rounds: int) -> Report:
    noise = Noise()
    lags_s: dict[str, list[list[float]]] = {name: [] for name in loads()}
    with tempfile.TemporaryDirectory() as temporary:
        kind = _swapping(hotswap())
        with serving(kind, MODELS_DIR / TALES, Path(temporary)) as server, server.awake():
            asyncio.run(swap(server))  # what is made once is made
            for _ in range(rounds):
                for name, going_on in loads().items():
                    with probing(server.port, kind.live_path) as waits:
                        asyncio.run(keep(server, going_on, seconds))
                    lags_s[name].append(waits)
    found = tuple(figures(lags_s))
    about = about_this_run(noise, models="the demo's", load=f"{seconds:g} s each")
    return Report(title="Lag", about=about, figures=found, goals=judge(goals(), found))


def _swapping(kind: ServerKind) -> ServerKind:
    flags = ("--models-dir", str(MODELS_DIR), "--enable-on-demand-loading")
    return replace(kind, command=(*kind.command, *flags))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="each load")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    run(arguments.seconds, arguments.rounds).publish(arguments.json)


if __name__ == "__main__":
    main()
