"""What is in deploy/ speaks of flags, variables and metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def test_the_image_is_made_of_what_there_is_and_runs_as_nobody_s_root() -> None:
    lines = [line.split() for line in (DEPLOY / "Containerfile").read_text().splitlines()]
    copied = [source for line in lines if line[:1] == ["COPY"] for source in line[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)
    (user,) = (line[1] for line in lines if line[:1] == ["USER"])
    assert int(user) > 0, "Kubernetes must see that it is not root's"


def test_units_keep_what_is_compiled_and_downloaded_where_they_may_write() -> None:
    """A dynamic user has no home, and the rest of the system is read-only."""
    kept = ("HF_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")
    for name, writable in (("hotswap.service", "/var/cache/hotswap"), ("Containerfile", "/cache")):
        places = dict(re.findall(r"\b([A-Z_]+)=(/\S+)", (DEPLOY / name).read_text()))
        assert {places[one] for one in kept} == {
            f"{writable}/{folder}" for folder in ("huggingface", "loops", "triton")
        }


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())
    return read


def shown() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    asked = [target["expr"] for panel in shown() for target in panel["targets"]]
    found = {name for expression in asked for name in re.findall(r"[a-z:_]+(?={)", expression)}
    names = {name.removesuffix("_bucket") for name in found}
    assert names == {name for name in FAMILIES if name.startswith("hotswap:")} | {
        "process_resident_memory_bytes"
    }
    assert all(f'{name}{{instance=~"$instance"}}' in "".join(asked) for name in found)


def test_counters_are_shown_as_rates_but_for_what_should_never_happen() -> None:
    raw = {"engine_rebuilds", "self_restarts", "teardown_leaked_bytes"}
    for panel in shown():
        for target in panel["targets"]:
            for name in re.findall(r"hotswap:([a-z_]+)_total", target["expr"]):
                assert (f"rate(hotswap:{name}_total" in target["expr"]) is (name not in raw)


def test_panels_have_their_own_place_and_number_and_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    tiles = [
        (panel["gridPos"]["x"] + right, panel["gridPos"]["y"] + down)
        for panel in panels
        for right in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(set(tiles)) == len(tiles)
    assert max(x for x, _ in tiles) < 24
    assert [one["name"] for one in dashboard()["templating"]["list"]] == ["datasource", "instance"]
    for panel in shown():
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources)
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
