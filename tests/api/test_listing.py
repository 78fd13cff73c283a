from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hotswap.contracts.progress import Progress
from tests.api.stage import SUMS, TALES, ScriptedService, app_of, ask

SUMS_ENTRY = {
    "id": "hotswap/sums",
    "object": "model",
    "created": 1700000000,
    "owned_by": "hotswap",
    "aliases": ["sums"],
    "loaded": True,
    "status": {"value": "loaded"},
    "max_model_len": 512,
    "task": "generate",
}


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_list_names_every_model(path: str) -> None:
    listing = ask(app_of(), "GET", path).json
    assert listing["object"] == "list"
    assert listing["data"][0] == SUMS_ENTRY
    assert [entry["loaded"] for entry in listing["data"]] == [True, False]


def test_a_loading_and_a_failed_model_say_so() -> None:
    progress = Progress(model=SUMS.id, stage="reading", value=0.5)
    service = ScriptedService(
        listings=(
            replace(SUMS, status="loading", progress=progress, max_model_len=None),
            replace(TALES, status="sleeping", error="broke"),
        )
    )
    loading, failed = ask(app_of(service), "GET", "/v1/models").json["data"]
    assert loading["status"] == {
        "value": "loading",
        "progress": {"stage": "reading", "value": 0.5},
    }
    assert loading["max_model_len"] is None
    assert failed["status"] == {"value": "sleeping", "failed": True, "error": "broke"}


def test_the_list_changes_with_what_it_lists() -> None:
    service = ScriptedService()
    app = app_of(service)
    assert ask(app, "GET", "/v1/models").json == ask(app, "GET", "/models").json
    service.listings = (replace(SUMS, status="sleeping"), TALES)
    after = ask(app, "GET", "/v1/models").json["data"]
    assert after[0] == {**SUMS_ENTRY, "loaded": False, "status": {"value": "sleeping"}}
    service.listings = ()
    assert ask(app, "GET", "/v1/models").json["data"] == []


@pytest.mark.parametrize("name", ["hotswap/sums", "sums"])
def test_one_model_by_name(name: str) -> None:
    assert ask(app_of(), "GET", f"/v1/models/{name}").json == SUMS_ENTRY


def test_a_model_that_does_not_exist() -> None:
    exchange = ask(app_of(), "GET", "/v1/models/none/such")
    assert exchange.status == 404
    assert exchange.error["code"] == "model_not_found"
    assert exchange.error["type"] == "not_found_error"


def test_anthropics_client_finds_its_fields() -> None:
    service = ScriptedService()
    app, theirs = app_of(service), {"anthropic-version": "2023-06-01"}
    listing = ask(app, "GET", "/v1/models", headers=theirs).json
    expected = {
        **SUMS_ENTRY,
        "type": "model",
        "display_name": "hotswap/sums",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 512,
    }
    assert listing["data"][0] == expected
    assert (listing["first_id"], listing["last_id"]) == ("hotswap/sums", "hotswap/tales")
    assert listing["has_more"] is False
    assert ask(app, "GET", "/v1/models/sums", headers=theirs).json == expected
    assert ask(app, "GET", "/v1/models").json["data"][0] == SUMS_ENTRY
    service.listings = ()
    empty = ask(app, "GET", "/v1/models", headers=theirs).json
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


def page(query: str, headers: dict[str, str] | None = None) -> Any:
    listings = tuple(replace(SUMS, id=id, aliases=()) for id in "abcde")
    path = f"/v1/models?{query}"
    return ask(app_of(ScriptedService(listings=listings)), "GET", path, headers=headers)


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ("", "abcde", False),
        ("limit=2", "ab", True),
        ("limit=5", "abcde", False),
        ("limit=2&after_id=b", "cd", True),
        ("limit=2&after_id=c", "de", False),
        ("after_id=e", "", False),
        ("limit=2&before_id=d", "bc", True),
        ("limit=3&before_id=d", "abc", False),
        ("before_id=a", "", False),
        ("beta=true", "abcde", False),
    ],
)
def test_anthropics_clients_turn_pages(query: str, ids: str, has_more: bool) -> None:
    answer = page(query, {"anthropic-version": "2023-06-01"}).json
    assert "".join(entry["id"] for entry in answer["data"]) == ids
    ends = (ids[0], ids[-1]) if ids else (None, None)
    assert (answer["has_more"], answer["first_id"], answer["last_id"]) == (has_more, *ends)
    assert len(page(query).json["data"]) == 5


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=two", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("after_id=a&after_id=b", "after_id"),
        ("after_id=x", "after_id"),
        ("before_id=x", "before_id"),
        ("after_id=a&before_id=b", "before_id"),
    ],
)
def test_a_page_that_is_none_is_refused_by_name(query: str, param: str) -> None:
    exchange = page(query, {"anthropic-version": "2023-06-01"})
    assert exchange.status == 400
    assert exchange.json["error"]["message"].startswith(f"{param}: ")
