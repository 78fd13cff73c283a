from __future__ import annotations

from collections.abc import Iterator

import pytest

from hotswap.api.errors import (
    STATUS,
    ClientGone,
    envelope,
    envelope_on,
    error_headers,
    leaf_of,
    presentable,
    status_of,
)
from hotswap.contracts.progress import Progress
from hotswap.errors import (
    CheckpointRefused,
    HotswapError,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    Overloaded,
)
from tests.api.stage import app_of, ask


def tree(kind: type[HotswapError] = HotswapError) -> Iterator[type[HotswapError]]:
    if kind.__module__ == "hotswap.errors" or kind.__module__.startswith("hotswap.api."):
        yield kind
    for inner in kind.__subclasses__():
        yield from tree(inner)


def test_no_error_is_forgotten_in_the_table() -> None:
    assert set(tree()) - set(STATUS) == set()


@pytest.mark.parametrize("kind", STATUS)
def test_every_error_makes_an_envelope_and_says_when_to_come_back(
    kind: type[HotswapError],
) -> None:
    error = kind("what happened")
    inside = envelope(error)["error"]
    assert inside["message"] == "what happened"
    assert inside["code"] == kind.code
    assert inside["type"].endswith("_error")
    retry_after = error_headers(error).get("retry-after")
    assert (retry_after is not None) == (status_of(error) in (429, 503))
    assert retry_after is None or 1 <= int(retry_after) <= 60


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (7.5, "8"), (300.0, "60")])
def test_retry_after_is_a_whole_number_that_clients_respect(wait_s: float, header: str) -> None:
    error = Overloaded("full", retry_after_s=wait_s)
    assert error_headers(error) == {"retry-after": header}


def test_a_status_stands_for_the_nearest_known_kind() -> None:
    class Odd(CheckpointRefused):
        pass

    assert status_of(Odd("odd")) == 422


def test_loading_is_told_only_to_who_is_to_come_back() -> None:
    progress = Progress(model="b", stage="reading", value=0.5, eta_s=3.0)
    loading = {"model": "b", "state": "reading", "progress": 0.5, "eta_seconds": 3.0}
    assert envelope(ModelLoading("wait"), progress)["loading"] == loading
    assert "loading" not in envelope(ModelNotFound("none"), progress)


def test_the_envelope_names_the_field() -> None:
    inside = envelope(InvalidRequest("no", param="n"))["error"]
    assert inside == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_request",
    }


def test_our_error_is_found_inside_groups() -> None:
    error = Overloaded("full")
    group = ExceptionGroup("outer", [ClientGone(), ExceptionGroup("inner", [error])])
    assert leaf_of(group) is error
    assert presentable(group, "id") is error


def test_what_nobody_foresaw_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    error = presentable(KeyError("/secret/path"), "r-1")
    assert "/secret/path" not in error.message
    assert status_of(error) == 500
    assert "r-1" in caplog.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            {"type": "error", "error": {"type": "not_found_error", "message": "no such"}},
        ),
        (
            "/v1/messages/count_tokens",
            {"type": "error", "error": {"type": "not_found_error", "message": "no such"}},
        ),
        ("/api/chat", {"error": "no such"}),
        ("/v1/messagesx", envelope(ModelNotFound("no such"))),
        ("/apis", envelope(ModelNotFound("no such"))),
    ],
)
def test_each_dialect_has_its_own_envelope(path: str, body: object) -> None:
    assert envelope_on(path)(ModelNotFound("no such"), None) == body


ANTHROPICS = {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("method", "target", "headers", "status", "kind"),
    [
        ("GET", "/v1/models/none", {}, 404, "not_found_error"),
        ("GET", "/no/such/route", {}, 404, "not_found_error"),
        ("PUT", "/v1/models", {}, 405, "invalid_request_error"),
        ("GET", "/v1/models", {"x-api-key": "wrong"}, 401, "authentication_error"),
        ("GET", "/v1/models", {"host": "evil.example"}, 403, "permission_error"),
        ("POST", "/v1/chat/completions", {}, 400, "invalid_request_error"),
    ],
)
def test_an_anthropic_client_gets_its_envelope_on_all_routes(
    method: str, target: str, headers: dict[str, str], status: int, kind: str
) -> None:
    app = app_of(api_keys=("key",))
    answer = ask(app, method, target, b"{", {"x-api-key": "key", **ANTHROPICS, **headers})
    assert answer.status == status
    assert set(answer.json) == {"type", "error"}
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == kind
    ours = ask(app, method, target, b"{", {"x-api-key": "key", **headers})
    assert "code" in ours.error
