"""Bad inputs for every route, as the bytes that a client sends.

What can be wrong with a field is made from the table of routes, so that a new route is in it.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hotswap.api.openapi import Operation
from hotswap.api.routes import operations_of
from hotswap.api.traffic import Traffic
from hotswap.config import ServerConfig
from tests.api.bad_json import BAD_JSON
from tests.api.stage import Problems, ScriptedService

CHAT = "/v1/chat/completions"
LOAD = "/v1/load_model"
UNANSWERED = 0
"""The connection was closed without an answer."""
REFUSED = range(400, 500)
NO_FAILURE = range(200, 500)
SUMS = "hotswap/sums"
NEEDS_NO_BODY = (LOAD, "/v1/unload_model", "/sleep", "/wake_up")

_MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]
_SHORT = {"model": SUMS, "max_tokens": 1}
SOUND: Mapping[str, Mapping[str, Any]] = {
    CHAT: {**_SHORT, "messages": _MESSAGES},
    "/v1/completions": {**_SHORT, "prompt": "1 + 1"},
    "/v1/embeddings": {"model": SUMS, "input": "x"},
    "/v1/messages": {**_SHORT, "messages": _MESSAGES},
    "/v1/messages/count_tokens": {"model": SUMS, "messages": _MESSAGES},
    "/v1/responses": {"model": SUMS, "input": "1 + 1", "max_output_tokens": 1},
    "/v1/responses/input_tokens": {"model": SUMS, "input": "1 + 1"},
    "/tokenize": {"model": SUMS, "prompt": "x"},
    "/detokenize": {"model": SUMS, "tokens": [1, 2]},
    "/api/chat": {"model": SUMS, "messages": _MESSAGES, "options": {"num_predict": 1}},
    "/api/generate": {"model": SUMS, "prompt": "1 + 1", "options": {"num_predict": 1}},
    "/api/embed": {"model": SUMS, "input": "x"},
    "/api/embeddings": {"model": SUMS, "prompt": "x"},
    "/api/show": {"model": SUMS},
    "/api/pull": {"model": SUMS},
    LOAD: {"model": SUMS},
    "/v1/unload_model": {"model": SUMS},
    "/models/load": {"model": SUMS},
    "/models/unload": {"model": SUMS},
    "/sleep": {"level": 1},
    "/wake_up": {"tags": ["weights"]},
}
"""By route, a body that is answered."""
UNDOING = frozenset(
    [
        ("/v1/unload_model", "model"),
        ("/models/unload", "model"),
        ("/api/chat", "messages"),
        ("/api/generate", "prompt"),
    ]
)
"""Fields without which, or with another value, a body orders something else than an answer."""
WRONG: tuple[Any, ...] = (*([], "\u202e\U0001f525" * 50, -1, 10**400, 0.5, [None], {"type": "x"}),)
STRANGE_NAMES = (
    *("../../etc/passwd", "/etc/passwd", "~", "~root", ".", "..", "/", "//", "/dev/zero"),
    *(
        "/proc/self/mem",
        "hotswap/../hotswap/sums",
        "hotswap//sums",
        "hotswap\\sums",
        "HOTSWAP/SUMS",
    ),
    *("hotswap/sums@../../x", "hotswap/sums@" + "x" * 300, "a/b/c/d", "\u202esums", "su\u0301ms"),
    *("$(id)", "'; DROP TABLE models; --", "%2e%2e%2f", "{{7*7}}", "\r\nX-Evil: 1", "\t", " "),
    *("a" * 100_000, "a/" * 50_000, "\U0001f525" * 20_000, "hotswap/" + "a" * 96),
)


@dataclass(frozen=True, slots=True)
class Bad:
    """One input, and which answers to it are right."""

    name: str
    raw: bytes
    allowed: Container[int] = REFUSED
    leaves: bool = False
    """The client does not wait for an answer."""


def http(
    method: str, target: str, body: bytes = b"", *lines: str, length: str | None = None
) -> bytes:
    """A request that asks for the connection to be closed behind its answer."""
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *lines]
    if body or length is not None:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def posted(path: str, body: Any, *lines: str) -> bytes:
    """``body`` as JSON, unless it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http("POST", path, raw, "Content-Type: application/json", *lines)


