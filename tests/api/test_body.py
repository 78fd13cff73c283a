from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from starlette.types import Message

from hotswap.api import body as body_module
from hotswap.api.body import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_DISCARDED_BYTES,
    Incoming,
    parse_object,
    read_body,
    read_object,
)
from hotswap.api.errors import BodyTimedOut, ClientGone, UnsupportedMediaType
from hotswap.errors import InvalidJson, RequestTooLarge

BAD_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "cut off": b'{"n": 1',
    "trailing": b'{"n": 1} x',
    "two objects": b"{}{}",
    "trailing comma": b'{"n": 1,}',
    "comment": b'{"n": 1 /* one */}',
    "single quotes": b"{'n': 1}",
    "bare word": b"hello",
    "array": b"[1]",
    "string": b'"x"',
    "number": b"5",
    "null": b"null",
    "true": b"true",
    "NaN": b'{"n": NaN}',
    "Infinity": b'{"n": Infinity}',
    "-Infinity": b'{"n": -Infinity}',
    "overflow": b'{"n": 1e999}',
    "-overflow": b'{"n": -1e999}',
    "huge integer": b'{"n": ' + b"9" * 5000 + b"}",
    "huge negative integer": b'{"n": -' + b"9" * 5000 + b"}",
    "leading zero": b'{"n": 01}',
    "plus": b'{"n": +1}',
    "hex": b'{"n": 0x10}',
    "deep arrays": b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"n":' * 100_000 + b"1" + b"}" * 100_000,
    "deeper than allowed": b'{"n": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "unclosed depth": b"[" * 100_000,
    "duplicate": b'{"n": 1, "n": 2}',
    "inner duplicate": b'{"a": {"n": 1, "n": 2}}',
    "high surrogate": b'{"n": "\\ud800"}',
    "low surrogate": b'{"n": "x\\uDC00"}',
    "surrogate in key": b'{"\\ud800": 1}',
    "surrogates swapped": b'{"n": ["\\udc00\\ud83d"]}',
    "NUL escaped": b'{"n": "a\\u0000b"}',
    "NUL in key": b'{"a\\u0000b": 1}',
    "NUL raw": b'{"n": "a\0b"}',
    "control character": b'{"n": "a\nb"}',
    "bad escape": b'{"n": "\\x41"}',
    "bad UTF-8": b'{"n": "\xff"}',
    "cut UTF-8": b'{"n": "\xe2\x82"}',
    "overlong UTF-8": b'{"n": "\xc0\x80"}',
    "encoded surrogate": b'{"n": "\xed\xa0\x80"}',
    "UTF-16": '{"n": 1}'.encode("utf-16"),
    "UTF-8 mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("raw", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse_object(raw)


@pytest.mark.parametrize(
    ("raw", "param", "message"),
    [
        (b'{"n": 1.5, "top_p": NaN}', "top_p", "top_p: NaN is not valid JSON"),
        (b'{"a": [{"b": [1, -Infinity]}]}', "a[0].b[1]", "a[0].b[1]: -Infinity is not valid"),
        (b'{"bias": {"7": 1e999}, "b": NaN}', "bias.7", "bias.7: a number is out of range"),
        (b'{"prompt": "\\ud800"}', "prompt", "prompt: a string holds half of a surrogate pair"),
        (b'{"stop": ["ok", "a\\u0000"]}', "stop[1]", "stop[1]: a string holds the character NUL"),
        (b'{"a": {"\\ud800": "\\ud800"}}', "a", "a: a string holds half of a surrogate pair"),
        (b'{"\\u0000": 1}', None, "a string holds the character NUL"),
        (b'{"' + b"k" * 500 + b'": NaN}', "k" * 200, "k" * 200 + ": NaN"),
    ],
)
def test_what_json_cannot_hold_is_named(raw: bytes, param: str | None, message: str) -> None:
    with pytest.raises(InvalidJson) as refusal:
        parse_object(raw)
    assert refusal.value.param == param
    assert refusal.value.message.startswith(message)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b' {"n": 1} \n', {"n": 1}),
        (b'{"n": 1.0}', {"n": 1}),
        (b'{"n": 1e3}', {"n": 1000}),
        (b'{"n": 1.5}', {"n": 1.5}),
        (b'{"n": 1e300}', {"n": 1e300}),
        (b'{"n": -0.0}', {"n": 0}),
        (b'{"n": "\\ud83d\\ude00"}', {"n": "\U0001f600"}),
        (b'{"n": "\\\\u0000 \\\\ud800"}', {"n": "\\u0000 \\ud800"}),
        ('{"n": "é€"}'.encode(), {"n": "é€"}),
        (b'{"n": [' + b"[]," * 100 + b"[]]}", {"n": [[]] * 101}),
    ],
)
def test_what_is_strict_json_is_read(raw: bytes, value: dict[str, Any]) -> None:
    assert parse_object(raw) == value


