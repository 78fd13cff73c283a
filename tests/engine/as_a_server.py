"""A process that begins as a server does: greedy answers of checkpoints, and what was imported.

python -m tests.engine.as_a_server CHECKPOINT [CHECKPOINT ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio

from hotswap.engine.without_compiler import import_transformers


async def _answers(paths: list[Path]) -> list[str]:
    from tests.engine.serving import serving

    answers = []
    for path in paths:
        async with serving(path) as served:
            answers.append((await served.ask("one two three", max_tokens=8)).text)
    return answers


def main() -> None:
    import_transformers()
    answers = anyio.run(_answers, [Path(path) for path in sys.argv[1:]])
    print(json.dumps({"answers": answers, "modules": list(sys.modules)}))


if __name__ == "__main__":
    main()
