"""Grammars of calls, for requests that insist on one: in Lark's notation as llguidance reads it,
where special tokens and JSON schemas have a place of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hotswap.engine.speech.tools import Tools

_MOST_CALLS = 32
"""Of one answer. A small model that is made to call does not know when to end."""
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced: as `json.dumps` does, which is what the templates show. Were all spaces
allowed, a model could go on with them for ever."""


class CallGrammar:
    """Collects rules. Its methods return what stands for them in another rule."""

    def __init__(self, ids: Mapping[str, int], *, several: bool, among_json: bool = False) -> None:
        """
        Args:
            ids: texts that are tokens of their own. They are asked for by id: llguidance lets no
                text spell a special token, and a model knows them as tokens only.
            several: more than one call may be made.
            among_json: other JSON may stand where a call does. llguidance takes the longest text
                that a rule has for one word, and does not go back: a call's beginning must be as
                many words as other JSON's. Then no tool's schema may refer to a part of itself.
        """
        self._ids = ids
        self._several = several
        self._among_json = among_json
        self._split = re.compile(f"({'|'.join(map(re.escape, ids))})") if ids else None
        self._rules: list[str] = []

    def source(self, start: str) -> str:
        """All of it, for an answer that is ``start``."""
        return "\n".join([f"start: {start}", *self._rules]) + "\n"

    def text(self, text: str) -> str:
        parts = self._split.split(text) if self._split is not None else [text]
        return " ".join(
            f"<[{self._ids[part]}]>" if part in self._ids else _literal(part)
            for part in parts
            if part
        )

    def text_up_to(self, end: str) -> str:
        """Any text that ends with ``end``, which is nowhere else in it."""
        name = f"text_{len(self._rules)}"
        if end in self._ids:  # which no text spells
            self._rules.append(f"{name}: {name.upper()} {self.text(end)}")
            self._rules.append(rf"{name.upper()}: /(.|\n)*/")
            return name
        self._rules.append(f"{name}[lazy]: /(.|\\n)*{re.escape(end).replace('/', chr(92) + '/')}/")
        return name

    def schema(self, schema: Mapping[str, Any]) -> str:
        """JSON of that schema."""
        text = json.dumps({**_plain(schema), "x-guidance": _SPELLING}, ensure_ascii=False)
        return self._rule(f"%json {text}")

    def any_of(self, choices: Iterable[str]) -> str:
        return self._rule(" | ".join(choices))

    def several(self, call: str, separator: str) -> str:
        """A call, or some of them where that may be."""
        one = self._rule(call)
        return f"{one} ({separator} {one}){{0,{_MOST_CALLS - 1}}}" if self._several else one

    def call_object(self, tools: Tools, arguments: str) -> str:
        """A call as a JSON object whose arguments are called ``arguments``."""
        if self._among_json:
            return self.any_of(
                self.schema(_object({"name": {"const": tool.name}, arguments: tool.parameters}))
                for tool in tools
            )
        return self.any_of(
            f"{self.text(_head(tool.name, arguments))} "
            f"{self.schema(tool.parameters)} {self.text('}')}"
            for tool in tools
        )

    def _rule(self, body: str) -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _head(name: str, arguments: str) -> str:
    """What a call begins with, up to its arguments."""
    return json.dumps({"name": name, arguments: 0}, ensure_ascii=False).removesuffix("0}")


def _object(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of an object with just these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