class Feed:
    """``receive`` of the messages given, then silence."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)

    async def __call__(self) -> Message:
        if not self.messages:
            await anyio.sleep_forever()
        return self.messages.pop(0)


def chunks(*parts: bytes, complete: bool = True) -> list[Message]:
    return [
        {
            "type": "http.request",
            "body": part,
            "more_body": not (complete and i + 1 == len(parts)),
        }
        for i, part in enumerate(parts)
    ]


def scope(**headers: str) -> dict[str, Any]:
    named = headers.items()
    return {"headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named]}


def read(messages: Sequence[Message], limit_bytes: int = 10, **headers: str) -> bytes:
    return anyio.run(read_body, Feed(*messages), scope(**headers), limit_bytes)


def test_a_body_in_pieces_is_one_body() -> None:
    assert read(chunks(b"ab", b"", b"cd")) == b"abcd"


def test_an_announced_size_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(RequestTooLarge):
        read([], content_length="11")


@pytest.mark.parametrize("length", ["9" * 5000, "99999999999999999999999"])
def test_an_absurd_announced_size_is_refused(length: str) -> None:
    with pytest.raises(RequestTooLarge):
        read([], content_length=length)


def test_a_body_that_grows_above_the_limit_is_refused() -> None:
    with pytest.raises(RequestTooLarge):
        read(chunks(b"123456", b"123456", complete=False))


def test_a_client_that_leaves_inside_its_body_is_gone() -> None:
    with pytest.raises(ClientGone):
        read([*chunks(b"ab", complete=False), {"type": "http.disconnect"}])


def test_a_client_that_falls_silent_inside_its_body_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_module, "PAUSE_S", 0.01)
    with pytest.raises(BodyTimedOut):
        read(chunks(b"ab", complete=False))


def parsing_thread(raw: bytes) -> int:
    async def main() -> int:
        feed = Feed(*chunks(raw))
        return await read_object(feed, scope(), lambda _: threading.get_ident())

    return anyio.run(main)


def test_only_large_bodies_are_parsed_in_a_thread() -> None:
    here = threading.get_ident()
    assert parsing_thread(b"{}") == here
    assert parsing_thread(b'{"n": "' + b"x" * 300_000 + b'"}') != here


def test_a_form_is_not_taken_for_json() -> None:
    with pytest.raises(UnsupportedMediaType):
        anyio.run(read_object, Feed(), scope(content_type="multipart/form-data; boundary=x"), dict)


def test_what_is_left_of_a_body_is_read_up_to_a_bound() -> None:
    async def main() -> None:
        small = Incoming(Feed(*chunks(b"x" * 1000, b"y" * 1000)), scope())
        assert await small.discard()
        feed = Feed(*chunks(*[b"x" * (1 << 20)] * 10))
        assert not await Incoming(feed, scope()).discard()
        assert 10 - len(feed.messages) == MAX_DISCARDED_BYTES // (1 << 20) + 1

    anyio.run(main)


def test_the_limit_leaves_room_for_long_conversations() -> None:
    assert MAX_BODY_BYTES == 8 << 20
