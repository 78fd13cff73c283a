"""What a server imports of torch, in processes that import nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.serving import serving

pytestmark = pytest.mark.torch

COMPILE_NOTHING = "TORCH_COMPILE_DISABLE"
"""Set in servers and in this process."""
ROOT = Path(__file__).parents[2]
LEFT_OUT = ("torch._dynamo.utils", "torch.distributed.tensor", "triton")


def python(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != COMPILE_NOTHING}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.anyio
async def test_models_of_every_tier_answer_without_torchs_compiler(
    checkpoint: Callable[[str], Path],
) -> None:
    paths = [checkpoint(name) for name in ("qwen3", "gpt2", "mamba")]
    wanted, tiers = [], []
    for path in paths:
        async with serving(path) as served:
            wanted.append((await served.ask("one two three", max_tokens=8)).text)
            tiers.append(served.tier)
    assert len(set(tiers)) == len(tiers)
    told: dict[str, Any] = json.loads(python("-m", "tests.engine.as_a_server", *map(str, paths)))
    assert told["answers"] == wanted
    assert not set(LEFT_OUT) & set(told["modules"])


@pytest.mark.parametrize(
    "wish",
    [
        "import torch._dynamo.utils as utils",
        "from torch._dynamo import config as utils",
        "import torch; utils = torch._dynamo.eval_frame",
    ],
)
def test_who_wants_the_compiler_gets_it(wish: str) -> None:
    compiled = (
        "import sys; from hotswap.engine.without_compiler import import_transformers;"
        "import_transformers();"
        f"assert {LEFT_OUT[0]!r} not in sys.modules;"
        f"{wish};"
        "import torch; assert utils.__name__.startswith('torch._dynamo.'), utils;"
        "assert sys.modules[utils.__name__] is utils;"
        "double = torch.compile(lambda x: x + x, backend='eager', fullgraph=True);"
        "print(float(double(torch.ones(1))))"
    )
    assert python("-c", compiled) == "2.0\n"


def test_threads_that_want_it_at_once_all_get_the_real_one() -> None:
    wanted = (
        "from hotswap.engine.without_compiler import import_transformers; import_transformers();"
        "import sys, torch; from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    found = list(pool.map(lambda _: torch._dynamo.eval_frame.__name__, range(8)))\n"
        "print(set(found), torch._dynamo is sys.modules['torch._dynamo'])"
    )
    assert python("-c", wanted) == "{'torch._dynamo.eval_frame'} True\n"


def test_marks_leave_functions_as_they_are() -> None:
    marked = (
        "from hotswap.engine.without_compiler import import_transformers; import_transformers();"
        "import sys, torch, importlib.util\n"
        "@torch.compiler.disable(recursive=False)\n"
        "@torch.compiler.allow_in_graph\n"
        "@torch._dynamo.assume_constant_result\n"
        "def double(x): torch._dynamo.graph_break(); return 2 * x\n"
        "print(double(3), torch._dynamo.is_compiling(), 'torch._dynamo.utils' in sys.modules,"
        "importlib.util.find_spec('torch._dynamo') is not None)"
    )
    assert python("-c", marked) == "6 False False True\n"


def test_masks_of_flex_attention_find_their_class() -> None:
    used = (
        "from hotswap.engine.without_compiler import import_transformers; import_transformers();"
        "from transformers.masking_utils import TransformGetItemToIndex as mode; import torch\n"
        "with mode(): print(torch.arange(4)[torch.tensor(2)].item())"
    )
    assert python("-c", used) == "2\n"
