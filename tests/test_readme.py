"""What the README and the table of faults name is there."""

from __future__ import annotations

import re
from pathlib import Path

from hotswap.config import settings_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert settings_table().strip() in README


def test_it_says_how_much_of_a_message_the_demo_models_see() -> None:
    demo = ROOT / "src" / "hotswap" / "demo" / "models" / "hotswap"
    for model in ("sums", "tales"):
        template = (demo / model / "chat_template.jinja").read_text()
        [seen] = re.findall(r"\[:(\d+)\]", template)
        assert f"the first {seen} characters of the last message of the user" in README


def test_the_files_that_it_points_to_exist() -> None:
    named = re.findall(r"\]\(((?!https?:)[\w./-]+)\)", README)
    named += re.findall(r"`((?:src|tools|tests|docs)/[\w./-]+)`", README)
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_test_that_the_table_of_open_webui_names_exists() -> None:
    text = (ROOT / "docs" / "openwebui.md").read_text()
    journeys = ROOT / "tests" / "e2e" / "openwebui" / "test_webui.py"
    named = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", text)
    assert len(named) > 15
    for file, test in named:
        path = ROOT / "tests" / file if file else journeys
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    faults = (ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", faults)
    assert len(named) == faults.count("::") > 50
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
