"""Which value of ``config.json`` an error of transformers is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_UNBLAMED = frozenset({"architectures", "model_type", "transformers_version", "id2label"})
"""Keys with values that messages mention whatever is wrong."""
_FEWEST_CHARACTERS = 3
_SHOWN_CHARACTERS = 100
_FIELD = re.compile(r"[Ff]ield '(\w+)'|`(\w+)`")


def blamed(config: Mapping[str, Any], error: Exception) -> str:
    """That the configuration makes no model, in a sentence: with the key and its value, where just
    one is named by ``error``."""
    text = str(error)
    leaves = [leaf for leaf in _leaves(config) if leaf[0].split(".")[-1] not in _UNBLAMED]
    fields = {name for match in _FIELD.finditer(text) for name in match.groups() if name}
    found = [leaf for leaf in leaves if leaf[0].split(".")[-1] in fields]
    if not found and not isinstance(error, OSError):  # whose text is about files
        found = [leaf for leaf in leaves if _mentions(text, leaf[1])]
    if len(found) != 1:
        return "config.json has values that make no model."
    key, value = found[0]
    return f"config.json: {key} {_shown(value)} makes no model."


def _leaves(holder: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in holder.items():
        if not isinstance(key, str) or key.startswith("_"):  # ids have labels
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _mentions(text: str, value: Any) -> bool:
    if not isinstance(value, str) or len(value) < _FEWEST_CHARACTERS:
        return False
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _shown(value: Any) -> str:
    """Without what may be a path."""
    if isinstance(value, str) and "/" in value:
        return "(as it stands there)"
    return repr(value)[:_SHOWN_CHARACTERS]
