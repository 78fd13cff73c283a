"""Which family a model speaks like: told by its chat template, else by its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from hotswap.engine.speech import (
    deepseek,
    harmony,
    hermes,
    llama,
    mistral,
    phi,
    plain_json,
    qwen_coder,
)
from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.listener import ReadCalls
from hotswap.engine.speech.thinking import MARKS, Marks
from hotswap.engine.speech.tools import Tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: str
    sign: str = ""
    """What the template says of its calls, or the vocabulary; others have none."""
    read: ReadCalls
    write: Callable[[CallGrammar, Tools], str]
    markers: tuple[str, ...] = ()
    """What may be special tokens in an answer."""
    ids: Literal["long", "short"] = "long"


_DEEPSEEK_MARKERS = (
    *(deepseek.CALLS, deepseek.CALLS_END, deepseek.CALL, deepseek.CALL_END),
    deepseek.SEPARATOR,
)
_MISTRAL_MARKERS = (mistral.CALLS, mistral.ARGUMENTS, mistral.CALL_ID)
HARMONY = Family(
    name="harmony",
    sign=harmony.CHANNEL,
    read=harmony.read,
    write=harmony.write,
    markers=harmony.MARKERS,
)
FAMILIES = (
    HARMONY,
    Family(
        name="deepseek",
        sign=deepseek.CALLS,
        read=deepseek.read,
        write=deepseek.write,
        markers=_DEEPSEEK_MARKERS,
    ),
    Family(
        name="mistral",
        sign=mistral.CALLS,
        read=mistral.read,
        write=mistral.write_list,
        markers=_MISTRAL_MARKERS,
        ids="short",
    ),
    Family(
        name="qwen-coder",
        sign=qwen_coder.FUNCTION,
        read=qwen_coder.read,
        write=qwen_coder.write,
        markers=(hermes.OPEN, hermes.CLOSE),
    ),
    Family(
        name="hermes",
        sign=hermes.OPEN,
        read=hermes.read,
        write=hermes.write,
        markers=(hermes.OPEN, hermes.CLOSE),
    ),
    Family(
        name="phi",
        sign=phi.OPEN,
        read=phi.read,
        write=phi.write,
        markers=(phi.OPEN, phi.CLOSE),
    ),
    Family(name="llama", sign=llama.TAG, read=llama.read, write=llama.write, markers=(llama.TAG,)),
)
THINKING_SWITCHES = frozenset({"enable_thinking", "thinking"})
"""What templates call the question whether to think."""
PLAIN = Family(name="json", read=plain_json.read, write=plain_json.write)
_NEWER_MISTRAL = Family(
    name="mistral",
    read=mistral.read,
    write=mistral.write_named,
    markers=_MISTRAL_MARKERS,
    ids="short",
)
_OLDER_DEEPSEEK = Family(
    name="deepseek",
    read=deepseek.read,
    write=deepseek.write_blocks,
    markers=_DEEPSEEK_MARKERS,
)


def family_of(template: str, added: Set[str]) -> Family:
    """How a model calls tools, given that it knows of them.

    Args:
        added: the tokens of its vocabulary that are texts of their own.
    """
    family = _first(template) or next((f for f in FAMILIES if f.sign in added), PLAIN)
    if family.name == "mistral" and (mistral.ARGUMENTS in template or mistral.ARGUMENTS in added):
        return _NEWER_MISTRAL
    if family.name == "deepseek" and "```json" in template:
        return _OLDER_DEEPSEEK
    return family


def _first(template: str) -> Family | None:
    return next((family for family in FAMILIES if family.sign in template), None)


def marks_of(template: str, added: Set[str]) -> Marks | None:
    """How a model marks its reasoning; None: it has none that we know of."""
    for places in (template, added):
        for marks in MARKS:
            if marks.open in places or marks.close in places:
                return marks
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a model's template and vocabulary know of tools and of reasoning."""

    family: Family | None = None
    """How it calls tools; None: its template knows none."""
    in_channels: bool = False
    """Its answers are messages in channels, with tools or without: see
    `hotswap.engine.speech.harmony`."""
    thinking: bool = False
    """Its template knows of reasoning."""
    marks: Marks | None = None
    """Of reasoning, where there may be some."""
    ids: Mapping[str, int] = field(default_factory=dict)
    """Markers of family and reasoning that are tokens of their own, and their ids."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Those of them that leave no text when they are not asked for."""

    @property
    def tools(self) -> bool:
        return self.family is not None

    def end_ids(self, told: frozenset[int]) -> frozenset[int]:
        """The tokens that end an answer, of which a checkpoint's files have ``told``: some have
        there what ends only a message."""
        if not self.in_channels:
            return told
        ends = {self.ids[marker] for marker in harmony.ENDS if marker in self.ids}
        return (told | ends) - {self.ids.get(harmony.END)} if ends else told

    def summary(self) -> dict[str, object]:
        """For whoever wants to know what the model can do."""
        family = None if self.family is None else self.family.name
        return {"tools": self.tools, "thinking": self.thinking, "family": family}


def speech_of(
    template: str, names: Set[str], added: Mapping[str, int], special: Set[int]
) -> Speech:
    """
    Args:
        names: what the template wants to be given, or looks for in messages.
        added: the tokens of the vocabulary that are texts of their own, and their ids.
        special: the ids that are no text.
    """
    family = family_of(template, added.keys())
    in_channels = family is HARMONY
    marks = None if in_channels else marks_of(template, added.keys())
    markers: tuple[str, ...] = (marks.open, marks.close) if marks else ()
    if in_channels or "tools" in names:
        markers += family.markers
    said = marks is not None and (marks.open in template or marks.close in template)
    return Speech(
        family=family if "tools" in names else None,
        in_channels=in_channels,
        thinking=in_channels or said or bool(names & THINKING_SWITCHES),
        marks=marks,
        ids={text: added[text] for text in markers if text in added},
        special={text: added[text] for text in markers if added.get(text) in special},
    )