def operations() -> list[Operation]:
    """Those that take a body."""
    every = operations_of(ScriptedService(), ServerConfig(dev_mode=True), Problems(), Traffic())
    return [one for one in every if one.request]


def texts() -> Iterator[Bad]:
    """What is no JSON object, on every route that takes one."""
    for path, (name, raw) in itertools.product(SOUND, BAD_JSON.items()):
        if path not in NEEDS_NO_BODY or raw.strip():
            yield Bad(f"{path}: {name}", posted(path, raw), (400,))


def fields() -> Iterator[Bad]:
    """Objects in which one value is what it should not be. Some of them mean something after
    all, and are answered."""
    for operation in operations():
        path = operation.path
        for name in sorted(_fields_of(operation)):
            if (path, name) in UNDOING:
                continue
            for value in WRONG:
                raw = posted(path, {**SOUND[path], name: value})
                yield Bad(f"{path}: {name}={str(value)[:30]!r}", raw, NO_FAILURE)


def _fields_of(operation: Operation) -> set[str]:
    asked = operation.request
    kinds = asked if isinstance(asked, tuple) else (asked,)
    return {
        field.encode_name
        for kind in kinds
        if kind is not None
        for field in msgspec.structs.fields(kind)
    }


def settings() -> Iterator[Bad]:
    """Of models, as a load takes them."""
    names = (
        *("device", "dtype", "max_model_len", "max_num_seqs", "kv_cache_memory", "chat_template"),
        *("trust_remote_code", "temperature", "top_p", "ttl_s", "pin", "aliases", "path", "model"),
        *("config", "__class__", "", "a.b", "max_model_len\n"),
    )
    wrong: tuple[Any, ...] = (
        [],
        {},
        -1,
        "\u202e",
        [None],
        {"type": "x"},
        0.5,
        -(10**40),
        10**400,
        "9" * 400 + "GiB",
    )
    for name, value in itertools.product(names, wrong):
        nested = {"model": SUMS, "config": {name: value}}
        yield Bad(f"config.{name}={value!r}", posted(LOAD, nested), NO_FAILURE)
    sampling = {"top_k": 10**40, "temperature": 10**400, "seed": 10**40, "x" * 5000: 1}
    for name, value in sampling.items():
        nested = {"model": SUMS, "config": {"sampling": {name: value}}}
        yield Bad(f"sampling.{name[:20]}", posted(LOAD, nested), (400,))
    for body in ({"config": {}, "dtype": "auto"}, {"unknown": 1}, {"model": SUMS, "x" * 5000: 1}):
        yield Bad(f"load {str(body)[:30]}", posted(LOAD, body), (400,))
    for query in ("dry_run=maybe", "dry_run=", "model=x", "dry_run=1&dry_run=2&x=1", "%ff%fe=%00"):
        yield Bad(f"load?{query}", posted(f"{LOAD}?{query}", {"model": SUMS}), (400,))
    for query in ("level=0", "level=3", "level=", "mode=x", "mode=wait&level=9", "tags=a", "=&&="):
        yield Bad(f"sleep?{query}", http("POST", f"/sleep?{query}", b"{}"), (400,))


def names() -> Iterator[Bad]:
    """Models that are not there."""
    for name in STRANGE_NAMES:
        shown = repr(name[:30])
        for path in (CHAT, "/v1/completions", "/tokenize", "/models/load", LOAD, "/api/show"):
            body = {**SOUND[path], "model": name}
            yield Bad(f"{path}: model {shown}", posted(path, body), (400, 404, 413))
        quoted = "".join(f"%{byte:02x}" for byte in name.encode()[:5000])
        target = f"/v1/models/{quoted}"
        yield Bad(f"/v1/models/{shown}", http("GET", target), (404,))


