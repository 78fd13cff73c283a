"""What a running server takes over when its settings are read again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from hotswap.config import Settings, check
from hotswap.options import OPTIONS


@dataclass(frozen=True, slots=True)
class Reread:
    """Settings for a server that goes on. The names are as they are written: "--patience-s"."""

    settings: Settings
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    """What was asked for and only a restart can change."""


def merged(current: Settings, asked: Settings) -> Reread:
    """The settings that hold where ``asked`` is read while a server runs with ``current``.

    Raises:
        ConfigError: what would change does not go together with what stays.
    """
    differing = [
        option
        for option in OPTIONS
        if "." in option.target and _at(option.target, current) != _at(option.target, asked)
    ]
    settings = asked
    for option in differing:
        if option.fixed:
            section, _, name = option.target.rpartition(".")
            stays = {name: _at(option.target, current)}
            settings = replace(settings, **{section: replace(getattr(settings, section), **stays)})
    check(settings)
    per_model = current.catalog.models != asked.catalog.models
    return Reread(
        settings,
        changed=(
            *(f"--{option.flag}" for option in differing if not option.fixed),
            *(("models:",) if per_model else ()),
        ),
        kept=tuple(f"--{option.flag}" for option in differing if option.fixed),
    )


def _at(target: str, settings: Settings) -> Any:
    return attrgetter(target)(settings)
