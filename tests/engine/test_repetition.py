"""What is repeated, as if it were written out."""

from __future__ import annotations

import pytest

from hotswap.engine.lark import pieces_of, rules_of
from hotswap.engine.repetition import most_repeated, unrolled


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{3,}b", 4),
        ("a{0000000001000000}", 10**6),
        ("a{ 1000000 }", 10**6),
        (r"\x{41}{2}", 2),
        ("a{2,5}", 5),
        ("(ab){4}", 8),
        ("((a{10}){10}){10}", 1000),
        (r"[a-z(){}]{4}\(\{", 6),
        ("(a|bc)*d?", 4),
        ("a{0}", 1),
        ("((a", 1),
        ("a)b", 3),
        ("a{999999999999999999}", 999999999),
    ],
)
def test_repetitions_are_counted_as_if_written_out(pattern: str, size: int) -> None:
    assert unrolled(pattern) == size


@pytest.mark.parametrize(
    ("source", "times"),
    [
        ("", 0),
        ('start: "a" "b"', 1),
        ('start: "a"{7}', 7),
        ('start: "a"{2,7} "b"{3}', 7),
        ('start: "a"{,7}', 7),
        ('start: "a"{ +7 , }', 7),
        ('start: "a" ~ 7', 7),
        ('start: "a"~2 .. 7', 7),
        ('start: "a"i{7}', 7),
        ("start: <[5]>{7}", 7),
        ('start: ("a" ["b"{3}]{2}){7}', 42),
        ('start: ("a" ("b"{7}))', 7),
        ('start: ("a" ("b"{7}', 7),
        ('start: "a"{7})', 7),
        ("start: /a{3}/i{7}", 21),
        ('start: "a{7}" // {7}\n', 1),
        ('start: "a" # {7}\n', 1),
        ("start: /\\/{7}/ /{/", 7),
        ('start: x{7}\nx: y{3} | "b"\ny: "a"', 21),
        ('y: "a"{2}\nstart: x{7}\nx: y{3}', 42),
        ('start: x{7} x{7}\nx: "a"', 7),
        ('start: "a"\n  | x{7}\n  | "b"\nx: "b"{2}', 14),
        ('start[max_tokens=9]: X{7}\n?x: "a"\n!X: "b"{2}', 14),
        ('start: X-y{7}\nX-y: "a"{2}', 14),
        ('start: lst::0{7}\nlst::_: "a"{2}', 14),
        ('start: start{7} "a" | "b"', 7),
        ('a: b{7} | "x"\nb: a{3} | "y"', 21),
        ('start: %json {"a": "{7}", "b": [":"], "c": {}} {7}', 7),
        ('x: "a"{7}\nx: "b"', 7),
        ('start: "a"{999999999999999999}', 999999999),
        ("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"{7}', 7),
    ],
)
def test_what_a_grammar_repeats_is_counted_through_its_rules(source: str, times: int) -> None:
    assert most_repeated(rules_of(pieces_of(source))) == times


def test_a_grammar_that_is_none_is_taken_apart_all_the_same() -> None:
    source = 'a: %json {"b": \n%json x {7} "c \n/d\n:e'
    pieces = list(pieces_of(source))
    assert [source[piece.start : piece.end] for piece in pieces if piece.kind == "times"] == ["{7}"]
    assert [rule.name for rule in rules_of(pieces)] == ["a"]