def targets() -> Iterator[Bad]:
    """What may stand in a request's first line."""
    for target in (
        *("/nowhere", "//", "/%", "/%zz", "/%00", "/../../etc/passwd", "/v1/models/%00"),
        *("/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/" + "a" * 10_000, "/V1/MODELS"),
        *("/v1//models", "/v1/models;a=b", "/v1/models/%ff%fe", "http://evil.example/v1/models"),
        *("/v1/chat/completions/", "/v1/responses/%2e%2e", "/v1/responses/" + "x" * 9000),
        *(
            "/api/blobs/sha256:" + "0" * 64,
            "/favicon.ico",
            "/.env",
            "/metrics/",
            "/status/../metrics",
        ),
    ):
        yield Bad(f"GET {target[:40]}", http("GET", target))
    for target in ("/v1/models?" + "x=1&" * 2000, "/v1/models?%ff=%00", "/status?__proto__=1"):
        yield Bad(f"GET {target[:40]}", http("GET", target), NO_FAILURE)
    for method in ("PUT", "PATCH", "TRACE", "DELETE", "OPTIONS", "PROPFIND", "get", "X" * 200):
        yield Bad(f"{method[:20]} {CHAT}", http(method, CHAT))
    for line in (
        *("GET", "GET /", "GET  /", "/ HTTP/1.1", "GET / HTTP/1.x"),
        *("GET / HTTP/1.1 x", "GET\t/\tHTTP/1.1", "G\x00T / HTTP/1.1", "GET /\x80 HTTP/1.1", ""),
        *("CONNECT evil.example:443 HTTP/1.1", "GET * HTTP/1.1", "EHLO there", " GET / HTTP/1.1"),
        *("GET /" + "a" * 70_000 + " HTTP/1.1", "X" * 20_000 + " / HTTP/1.1"),
    ):
        raw = f"{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
        yield Bad(f"line {line[:30]!r}", raw, (UNANSWERED, *REFUSED))


def heads() -> Iterator[Bad]:
    """Headers that are not, or mean nothing here, or are too many."""
    broken = (
        *(
            "no colon",
            ": no name",
            "Bad Name: x",
            "Bad\x00Name: x",
            "X: a\x00b",
            "X : y",
            "\x7f: y",
        ),
        *("X: a\rb", "Host: other", "Host:", "Content-Length: -1", "Content-Length: +5"),
        *(
            "Content-Length: 0x10",
            "Content-Length: 1e3",
            "Content-Length: 5, 6",
            "Content-Length: ",
        ),
        *("Content-Length: " + "9" * 400, "Content-Length: ٣", "Transfer-Encoding: \x0bchunked"),
        *("X-Long: " + "x" * 70_000, *(["X: y\r\n" * 5000 + "Z: z"])),
        "Content-Length: 5\r\nContent-Length: 6",
    )
    for line in broken:
        shown = line.encode("utf-8").decode("latin-1")
        raw = http("POST", CHAT, b"", shown) + b"{}"
        yield Bad(f"head {line[:30]!r}", raw, (UNANSWERED, *REFUSED))
    for lengths in (
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ):
        raw = (
            http("POST", CHAT, b"", *lengths)
            + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        yield Bad(f"smuggled {lengths}", raw, (400,))
    # RFC 9112, 6.1: a transfer coding that is not understood is answered with 501.
    for coding in ("gzip", "chunked, chunked", "identity", "chunked;q=1", "x"):
        raw = http("POST", CHAT, b"", f"Transfer-Encoding: {coding}") + b"0\r\n\r\n"
        yield Bad(f"coding {coding}", raw, (UNANSWERED, 501, *REFUSED))
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]", "x" * 300):
        raw = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        yield Bad(f"host {host[:30]}", raw, (403,))
    for lines in (
        ("Authorization: Bearer",),
        ("Authorization: Basic \xff\xfe",),
        ("X-Api-Key: " + "k" * 10_000,),
        ("X-Request-Id: \x1b[31mred\x1b[0m",),
        ("Origin: https://evil.example", "Access-Control-Request-Method: POST"),
        ("Cookie: " + "a=b; " * 1000,),
        ("Accept: \xff", "Accept-Encoding: " + "gzip;q=0.1, " * 500),
        ("Expect: 100-continue",),
        ("Expect: 200-maybe",),
        ("Range: bytes=0-18446744073709551615", "If-None-Match: *"),
        ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 99"),
        ("Content-Encoding: gzip", "Content-Type: application/json; charset=utf-16"),
    ):
        raw = posted(CHAT, b'{"messages": 5}', *lines)
        yield Bad(f"lines {lines[0][:30]!r}", raw, (UNANSWERED, *REFUSED))
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "MULTIPART/form-data"):
        raw = http("POST", CHAT, b"{}", f"Content-Type: {kind}")
        yield Bad(f"kind {kind}", raw, (415,))


