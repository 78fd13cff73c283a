"""Clients that have an environment of their own; `make test-ecosystem` makes it and runs these.

HOTSWAP names the command under test.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """Of a demo server's OpenAI routes."""
    process = subprocess.Popen(
        [os.environ["HOTSWAP"], "demo", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"ready at (http://127\.0\.0\.1:\d+)", line):
                yield f"{found[1]}/v1"
                break
        else:
            pytest.fail("the server ended:\n" + "".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=60)
