"""Contenders that hold one of two models at a time and change to the other one when asked to."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bench import servers
from bench.client import BadAnswer, Connection, Streamed, stream_chat
from bench.exchange import exchange
from bench.prompts import Prompts
from bench.servers import Server, ServerKind
from bench.worker import Worker

OURS = "hotswap"
TRANSFORMERS = "transformers serve"
PRETRAINED = "from_pretrained"

_ANSWER_TOKENS = 2
_PROBE_PAUSE_S = 0.01
_HEAD_START_S = 0.01
"""Between the request that the old model answers and the one for the new model."""


@dataclass(frozen=True, slots=True)
class Models:
    """The two models, as directories beside each other."""

    paths: tuple[Path, Path]

    @property
    def names(self) -> tuple[str, str]:
        """As our server calls what lies in a ``--models-dir``."""
        first, second = (path.name for path in self.paths)
        return first, second


class Pair(Protocol):
    """A contender with two models, one of which is resident."""

    @property
    def resident(self) -> int:
        """Which of the two."""

    def visit(self) -> None:
        """Ask for the other model, whatever it takes."""

    def forget(self) -> None:
        """What was measured so far was for practice."""

    def resident_s(self) -> float:
        """Seconds to the first token of the resident model, after a fresh prompt."""

    def swap_s(self) -> float:
        """The same of the other model, which is resident then."""


class ServedPair(ABC):
    """A server with two models."""

    def __init__(self, server: Server, names: tuple[str, str], prompts: Prompts) -> None:
        self.server = server
        self.names = names
        self.resident = 0
        self._prompts = prompts

    def resident_s(self) -> float:
        with self.server.awake():
            answer = asyncio.run(self.ask(self.resident))
        return answer.first - answer.began

    def swap_s(self) -> float:
        with self.server.awake():
            return asyncio.run(self.change())

    def visit(self) -> None:
        with self.server.awake():
            asyncio.run(self.ask(1 - self.resident))

    def worst_probe_s(self, swaps: int) -> float:
        """The longest that a health probe waited during so many swaps, asked every 10 ms."""
        with self.server.awake():
            return asyncio.run(self._probed(swaps))

    @abstractmethod
    def forget(self) -> None:
        """As `Pair.forget`."""

    @abstractmethod
    async def change(self) -> float:
        """Ask for the model that is not resident; seconds to its first token."""

    async def ask(self, index: int, new_tokens: int = _ANSWER_TOKENS) -> Streamed:
        answer = await stream_chat(
            self.server.port, self.names[index], self._prompts.text(), new_tokens
        )
        if answer.prompt_tokens != self._prompts.tokens:
            raise BadAnswer(f"a prompt of {answer.prompt_tokens} tokens")
        self.resident = index
        return answer

    async def _probed(self, swaps: int) -> float:
        waits: list[float] = []
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(_probe(self.server, waits))
            for _ in range(swaps):
                await self.change()
            probing.cancel()
        return max(waits)


class HotswapPair(ServedPair):
    """Our server, which is expected to have the other model parked, or not to."""

    def __init__(
        self, server: Server, names: tuple[str, str], prompts: Prompts, *, parks: bool
    ) -> None:
        super().__init__(server, names, prompts)
        self.timings: list[Mapping[str, float]] = []
        """What the server says of each swap."""
        self.measured_s: list[float] = []
        """What the client saw of the same ones."""
        self._parks = parks

    def forget(self) -> None:
        self.timings.clear()
        self.measured_s.clear()

    async def change(self) -> float:
        other = 1 - self.resident
        status = await self.status()
        parked = self.names[other] in {model["model"] for model in status["parked"]}
        if parked != self._parks:
            raise BadAnswer(f"{self.names[other]} is {'' if parked else 'not '}parked")
        answer = await self.ask(other)
        seconds = answer.first - answer.began
        after = await self.status()
        if after["swaps"] != status["swaps"] + 1:
            raise BadAnswer(f"{after['swaps'] - status['swaps']} swaps instead of one")
        self.timings.append(phases(after["timings"]))
        self.measured_s.append(seconds)
        return seconds

    def gap_s(self, answer_tokens: int) -> float:
        """Between the last byte of a long answer of the old model and the first token of the new
        one, which is asked for while the old one answers."""
        with self.server.awake():
            return asyncio.run(self._drained(answer_tokens))

    async def _drained(self, answer_tokens: int) -> float:
        old_model, new_model = self.resident, 1 - self.resident
        async with asyncio.TaskGroup() as group:
            old = group.create_task(self.ask(old_model, answer_tokens))
            await asyncio.sleep(_HEAD_START_S)
            new = group.create_task(self.ask(new_model))
        self.resident = new_model
        answered = old.result()
        if answered.last >= new.result().first:
            raise BadAnswer("the answers of the two models overlap")
        if new.result().began > answered.last:
            raise BadAnswer("the old model had answered before the new one was asked for")
        return new.result().first - answered.last

    async def status(self) -> dict[str, Any]:
        answer = await exchange(self.server.port, "GET", "/status")
        if answer.status != 200:
            raise BadAnswer(f"GET /status: {answer.status}")
        status: dict[str, Any] = answer.body
        return status


class TransformersPair(ServedPair):
    """``transformers serve``. It keeps every model it was asked for until it is told to let go of
    all of them, which counts."""

    def forget(self) -> None:
        """Nothing is kept."""

    async def change(self) -> float:
        began = time.perf_counter()
        answer = await exchange(self.server.port, "POST", "/reset", {})
        if answer.status != 200:
            raise BadAnswer(f"POST /reset: {answer.status}")
        return (await self.ask(1 - self.resident)).first - began


class PretrainedPair:
    """`from_pretrained` in a process of its own, without HTTP."""

    def __init__(self, worker: Worker, models: Models, prompts: Prompts) -> None:
        self._worker = worker
        self._models = models
        self._prompts = prompts
        self.resident = 0

    def resident_s(self) -> float:
        answer = self._worker.ask("forward", prompt=self._prompts.ids())
        return float(answer["seconds"])

    def visit(self) -> None:
        self.swap_s()

    def forget(self) -> None:
        """Nothing is kept."""

    def swap_s(self) -> float:
        self.resident = 1 - self.resident
        model = self._models.paths[self.resident]
        answer = self._worker.ask("swap", model=str(model), prompt=self._prompts.ids())
        return float(answer["seconds"])


def phases(timings: Mapping[str, Any]) -> dict[str, float]:
    """The phases of a swap in seconds, in the server's order; what has no time is left out."""
    return {
        name: float(value)
        for name, value in timings.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


async def _probe(server: Server, waits: list[float]) -> None:
    """Until cancelled."""
    async with Connection(server.port) as connection:
        with suppress(asyncio.CancelledError):
            while True:
                began = time.perf_counter()
                status = await connection.get(server.kind.live_path)
                if status != 200:
                    raise BadAnswer(f"GET {server.kind.live_path}: {status}")
                waits.append(time.perf_counter() - began)
                await asyncio.sleep(_PROBE_PAUSE_S)


def hotswap(models_dir: Path, device: str, **settings: str) -> ServerKind:
    """Our server with the models of a directory, each swapped in when it is asked for.

    Args:
        settings: by the environment, so that a commit that does not know one says so in its log
            and is measured all the same.
    """
    words = [f"HOTSWAP_{name.upper()}={value}" for name, value in settings.items()]
    kind = servers.hotswap()
    flags = ("--enable-on-demand-loading", "--models-dir", str(models_dir), "--device", device)
    return replace(
        kind,
        name=" ".join([kind.name, *settings, *settings.values()]),
        command=("env", *words, *kind.command, *flags),
    )


class Unbound(ServerKind):
    """A server that is told no model at its start."""

    def line(self, model: Path, port: int) -> list[str]:
        return super().line(model, port)[:-1]


def transformers(executable: Path, device: str) -> ServerKind:
    """``transformers serve`` for whatever model a request names."""
    plain, _ = servers.both_transformers(executable)
    return Unbound(
        name=plain.name,
        command=(*plain.command, "--device", device),
        model_flag=plain.model_flag,
        ready_path=plain.ready_path,
        live_path=plain.live_path,
        batches=plain.batches,
    )
