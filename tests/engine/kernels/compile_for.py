"""Compiles every kernel for a CUDA device that need not be there: what the interpreter lets pass,
the compiler may refuse. A process of its own, because the interpreter is chosen at import.

    python -m tests.engine.kernels.compile_for 90

Prints a line for each binary: kernel, registers and bytes of stack of a thread (what does not fit
in registers), bytes of shared memory of a program.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hotswap.engine.kernels import Kernels, fused


def compile_all(capability: int) -> list[tuple[str, Any]]:
    """Names and binaries of what `call_all` would launch."""
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
    call_all(fused)
    return found


def call_all(kernels: Kernels) -> None:
    """Every kernel and every optional part once, with the shapes of an 8B model."""
    heads, groups, size, width, blocks = 32, 8, 128, 4096, 512
    made = partial(torch.empty, dtype=torch.bfloat16)
    pool = made(groups, blocks * 16, size)
    numbers = torch.zeros(2, dtype=torch.int32)
    tables = torch.zeros(2, blocks, dtype=torch.int32)
    query = made(2, heads, size)
    every: dict[str, Any] = {"window": 1024, "softcap": 30.0, "sinks": made(heads)}
    for options in ({}, every):
        kernels.paged_attention(query, pool, pool, tables, numbers, scale=0.1, **options)
    # So few programs that sequences are split, and all heads in one of them.
    kernels.paged_attention(query[:1], pool[:1], pool[:1], tables[:1], numbers[:1], scale=0.1)
    x = made(2, width)
    for weight in (made(width), torch.empty(width)):
        kernels.rms_norm(x, weight, 1e-6)
        kernels.add_rms_norm(x, x, weight, 1e-6)
    qkv, turns = made(2, heads + 2 * groups, size), made(64, size)
    places: dict[str, Any] = {"cos": turns, "sin": turns, "positions": numbers, "slots": numbers}
    places |= {"keys": pool, "values": pool}
    norms: dict[str, Any] = {"q_norm": made(size), "k_norm": made(size)}
    for options in ({}, norms):
        kernels.rope_and_store(qkv, **places, **options)
    for activation in ("silu", "gelu", "gelu_tanh"):
        kernels.gated_activation(x, activation)


def registers_and_stack(binary: Any) -> tuple[int, int]:
    """As the disassembler that comes with Triton reads them from the binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    for name, binary in compile_all(int(sys.argv[1])):
        print(name, *registers_and_stack(binary), binary.metadata.shared)
