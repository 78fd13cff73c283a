"""The lag bench's figures, and a short run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import lag
from bench.figures import judge

ROOT = Path(__file__).parent.parent


def test_a_figure_is_a_share_of_the_probes_of_each_round() -> None:
    waits = [number / 1000 for number in range(101)]
    half, most, all_ = lag.figures({"nothing": [waits, waits[::-1]]})
    assert half.values == (0.05, 0.05)
    assert most.values == (0.099, 0.099)
    assert all_.values == (0.1, 0.1)
    [goal] = judge(lag.goals(), [half, most, all_])
    assert not goal.met


@pytest.mark.slow
@pytest.mark.torch
def test_a_short_run_probes_under_every_load(tmp_path: Path) -> None:
    told = tmp_path / "lag.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.lag", "--seconds", "0.5", "--json", str(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [figure["name"] for figure in json.loads(told.read_text())["figures"]]
    assert [name for name in lag.loads() if not any(name in figure for figure in names)] == []