def framing() -> Iterator[Bad]:
    """Bodies in chunks that are none, and bytes that are no HTTP."""
    chunked = http("POST", CHAT, b"", "Transfer-Encoding: chunked")
    for rest in (
        *(b"zz\r\n", b"-1\r\n{}\r\n", b"F" * 30 + b"\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"2 {}\r\n"),
        *(b"2;" + b"e" * 70_000 + b"\r\n{}\r\n0\r\n\r\n", b"\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n"),
        *(b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n", b"\xff\xff\r\n"),
        *(b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\n" + b"T: t\r\n" * 20_000 + b"\r\n"),
    ):
        yield Bad(f"chunks {rest[:20]!r}", chunked + rest, (UNANSWERED, *REFUSED))
    dice, end = (
        random.Random(1),
        b"\r\n\r\n",
    )  # without it they are waited for, as every silent one is
    for raw in (
        *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + end, b"SSH-2.0-x" + end),
        *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"PRI * HTTP/2.0\r\n\r\nno\r\n\r\n"),
        *(b"\r\n" * 40_000 + b"x" + end, b"\x00" + end, bytes(9000) + end),
        *(b'{"messages": []}' + end, b"<html></html>" + end, b"\xff" * 70_000),
        *(dice.randbytes(dice.randrange(1, 2000)) + end for _ in range(20)),
    ):
        yield Bad(f"bytes {raw[:20]!r}", raw, (UNANSWERED, *REFUSED))


def multipart(*parts: bytes, boundary: str = "xx", end: bool = True) -> bytes:
    mark = f"--{boundary}".encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts)
    body += mark + b"--\r\n" if end else b""
    return http("POST", LOAD, body, f"Content-Type: multipart/form-data; boundary={boundary}")


def _part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode("latin-1") + content


def _file(content: bytes) -> bytes:
    return _part("config", content, '; filename="c.yaml"')


