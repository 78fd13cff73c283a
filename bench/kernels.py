"""Measures our Triton kernels beside the same in plain torch, on a CUDA device.

    python -m bench.kernels [--json FILE]

The sizes are those of one layer of an 8B model in a decode step. Both sides are replayed from CUDA
graphs, so that neither pays for launching, apart from torch's rope_and_store, which no graph can
hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bench.figures import Figure, Noise, Report, about_this_run
from bench.gpu_device import NO_DEVICE, device_name
from hotswap.engine.blocks import BLOCK_TOKENS
from hotswap.engine.kernels import Kernels, kernels_on

_HEADS, _GROUPS, _SIZE = 32, 8, 128
_HIDDEN, _INTERMEDIATE = 4096, 12288
_CONTEXT_TOKENS = 1024
_CALLS = 20
"""Calls in one graph."""
_REPLAYS = 15
_LAUNCHED = {("torch", "rope_and_store")}
"""It leaves out rows by a mask, for which torch waits."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One layer's tensors of a step for a number of sequences, all of the same length."""

    qkv: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    lengths: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    hidden: Tensor
    weight: Tensor
    gate_up: Tensor


def inputs(sequences: int) -> Inputs:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(torch.bfloat16)

    blocks = -(-_CONTEXT_TOKENS // BLOCK_TOKENS)
    tables = torch.randperm(sequences * blocks, device="cuda", dtype=torch.int32)
    tables = tables.view(sequences, blocks)
    slots = sequences * blocks * BLOCK_TOKENS
    return Inputs(
        qkv=draw(sequences, _HEADS + 2 * _GROUPS, _SIZE),
        keys=draw(_GROUPS, slots, _SIZE),
        values=draw(_GROUPS, slots, _SIZE),
        tables=tables,
        lengths=torch.full((sequences,), _CONTEXT_TOKENS, device="cuda", dtype=torch.int32),
        slots=tables[:, -1].long() * BLOCK_TOKENS + BLOCK_TOKENS - 1,
        cos=draw(_CONTEXT_TOKENS, _SIZE),
        sin=draw(_CONTEXT_TOKENS, _SIZE),
        hidden=draw(sequences, _HIDDEN),
        weight=draw(_HIDDEN),
        gate_up=draw(sequences, 2 * _INTERMEDIATE),
    )


def calls(kernels: Kernels, given: Inputs) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each kernel's name and one call of it."""
    query = given.qkv[:, :_HEADS].contiguous()
    scratch = kernels.attention_scratch(query, given.values, given.tables)
    positions = given.lengths - 1
    norm_weight = given.weight[:_SIZE]
    yield (
        "paged_attention",
        lambda: kernels.paged_attention(
            query,
            given.keys,
            given.values,
            given.tables,
            given.lengths,
            scale=_SIZE**-0.5,
            scratch=scratch,
        ),
    )
    yield (
        "rope_and_store",
        lambda: kernels.rope_and_store(
            given.qkv,
            cos=given.cos,
            sin=given.sin,
            positions=positions,
            slots=given.slots,
            keys=given.keys,
            values=given.values,
            q_norm=norm_weight,
            k_norm=norm_weight,
            eps=1e-6,
        ),
    )
    yield (
        "add_rms_norm",
        lambda: kernels.add_rms_norm(given.hidden, given.hidden, given.weight, 1e-6),
    )
    yield "gated_activation", lambda: kernels.gated_activation(given.gate_up, "silu")


def launch_times_us(call: Callable[[], object]) -> tuple[float, ...]:
    """As `call_times_us`, of what no graph can hold: launched call by call."""

    def calls() -> None:
        for _ in range(_CALLS):
            call()

    calls()
    return _times_us(calls)


def call_times_us(call: Callable[[], object]) -> tuple[float, ...]:
    """Microseconds of one call, from each of several replays of a graph of them."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):  # a first call may compile, which cannot be captured
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    times = _times_us(graph.replay)
    graph.reset()
    return times


def _times_us(run: Callable[[], object]) -> tuple[float, ...]:
    """Of one call, where ``run`` makes `_CALLS` of them."""
    times = []
    for _ in range(_REPLAYS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / _CALLS)
    return tuple(times)


def measure(sequences: tuple[int, ...] = (1, 8, 32, 64)) -> tuple[Figure, ...]:
    """Raises: RuntimeError: there is no Triton."""
    if find_spec("triton") is None:
        raise RuntimeError("Triton is not installed.")
    fused, plain = (kernels_on(torch.device(device)) for device in ("cuda", "cpu"))
    figures = []
    for count in sequences:
        given = inputs(count)
        for contender, kernels in (("Triton", fused), ("torch", plain)):
            for name, call in calls(kernels, given):
                label = f"{name}, {count} sequence{'s' * (count > 1)}"
                times = launch_times_us if (contender, name) in _LAUNCHED else call_times_us
                figures.append(Figure(label, contender, "us", times(call)))
    return tuple(figures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return 2
    noise = Noise()
    figures = measure()
    about = about_this_run(noise, device=device_name("cuda"))
    Report(title="Kernels of one decode layer", about=about, figures=figures).publish(
        arguments.json
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
