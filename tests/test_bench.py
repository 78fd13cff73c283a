"""The benchmarks run, and leave every figure that they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

ROOT = Path(__file__).parent.parent


def bench(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def quick(module: str, models: Path, tmp_path: Path) -> tuple[dict[tuple[str, str], float], Any]:
    """Medians by name and contender, and the whole report."""
    file = tmp_path / "report.json"
    words = ("--quick", "--shape", "tiny", "--models", str(models), "--json", str(file))
    done = bench(module, *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    return {(f["name"], f["contender"]): f["median"] for f in report["figures"]}, report


def test_the_engine_is_measured_beside_the_others(tiny_models: Path, tmp_path: Path) -> None:
    figures, report = quick("engine", tiny_models, tmp_path)
    engines = ("hotswap", "generate", "continuous batching")
    expected = {
        (f"{kind}, {count}", engine)
        for kind in ("prefill", "decode")
        for count in ("1 sequence", "4 sequences")
        for engine in engines
    }
    expected |= {(f"decode, {count}", "memory") for count in ("1 sequence", "4 sequences")}
    expected |= {
        (f"decode with draws, {count}", name)
        for count in ("1 sequence", "4 sequences")
        for name in ("hotswap", "hotswap, greedy")
    }
    expected |= {
        ("first token, 34-token prompt", "hotswap"),
        ("first token, 34-token prompt", "bare forward"),
        ("first token, 256-token prompt", "hotswap"),
        ("first token, 256-token prompt again", "hotswap"),
        ("longest gap in an answer", "hotswap"),
        ("longest gap beside a 1024-token prompt", "hotswap"),
        ("longest gap beside a 1024-token prompt", "bare forward"),
    }
    assert figures.keys() == expected
    assert all(median > 0 for median in figures.values())
    assert {goal["name"] for goal in report["goals"]} == {
        "first token, 34-token prompt / bare forward",
        "first token, 256-token prompt / first token, 256-token prompt again",
        "longest gap beside a 1024-token prompt / bare forward",
    }


def test_the_server_is_measured_beside_the_engine(tiny_models: Path, tmp_path: Path) -> None:
    figures, report = quick("serve", tiny_models, tmp_path)
    late = "99 % of probes beside 8 streams answered within"
    assert figures.keys() == {
        ("first token, 34-token prompt", "hotswap"),
        ("first token, 34-token prompt again", "hotswap"),
        ("first token, 410-token prompt", "hotswap"),
        ("first token, 410-token prompt again", "hotswap"),
        ("1 stream", "hotswap"),
        ("4 streams", "hotswap"),
        ("8 streams", "hotswap"),
        ("8 streams", "engine alone"),
        ("resident memory", "hotswap"),
        ("GET /v1/models, 16 connections", "hotswap"),
        (late, "hotswap"),
    }
    assert all(median > 0 for median in figures.values())
    ratio = figures["8 streams", "hotswap"] / figures["8 streams", "engine alone"]
    goals = {goal["name"]: goal for goal in report["goals"]}
    assert goals.keys() == {"8 streams / engine alone", late}
    assert goals["8 streams / engine alone"]["measured"] == pytest.approx(ratio)
    assert goals["8 streams / engine alone"]["met"] == (ratio >= 0.95)


@pytest.mark.parametrize("module", ["gpu", "kernels"])
def test_without_a_gpu_there_is_one_line_and_no_traceback(module: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    done = bench(module)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["There is no CUDA device on this machine."]
    assert done.stdout == ""


def test_the_steps_of_a_visit_have_time_for_all_of_them() -> None:
    from bench.gpu import VISIT_S, visits

    for steps in visits(Path("models")).values():
        assert sum(step.limit_s for step in steps) <= VISIT_S < 600


def test_a_step_that_fails_or_takes_too_long_is_told(tmp_path: Path) -> None:
    from bench.gpu import Step, take

    with (tmp_path / "log").open("w") as log:
        failing = take(Step("failing", ("-c", "raise SystemExit(3)"), 60), tmp_path, log, 60)
        endless = Step("endless", ("-c", "import threading; threading.Event().wait()"), 0.1)
        stopped = take(endless, tmp_path, log, endless.limit_s)
    assert (failing.verdict, failing.report) == ("failed with status 3", None)
    assert stopped.verdict == "stopped after 0 s"


@pytest.mark.parametrize(
    ("at_least", "bound", "met"),
    [(True, 2.0, True), (True, 2.1, False), (False, 2.0, True), (False, 1.9, False)],
)
def test_goals_are_ratios_of_medians(at_least: bool, bound: float, met: bool) -> None:
    from bench.figures import Figure, Wanted, judge

    figures = [
        Figure("decode", "hotswap", "tokens/s", (1.0, 4.0, 90.0)),
        Figure("decode", "generate", "tokens/s", (2.0, 1.0, 3.0)),
    ]
    beside = Wanted(
        figure=("decode", "hotswap"),
        beside=("decode", "generate"),
        bound=bound,
        at_least=at_least,
    )
    unmeasured = Wanted(figure=("decode", "hotswap"), beside=("decode", "memory"), bound=1)
    [goal] = judge([beside, unmeasured], figures)
    assert (goal.name, goal.measured, goal.met) == ("decode / generate", 2.0, met)


def test_each_contender_goes_first_in_turn() -> None:
    from bench.rounds import rounds

    assert list(rounds(("a", "b"), 3)) == [("a", "b"), ("b", "a"), ("a", "b")]


def test_a_stream_without_all_its_tokens_is_no_figure() -> None:
    """A server that ends early would look fast."""
    import asyncio

    from bench.client import BadAnswer, stream_chat

    events = (
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events))
        await writer.drain()
        writer.close()

    async def ask(new_tokens: int) -> int:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return (await stream_chat(port, "m", "hello", new_tokens)).tokens

    assert asyncio.run(ask(1)) == 1
    with pytest.raises(BadAnswer, match="2 tokens were asked for"):
        asyncio.run(ask(2))


def test_a_connection_that_the_server_ends_is_renewed() -> None:
    import asyncio

    from bench.client import Connection

    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask() -> list[int]:
        async with (
            await asyncio.start_server(answer, "127.0.0.1", 0) as server,
            Connection(server.sockets[0].getsockname()[1]) as connection,
        ):
            return [await connection.get("/") for _ in range(2)]

    assert asyncio.run(ask()) == [204, 204]
    assert connections == 2
