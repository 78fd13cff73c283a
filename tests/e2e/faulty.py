"""The command `hotswap`, with faults that happen when a test asks for them.

    python tests/e2e/faulty.py FOLDER [arguments of hotswap]

A fault is asked for by a file of its name in FOLDER, which is gone when the fault begins; the file
NAME.began then holds the monotonic time. A file NAME.always asks for it again and again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotswap import server
from hotswap.__main__ import command
from hotswap.api.status import StatusRoutes

FOLDER = Path(sys.argv.pop(1))


def is_due(name: str) -> bool:
    always = (FOLDER / f"{name}.always").exists()
    try:
        (FOLDER / name).unlink()
    except FileNotFoundError:
        if not always:
            return False
    beside = FOLDER / f"{name}.writing"
    beside.write_text(str(time.monotonic()))
    os.replace(beside, FOLDER / f"{name}.began")
    return True


def for_ever() -> None:
    threading.Event().wait()


def import_faulty_engines(*arguments: Any) -> Any:
    """A step that hangs, one that breaks the device, one that just raises, and a model that takes
    for ever to be built."""
    made = import_engines(*arguments)
    import torch

    from hotswap.engine import loader
    from hotswap.engine.runner import ModelRunner
    from hotswap.engine.weights import TRANSFORMERS, HostWeights, read_weights

    launch = ModelRunner.launch

    def faulty(self: ModelRunner, *plan: Any) -> Any:
        if is_due("hang"):
            for_ever()
        if is_due("lost"):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if is_due("raise"):
            raise RuntimeError("a step raised")
        return launch(self, *plan)

    def building(*arguments: Any) -> HostWeights:
        if is_due("build"):
            with TRANSFORMERS:
                for_ever()
        return read_weights(*arguments)

    ModelRunner.launch = faulty  # type: ignore[method-assign,assignment]
    loader.read_weights = building  # type: ignore[attr-defined,assignment]
    return made


async def stuck(self: StatusRoutes, request: Any) -> Any:
    """`GET /version` that never gives the event loop back."""
    if is_due("stuck"):
        for_ever()
    return await version(self, request)


import_engines: Callable[..., Any] = server._import_engines
version = StatusRoutes.version
server._import_engines = import_faulty_engines  # type: ignore[assignment]
StatusRoutes.version = stuck  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    command()