def uploads() -> Iterator[Bad]:
    """Forms that are cut off, lie or hold too much, and YAML that does more than say something."""
    for name, raw in {
        "no end": multipart(_file(b"dtype: auto"), end=False),
        "no parts": multipart(),
        "long boundary": multipart(_file(b"a: 1"), boundary="x" * 8000),
        "two files": multipart(_file(b""), _file(b"")),
        "unknown field": multipart(_part("other", b"1")),
        "file elsewhere": multipart(_part("model", b"a", '; filename="../../etc/passwd"')),
        "no name": multipart(b"Content-Disposition: form-data\r\n\r\nx"),
        "no header": multipart(b"\r\nx"),
        "bad header": multipart(b"Bad Header\r\n\r\nx"),
        "huge header": multipart(b"X: " + b"x" * 70_000 + b"\r\n\r\nx"),
        "many parts": multipart(*[_part("model", b"a")] * 2000),
        "NUL name": multipart(_part("model", b"\0")),
        "name that is none": multipart(_part("model", b"\xff\xfe")),
        "nested": multipart(_part("config", b"--xx\r\n--xx--\r\n")),
        "large field": multipart(_part("model", b"x" * (65 << 10))),
        "large file": multipart(_file(b"#" * (70 << 10))),
        "larger file": multipart(_file(b"#" * (300 << 10))),
        "charset": multipart(_part("config", b"a: 1", "; charset=rot13")),
        "base64": multipart(b"Content-Transfer-Encoding: base64\r\n" + _file(b"ZHR5cGU6IGF1dG8=")),
    }.items():
        yield Bad(f"form {name}", raw, (400, 404, 413))
    for text in (
        *(
            b"[",
            b"- a",
            b"just text",
            b"a: &x 1\nb: *x",
            b"<<: {a: 1}",
            b"a: !!python/name:os.system",
        ),
        *(b"a: !!binary x", b"a: 1\na: 2", b"1: a", b"? [a]\n: b", b"a: .nan", b"a: 2024-13-45"),
        *(
            b"a: " + b"[" * 10_000,
            b"a: {" * 10_000,
            b"\xff\xfea",
            b"a: \0",
            b"--- {}\n--- {}",
            b"%YAML 9.9",
        ),
        *(
            b"a: 1e999",
            b"a: " + b"9" * 50_000,
            b'a: "\\ud800"',
            b"a: |\n" + b"  x\n" * 5000,
            b"a:" * 9000,
        ),
        *(
            b"max_model_len: many",
            b"max_model_len: -1",
            b"dtype: [auto]",
            b"trust_remote_code: true",
        ),
        *(
            b"unknown: 1",
            b"model: 5",
            b"model: nowhere",
            b"device: tpu:99",
            b"chat_template: '{% for %}'",
        ),
        *(b"max_model_len: 0x" + b"f" * 9000, b"ttl_s: 1" + b":59" * 9000 + b".5"),
        *(
            b"lol: &a [x,x]\nb: [*a,*a,*a]",
            b"ttl_s: .inf",
            b"max_num_seqs: 0",
            b"kv_cache_memory: -5",
        ),
    ):
        yield Bad(f"YAML {text[:30]!r}", multipart(_file(text)), (400, 404, 413, 422))


def large() -> Iterator[Bad]:
    """Bodies above the bound, announced and not."""
    for size in ((8 << 20) + 1, 13 << 20):
        yield Bad(f"{size} bytes", posted(CHAT, b" " * size), (413,))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        head = http("POST", CHAT, b"", "Transfer-Encoding: chunked")
        chunks = head + chunk * (size // 65536 + 1) + b"0\r\n\r\n"
        yield Bad(f"{size} bytes in chunks", chunks, (413,))
    for path in ("/livez", "/v1/models", "/nowhere"):
        raw = http("GET", path, b" " * (3 << 20))
        yield Bad(f"GET {path} with a body", raw, (200, 404))
    many = {**SOUND[CHAT], "messages": _MESSAGES * 50_000}
    yield Bad("50,000 messages", posted(CHAT, many), NO_FAILURE)  # the template takes the last one
    yield Bad("a long prompt", posted("/v1/completions", {**_SHORT, "prompt": "1 + " * 500_000}))
    yield Bad("many ids", posted("/detokenize", {"model": SUMS, "tokens": [10**9] * 10_000}))
    yield Bad("many texts", posted("/v1/embeddings", {"model": SUMS, "input": ["x"] * 5000}))


def cut_off() -> Iterator[Bad]:
    """A request that ends anywhere. There is nobody to answer any more."""
    whole = posted(CHAT, {**SOUND[CHAT], "stream": True})
    for end in range(1, len(whole), 7):
        yield Bad(f"{end} bytes of {len(whole)}", whole[:end], (UNANSWERED,), leaves=True)


GROUPS = (texts, fields, settings, names, targets, heads, framing, uploads, large, cut_off)
