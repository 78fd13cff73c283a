"""What is in deploy/ speaks of flags, variables and metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hotswap.options import OPTIONS
from tests.api.test_metrics import FAMILIES

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def words(text: str) -> set[str]:
    return set(re.findall(r"--([a-z][a-z-]+)", text))


def test_flags_and_variables_are_settings() -> None:
    flags = {option.flag for option in OPTIONS}
    variables = {option.env for option in OPTIONS}
    unit = (DEPLOY / "hotswap.service").read_text()
    assert words(unit) <= flags
    assert "--config" in unit
    for name in ("hotswap.service", "Containerfile"):
        found = set(re.findall(r"HOTSWAP_[A-Z_]+", (DEPLOY / name).read_text()))
        assert found
        assert found <= variables
    assert words((ROOT / "docs" / "security.md").read_text()) <= flags


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"hotswap:[a-z_]+", expression)}
    assert names == set(FAMILIES)
