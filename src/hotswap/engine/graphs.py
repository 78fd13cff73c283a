"""Decode steps recorded as CUDA graphs, one for each padded number of rows and kind of step.

A graph reads its inputs where they were when it was recorded, so they are copied into buffers that
stay, and a batch is filled up to the next size that has a graph. A size is run once as it is, which
answers at once and leaves everything compiled, and recorded when it comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
"""A row for each sequence, in each of them."""


class StepKind(Enum):
    """What is wanted of a step."""

    GREEDY = auto()
    """Logits, and the likeliest token of each row."""
    DRAWN = auto()
    """The tokens that a sampler draws, whose tables are filled before."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Inputs of a decode step: a row for each sequence, whose newest token is computed."""

    ids: Tensor
    """[rows], the tokens."""
    positions: Tensor
    """[rows]"""
    slots: Tensor
    """[rows], where their keys and values go."""
    lengths: Tensor
    """[rows], tokens of each sequence, this one included."""
    tables: Tensor
    """[rows, blocks], the blocks of each sequence in order."""

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def first(self, rows: int) -> DecodeBatch:
        """Views of the first rows."""
        return DecodeBatch(
            self.ids[:rows],
            self.positions[:rows],
            self.slots[:rows],
            self.lengths[:rows],
            self.tables[:rows],
        )

    def take(self, other: DecodeBatch) -> None:
        """Copy ``other``, which may have fewer rows and narrower tables and lie on the host. Rows
        that are left over become padding: a length of zero and nowhere to store."""
        rows = other.rows
        self.ids[:rows].copy_(other.ids, non_blocking=True)
        self.positions[:rows].copy_(other.positions, non_blocking=True)
        self.slots[:rows].copy_(other.slots, non_blocking=True)
        self.lengths[:rows].copy_(other.lengths, non_blocking=True)
        self.tables[:rows, : other.tables.shape[1]].copy_(other.tables, non_blocking=True)
        self.slots[rows:].fill_(-1)
        self.lengths[rows:].zero_()


class Recording(Protocol):
    def replay(self) -> None: ...

    def reset(self) -> None:
        """Let go of the graph and the memory that it computes in."""


class Recorder(Protocol):
    def rehearse(self, step: Callable[[], Outputs]) -> Outputs:
        """Run ``step`` as it is, where it will be recorded."""

    def record(self, step: Callable[[], Outputs]) -> tuple[Recording, Outputs]:
        """Record ``step`` without running it; its outputs are what replays write to."""

    def wait(self) -> None:
        """Until nothing runs any more."""


Step = Callable[[DecodeBatch], Outputs]
"""Computes rows independently, and ignores those that are padding."""
_Key = tuple[int, StepKind]
"""Padded rows, and what is wanted of them."""


class DecodeGraphs:
    """Runs ``steps`` on batches of up to ``max_rows`` rows, replayed where there is a recorder.

    Owned by the device thread.
    """

    def __init__(
        self,
        steps: Mapping[StepKind, Step],
        *,
        max_rows: int,
        max_blocks: int,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self._steps: Mapping[StepKind, Step] | None = steps
        self._buffers: DecodeBatch | None = _padding(max_rows, max_blocks, device)
        self._sizes = padded_sizes(max_rows)
        self._recorder = recorder
        self._rehearsed: set[_Key] = set()
        self._recorded: dict[_Key, tuple[Recording, Outputs]] = {}

    def recorded(self, kind: StepKind) -> tuple[int, ...]:
        """Numbers of rows that there are graphs for."""
        return tuple(sorted(rows for rows, known in self._recorded if known is kind))

    def run(self, batch: DecodeBatch, kind: StepKind) -> Outputs:
        """One step. The outputs may be overwritten by the next one; pinned host tensors must keep
        their content until this one has begun on the device.

        Raises:
            ValueError: the batch has no rows, more than there is room for, or longer tables.
        """
        assert self._steps is not None, "closed"
        assert self._buffers is not None, "closed"
        if not 0 < batch.rows <= self._sizes[-1]:
            raise ValueError(f"{batch.rows} rows, where 1 to {self._sizes[-1]} are possible")
        if batch.tables.shape[1] > self._buffers.tables.shape[1]:
            raise ValueError(f"tables of {batch.tables.shape[1]} blocks are too long")
        size = next(size for size in self._sizes if size >= batch.rows)
        inputs = self._buffers.first(size)
        inputs.take(batch)
        step = self._steps[kind]
        outputs = self._run((size, kind), lambda: step(inputs))
        return tuple(output[: batch.rows] for output in outputs)

    def forget(self, kind: StepKind) -> None:
        """Let go of the graphs of a kind: something that they refer to is elsewhere now. They are
        rehearsed again too, because kernels may be compiled for where things lie."""
        self._rehearsed = {key for key in self._rehearsed if key[1] is not kind}
        stale = [key for key in self._recorded if key[1] is kind]
        if stale:
            self._reset(stale)

    def close(self) -> None:
        """Let go of everything: the graphs before the memory that they refer to."""
        self._reset(list(self._recorded))
        self._steps = self._buffers = self._recorder = None

    def _reset(self, keys: Sequence[_Key]) -> None:
        if self._recorder is not None:
            self._recorder.wait()
        for key in keys:
            recording, _ = self._recorded.pop(key)
            recording.reset()

    def _run(self, key: _Key, step: Callable[[], Outputs]) -> Outputs:
        if self._recorder is None:
            return step()
        if key not in self._rehearsed:
            outputs = self._recorder.rehearse(step)
            self._rehearsed.add(key)
            return outputs
        if key not in self._recorded:
            self._recorded[key] = self._recorder.record(step)
        recording, outputs = self._recorded[key]
        recording.replay()
        return outputs


def padded_sizes(most: int) -> tuple[int, ...]:
    """Powers of two below ``most``, and ``most``."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def recorder_on(device: torch.device) -> Recorder | None:
    """None: a device without graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """Records into one memory pool, for graphs that never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def rehearse(self, step: Callable[[], Outputs]) -> Outputs:
        # On the stream of the recording: cuBLAS takes work space for each stream that it meets,
        # and what it takes during a recording stays in the pool of the graphs for ever.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = step()
        current.wait_stream(self._stream)
        return outputs

    def record(self, step: Callable[[], Outputs]) -> tuple[Recording, Outputs]:
        # With the last of its graphs a pool is closed for ever: torch does not open it again.
        pool = self._graphs[0].pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which load the next model's weights, may use the device meanwhile.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = step()
        except BaseException:
            graph.reset()  # or the pool would never be freed
            raise
        self._graphs.append(graph)
        return _CudaRecording(graph, self._graphs), outputs

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    living: list[torch.cuda.CUDAGraph]
    """All graphs that share its pool."""

    def replay(self) -> None:
        self.graph.replay()

    def reset(self) -> None:
        self.graph.reset()
        self.living.remove(self.graph)


def _padding(rows: int, blocks: int, device: torch.device) -> DecodeBatch:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return DecodeBatch(zeros(rows), zeros(rows), zeros(rows) - 1, zeros(rows), zeros(rows, blocks))
