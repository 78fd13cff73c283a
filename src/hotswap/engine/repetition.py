"""How much a pattern or a grammar stands for once its counted repetitions are written out: known
before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hotswap.engine.lark import Piece, Rule

_PIECE = re.compile(
    r"\\[xuUpP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}|.", re.S
)
_MANY = 10**9 - 1


def unrolled(pattern: str) -> int:
    """About how many characters a regular expression has when counted repetitions are written
    out."""
    totals, last = [0], 0
    """Of the groups that are open, and of the piece that a repetition would repeat."""
    for piece in _PIECE.finditer(pattern):
        text = piece[0]
        if piece[1] is not None:
            times = _times(piece[3] or piece[1])
            totals[-1] += last * (times - 1)
            last *= times
        elif text == "(":
            totals.append(0)
        elif text == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif text not in "*+?|":
            last = 1
            totals[-1] += 1
    return sum(totals)


def most_repeated(rules: Iterable[Rule]) -> int:
    """How often that is written out which a grammar repeats most, whatever rules it is reached
    through; a regular expression counts as all of its characters. Loops are gone through once."""
    bodies: dict[str, list[Piece]] = {}
    for rule in rules:
        bodies.setdefault(rule.name, []).extend(rule.body)
    known: dict[str, int] = {}
    for name in _innermost_first(bodies):
        known[name] = _most_repeated_in(bodies[name], known)
    return max(known.values(), default=0)


def _innermost_first(bodies: Mapping[str, Sequence[Piece]]) -> Iterator[str]:
    """Each rule after those that it refers to. By no recursion: rules may be a long chain."""
    seen: set[str] = set()
    for outermost in bodies:
        open_rules = [(outermost, iter(bodies[outermost]))] if outermost not in seen else []
        seen.add(outermost)
        while open_rules:
            name, pieces = open_rules[-1]
            unseen = (p.text for p in pieces if p.text in bodies and p.text not in seen)
            inner = next(unseen, None)
            if inner is None:
                open_rules.pop()
                yield name
            else:
                seen.add(inner)
                open_rules.append((inner, iter(bodies[inner])))


def _most_repeated_in(body: Iterable[Piece], known: Mapping[str, int]) -> int:
    most, last = [0], 0
    """Of the groups that are open, and of the piece that a repetition would repeat."""
    for piece in body:
        match piece.kind:
            case "times":
                times = max(map(_times, re.findall(r"\d+", piece.text)), default=1)
                last = min(last * times, _MANY)
            case "regex":
                last = unrolled(piece.text)
            case "other" if piece.text in ("(", "["):
                most.append(0)
                continue
            case "other" if piece.text in (")", "]") and len(most) > 1:
                last = most.pop()
            case "other":
                continue
            case _:
                last = known.get(piece.text, 1)
        most[-1] = max(most[-1], last)
    return max(most)


def _times(digits: str) -> int:
    """At least 1: what is repeated stands there."""
    digits = digits.lstrip("0")
    return max(1, int(digits or 0)) if len(digits) <= len(str(_MANY)) else _MANY
