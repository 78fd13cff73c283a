"""The house rules that a reader may rely on: who imports whom, and what is nowhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hotswap"
MODULES = sorted(path for path in SOURCE.rglob("*.py"))

FLOORS: dict[str, int] = {
    "": 0,  # hotswap/__init__.py: the version
    "errors": 1,
    "contracts": 1,
    "config": 2,
    "demo": 1,
    "values": 2,
    "yaml_text": 2,
    "files": 2,
    "options": 2,
    "model_settings": 2,
    "logs": 2,
    "streams": 2,
    "audit": 2,
    "policy": 3,
    "catalog": 3,
    "hub": 3,
    "scripted": 3,
    "engine": 3,
    "model_dir": 3,
    "console": 3,
    "late": 3,
    "handover": 3,
    "reread": 3,
    "residency": 4,
    "swap": 4,
    "service": 4,
    "listing": 4,
    "watchdog": 4,
    "api": 4,
    "departure": 5,
    "server": 5,
    "__main__": 6,
}
ROOMS_APART = [  # rooms of one floor that do not know each other
    {"swap", "residency", "service", "listing"},
    {"watchdog"},
    {"api"},
]
ONLY_IN = {
    "torch": {"engine"},
    "transformers": {"engine"},
    "safetensors": {"engine"},
    "accelerate": {"engine"},
    "triton": {"engine"},
    "llguidance": {"engine"},
    "huggingface_hub": {"hub"},
    "starlette": {"api", "server"},
    "hypercorn": {"server"},
    "prometheus_client": {"api"},
}


def room(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield module
            if module == "hotswap":
                yield from (f"hotswap.{alias.name}" for alias in node.names)


@cache
def own_rooms(path: Path) -> frozenset[str]:
    parts = (name.split(".") for name in imports(path) if name.startswith("hotswap."))
    return frozenset(
        part[1]
        for part in parts
        if (SOURCE / part[1]).exists() or (SOURCE / f"{part[1]}.py").exists()
    )


def test_every_module_stands_on_a_floor() -> None:
    assert {room(path) for path in MODULES} <= FLOORS.keys(), (
        "a new room: give it a floor, and a line in the architecture"
    )


def test_imports_go_down_only() -> None:
    up = [
        f"{named(path)} imports {other}, which is above it"
        for path in MODULES
        for other in own_rooms(path) - {room(path)}
        if FLOORS[other] > FLOORS[room(path)]
    ]
    assert not up


def test_rooms_of_one_floor_do_not_know_each_other() -> None:
    apart_from = {
        here: set().union(*ROOMS_APART) - apart for apart in ROOMS_APART for here in apart
    }
    met = [
        f"{named(path)} imports {other}"
        for path in MODULES
        for other in own_rooms(path) - {room(path)}
        if other in apart_from.get(room(path), ())
        or (other == "engine" and FLOORS[room(path)] == 4)
    ]
    assert not met


def test_what_lies_around_the_owner_of_the_device_does_not_know_it() -> None:
    knowing = [
        named(path)
        for path in MODULES
        if room(path) == "residency" and own_rooms(path) & {"swap", "service"}
    ]
    assert not knowing


def test_what_is_on_the_device_is_changed_by_its_own_methods_alone() -> None:
    """Of the state of the device all fields are public, for everybody to look at."""
    changing = [
        f"{named(path)}, line {node.lineno}"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value).endswith("occupancy")
    ]
    assert not changing


def test_each_library_is_used_only_where_it_belongs() -> None:
    elsewhere = [
        f"{named(path)} imports {name}"
        for path in MODULES
        for name in imports(path)
        if room(path) not in ONLY_IN.get(name.partition(".")[0], {room(path)})
    ]
    assert not elsewhere


def test_only_the_configuration_reads_the_environment() -> None:
    reading = {
        named(path)
        for path in MODULES
        if room(path) not in ("config", "__main__")
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert not reading


def test_there_is_no_global_state_and_no_unowned_task() -> None:
    unowned = ("create_task", "ensure_future")
    found = {
        f"{named(path)}, line {node.lineno}"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Global)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in unowned
        )
    }
    assert not found


def test_every_path_that_the_architecture_names_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:src|tests|docs|tools|bench)/[\w./-]+)`", page))
    named |= {f"src/hotswap/{name}" for name in re.findall(r"^\| `([\w./]+)` \|", page, re.M)}
    assert len(named) > 20
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_the_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    unnamed = [
        str(path.relative_to(SOURCE))
        for path in MODULES
        if path.name != "__init__.py" and f"`{path.relative_to(SOURCE)}`" not in page
    ]
    assert not unnamed


def test_the_swap_floor_runs_without_torch() -> None:
    """Its tests, and the command's --help, must not wait for torch."""
    import subprocess
    import sys

    code = (
        "import sys, hotswap.service, hotswap.api.app, hotswap.catalog, hotswap.watchdog;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
