"""Compiles the sampler's kernels for a CUDA device that need not be there, as
`tests.engine.kernels.compile_for` does those of a decode step.

    python -m tests.engine.sampler.compile_for 90
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.sampler.fused import FusedSampler
from tests.engine.kernels.compile_for import registers_and_stack


def compile_all(capability: int) -> list[tuple[str, Any]]:
    """Names and binaries of what a draw of one row and of many would launch."""
    found: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        binary = launch(self, *args, **{**options, "warmup": True})
        found.append((self.__name__, binary))
        return binary

    JITFunction.run = compile_only
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    for count, dtype, most in ((1, torch.bfloat16, 20), (64, torch.float32, None)):
        sampler = FusedSampler(torch.device("cpu"))
        rows = [SamplingRow(DrawParams(), seed=1, logprobs=20) for _ in range(count)]
        sampler.prepare(rows, 151_936)
        sampler.launch(torch.zeros(count, 151_936, dtype=dtype), most)
    return found


if __name__ == "__main__":
    for name, binary in compile_all(int(sys.argv[1])):
        print(name, *registers_and_stack(binary), binary.metadata.shared)
