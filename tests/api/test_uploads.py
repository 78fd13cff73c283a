"""Forms that nobody would send on purpose."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.stage import ScriptedService, app_of, ask
from tests.work import LINEAR, growth

PIECES = [
    *(
        b"--xx",
        b"--xx--",
        b"\r\n",
        b"\n",
        b"\r",
        b"--",
        b"x",
        b"\0",
        b"\xff",
        b": ",
        b";",
        b'"',
        b"a: 1",
    ),
    *(
        b"Content-Disposition: form-data",
        b'; name="config"',
        b'; name="model"',
        b'; filename="c.yaml"',
    ),
    *(b"Content-Type: text/plain", b"; charset=utf-16", b"Content-Transfer-Encoding: base64", b"m"),
    b'--xx\r\nContent-Disposition: form-data; name="config"\r\n\r\n',
    b'--xx\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n',
]


def post(raw: bytes, kind: str = "multipart/form-data; boundary=xx") -> int:
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", "/v1/load_model", raw, {"Content-Type": kind})
    assert exchange.status in (200, 400, 413), exchange.body
    assert (exchange.status == 200) == bool(service.orders)
    return exchange.status


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=15).map(b"".join), st.booleans())
def test_any_form_is_an_order_or_refused(raw: bytes, ends: bool) -> None:
    post(raw + b"\r\n--xx--\r\n" * ends)


@settings(deadline=None)
@given(st.text(max_size=30), st.binary(max_size=60))
def test_any_boundary_is_one_or_refused(boundary: str, raw: bytes) -> None:
    sent = boundary.encode("utf-8").decode("latin-1").replace("\r", "").replace("\n", "")
    post(raw, f"multipart/form-data; boundary={sent}")


@pytest.mark.parametrize(
    "unit", [b"\r\n", b"--xx\r\n", b"--x", b"\r\n--x", b"-", b"x: y\r\n", b"\0"]
)
@pytest.mark.slow
def test_four_times_the_form_is_about_four_times_the_work(unit: bytes) -> None:
    def form(size: int) -> bytes:
        head = b'--xx\r\nContent-Disposition: form-data; name="config"; filename="c"\r\n\r\n'
        return head + unit * (size // len(unit)) + b"\r\n--xx--\r\n"

    assert growth(post, form(3_000), form(12_000)) < LINEAR
