from __future__ import annotations

import json
import subprocess
import sys

import pytest

BEGIN = "import logging, sys\nfrom hotswap import logs\nlogs.configure('info', 'json')\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import warnings; warnings.warn('beware')", "beware"),
        ("raise ValueError('uncaught')", "uncaught"),
        (
            "import threading\n"
            "def fail(): raise ValueError('in a thread')\n"
            "threading.Thread(target=fail).start()",
            "in a thread",
        ),
        (
            "class Loud:\n"
            "    def __del__(self): raise ValueError('let go of')\n"
            "loud = Loud(); del loud",
            "let go of",
        ),
        (
            "import asyncio\n"
            "async def main():\n"
            "    asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n"
            "    await asyncio.sleep(0)\n"
            "asyncio.run(main())",
            "division by zero",
        ),
        ("async def main(): pass\nmain()", "never awaited"),
        (
            "library = logging.getLogger('library')\n"
            "library.addHandler(logging.StreamHandler()); library.propagate = False\n"
            "logs.gather(); library.warning('of its own')",
            "of its own",
        ),
    ],
)
def test_for_machines_every_line_is_json_whoever_writes_it(code: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, check=False, text=True
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert told in line["message"] + line.get("exception", "")
    assert line["level"] in ("warning", "error", "critical")
