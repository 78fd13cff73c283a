from __future__ import annotations

import gzip
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from starlette.types import Message
from trio.testing import MockClock

from hotswap.api import body as body_module
from hotswap.api.body import (
    MAX_BODY_BYTES,
    MAX_DISCARDED_BYTES,
    MAX_LINGERED_BYTES,
    PAUSE_S,
    SLOWEST_BYTES_PER_S,
    Incoming,
    parse_object,
    read_body,
    read_object,
)
from hotswap.api.errors import BodyTimedOut, ClientGone, UnsupportedMediaType
from hotswap.errors import InvalidJson, RequestTooLarge
from tests.api.bad_json import BAD_JSON


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
        (
            gzip.compress(b"{}", mtime=0),
            None,
            "the body is not valid UTF-8: it must be JSON as plain text",
        ),
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


def read_slowly(chunk: bytes, count: int, bytes_per_s: float) -> float:
    """How many (virtual) seconds it took to read a body that comes in so many chunks."""

    async def main() -> float:
        coming = chunks(*[chunk] * count)

        async def receive() -> Message:
            await anyio.sleep(len(chunk) / bytes_per_s)
            return coming.pop(0)

        begun = anyio.current_time()
        assert await read_body(receive, scope()) == chunk * count
        return anyio.current_time() - begun

    options = {"clock": MockClock(autojump_threshold=0)}
    return anyio.run(main, backend="trio", backend_options=options)


def test_a_byte_now_and_then_does_not_hold_a_request_for_long() -> None:
    assert read_slowly(b"x", 50, bytes_per_s=1.0) > 49
    with pytest.raises(BodyTimedOut):
        read_slowly(b"x", 100, bytes_per_s=1.0)


def test_a_body_that_keeps_coming_may_take_longer_than_a_pause() -> None:
    rate = 1.1 * SLOWEST_BYTES_PER_S
    assert read_slowly(b"x" * 10_000, int(2 * PAUSE_S * rate / 10_000), rate) > 1.9 * PAUSE_S


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
        await small.discard()
        assert small.complete
        feed = Feed(*chunks(*[b"x" * (1 << 20)] * 100))
        large = Incoming(feed, scope())
        await large.discard()
        assert not large.complete
        assert 100 - len(feed.messages) == MAX_DISCARDED_BYTES // (1 << 20) + 1
        await large.linger()
        assert not large.complete
        assert (
            99 - len(feed.messages) == (MAX_DISCARDED_BYTES + MAX_LINGERED_BYTES) // (1 << 20) + 1
        )

    anyio.run(main)


def test_the_limit_leaves_room_for_long_conversations() -> None:
    assert MAX_BODY_BYTES == 8 << 20
