"""The process of one contender, driven by `bench.worker`."""

from __future__ import annotations

import argparse
import asyncio
from importlib import import_module
from pathlib import Path

from bench.worker import answer_questions
from hotswap.config import settle_threads


async def contend(module: str, model: Path, device: str) -> None:
    async with import_module(f"bench.contenders.{module}").contend(model, device) as tasks:
        await answer_questions(tasks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.contenders", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("model", type=Path)
    parser.add_argument("device")
    arguments = parser.parse_args()
    if arguments.module in ("hotswap", "from_pretrained"):
        # As our command does before torch is imported; else this floor jumps from 3 to 160 ms.
        settle_threads()
    asyncio.run(contend(arguments.module, arguments.model, arguments.device))


if __name__ == "__main__":
    main()
