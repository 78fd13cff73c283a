"""`/openapi.json` against what the app really does, with requests made from it.

``OPENAPI_EXAMPLES`` says how many of each kind and path: 4 in every run, and as many as one has
time for after a change of the requests' types.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.api.stage import ScriptedService, app_of, ask

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "4"))
HOST = "http://testserver"
"""What the generator calls the app."""
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OFTEN_REFUSED = ("/models/load", "/api/show", "/api/pull")
"""Even the best of requests names a model that is not there. Ollama's may call it ``model`` or
``name``: that there is one of the two is checked by hand, and not said by the type."""
ALWAYS_REFUSED = ("/api/create", "/api/copy", "/api/push", "/api/blobs/{digest}")
"""Models are directories on the disk: whatever is asked, 403 is the answer."""


def app() -> Any:
    return app_of(ScriptedService(), cors_origins=(HOST,))


def document(**server: Any) -> Any:
    return ask(app_of(**server), "GET", "/openapi.json", headers={"x-api-key": "k"}).json


POSTS = {
    path: methods["post"] for path, methods in document()["paths"].items() if "post" in methods
}
LENIENT = ("/api/chat", "/api/generate")
"""Without messages or prompt they load a model, and not all that stands beside it is looked at."""
BENDABLE = [
    path
    for path, post in POSTS.items()
    if path not in (*ALWAYS_REFUSED, *LENIENT) and ("requestBody" in post or post["parameters"])
]
ANSWERING = [path for path in POSTS if path not in ALWAYS_REFUSED]


@cache
def schema() -> Any:
    loaded = schemathesis.openapi.from_asgi("/openapi.json", app())
    loaded.config.generation.allow_x00 = False  # refused in every text, which no schema says
    # Some rules are between fields: more min_tokens than max_tokens, a tool that is not there.
    # The tests say which of these statuses a path may give.
    loaded.config.checks.positive_data_acceptance.expected_statuses = ["200", "400", "403", "404"]
    return loaded


def statuses(path: str, mode: GenerationMode, examples: int = EXAMPLES) -> Counter[int]:
    """Of requests to ``path`` made in ``mode``, each answer held to the document."""
    seen: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=schema()[path]["POST"].as_strategy(generation_mode=mode))
    def ask_and_check(case: Any) -> None:
        answer = case.call()
        if not _is_blank(case.body):
            case.validate_response(answer)
        seen[answer.status_code] += 1

    ask_and_check()
    return seen


def _is_blank(body: Any) -> bool:
    """Where no body is needed, nothing but spaces is none; the generator thinks it is a bad one."""
    return isinstance(body, bytes) and not body.strip()


@pytest.mark.parametrize("path", ANSWERING)
def test_what_the_document_allows_is_answered(path: str) -> None:
    seen = statuses(path, POSITIVE)
    assert set(seen) <= {200, 400, 404}
    assert path in OFTEN_REFUSED or 4 * seen[200] >= seen.total()


@pytest.mark.parametrize("path", ALWAYS_REFUSED)
def test_what_is_never_done_is_refused_as_the_document_says(path: str) -> None:
    assert set(statuses(path, POSITIVE, examples=2)) == {403}


@pytest.mark.parametrize("path", BENDABLE)
def test_what_the_document_forbids_is_refused(path: str) -> None:
    seen = statuses(path, NEGATIVE)
    assert set(seen) <= {200, 400, 404}  # 200: what was bent was a parameter that may be anything
    assert seen[400]


def test_the_document_has_every_route_that_is_open() -> None:
    assert "/v1/load_model" in document()["paths"]
    closed = document(dev_mode=False)["paths"]
    assert "/v1/load_model" not in closed
    assert {"/v1/chat/completions", "/v1/models/{name}", "/metrics"} <= set(closed)


def test_the_document_says_whether_a_key_is_needed() -> None:
    assert "security" not in document()
    keyed = document(api_keys=("k",))
    assert keyed["security"] == [{"key": []}]
    assert ask(app_of(api_keys=("k",)), "GET", "/openapi.json").status == 401


def test_the_errors_of_a_path_are_those_of_its_dialect() -> None:
    refusal = document()["paths"]["/v1/completions"]["post"]["responses"]["429"]
    assert refusal["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert refusal["headers"]["Retry-After"]["schema"]["maximum"] == 60


def test_a_field_may_be_null_without_saying_so_as_its_default() -> None:
    n = document()["components"]["schemas"]["Chat"]["properties"]["n"]
    assert {"type": "null"} in n["anyOf"]
    assert "default" not in n
