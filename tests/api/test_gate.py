from __future__ import annotations

import json

import anyio
import pytest
from starlette.types import ASGIApp

from hotswap.api import app as app_module
from hotswap.config import Settings, SwapRules
from tests.api.stage import Exchange, Problems, ScriptedService, app_of, ask, chat_body

INFERENCE = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/hotswap/sums"),
    ("GET", "/models"),
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/"),
]
MANAGEMENT = [
    ("POST", "/v1/load_model"),
    ("POST", "/v1/unload_model"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
]
MANAGEMENT_READS = [("GET", "/is_sleeping"), ("GET", "/models/sse")]
NOWHERE = [
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "/Health"),
    ("GET", "//health"),
    ("GET", "/health/../v1/models"),
    ("GET", "/v1/chat/completions"),
    ("DELETE", "/v1/models"),
    ("PUT", "/v1/load_model"),
]
GUESSES = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer"},
    {"Authorization": "Basic key"},
    {"Authorization": "key"},
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    {"x-api-key": "k\xe9y"},
]


def body_of(path: str) -> object:
    if path == "/v1/completions":
        return {"prompt": "x"}
    if path.startswith("/models/"):
        return {"model": "hotswap/sums"}
    return chat_body() if path == "/v1/chat/completions" else b""


def knock(app: ASGIApp, method: str, path: str, headers: dict[str, str]) -> Exchange:
    return ask(app, method, path, body_of(path), headers)


@pytest.mark.parametrize(("method", "path"), [*INFERENCE, *MANAGEMENT, *MANAGEMENT_READS, *NOWHERE])
def test_without_a_key_nothing_is_to_be_learned(method: str, path: str) -> None:
    service = ScriptedService()
    app = app_of(service, api_keys=("key", "other"), admin_key="boss")
    for headers in GUESSES:
        exchange = knock(app, method, path, headers)
        assert exchange.status == 401, headers
        assert exchange.error["code"] == "invalid_api_key"
        assert exchange.error["type"] == "authentication_error"
        assert exchange.headers["www-authenticate"] == "Bearer"
    assert service.requests == []
    assert service.orders == []


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_health_needs_no_key(path: str) -> None:
    assert ask(app_of(api_keys=("key",)), "GET", path).status == 200


@pytest.mark.parametrize(("method", "path"), INFERENCE)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer key"},
        {"authorization": "bearer other"},
        {"x-api-key": "key"},
        {"x-api-key": "wrong", "Authorization": "Bearer key"},
        {"Authorization": "Bearer boss"},
    ],
)
def test_any_key_opens_inference(method: str, path: str, headers: dict[str, str]) -> None:
    app = app_of(api_keys=("key", "other"), admin_key="boss", dev_mode=False)
    assert knock(app, method, path, headers).status == 200


def test_a_key_may_hold_any_character() -> None:
    app = app_of(api_keys=("clé",))
    exchange = Exchange("GET", "/version")
    exchange.scope["headers"].append((b"x-api-key", "clé".encode()))
    assert anyio.run(exchange.run, app).status == 200


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
@pytest.mark.parametrize(
    ("api_keys", "headers", "status"),
    [
        (("key",), {"x-api-key": "key"}, 403),
        (("key",), {"x-api-key": "boss"}, 200),
        ((), {}, 401),
        ((), {"x-api-key": "wrong"}, 401),
        ((), {"x-api-key": "boss"}, 200),
    ],
)
def test_only_the_admin_key_opens_management(
    method: str, path: str, api_keys: tuple[str, ...], headers: dict[str, str], status: int
) -> None:
    service = ScriptedService()
    app = app_of(service, api_keys=api_keys, admin_key="boss", dev_mode=False)
    exchange = knock(app, method, path, headers)
    assert exchange.status == status
    assert bool(service.orders) == (status == 200)
    if status != 200:
        assert exchange.error["code"] in ("not_permitted", "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), [*MANAGEMENT, ("GET", "/is_sleeping")])
@pytest.mark.parametrize(("api_keys", "headers"), [((), {}), (("key",), {"x-api-key": "key"})])
def test_dev_mode_opens_management_to_who_may_infer(
    method: str, path: str, api_keys: tuple[str, ...], headers: dict[str, str]
) -> None:
    app = app_of(api_keys=api_keys, admin_key="boss", dev_mode=True)
    assert knock(app, method, path, headers).status == 200


@pytest.mark.parametrize(("method", "path"), [*MANAGEMENT, *MANAGEMENT_READS])
def test_management_does_not_exist_unless_it_was_asked_for(method: str, path: str) -> None:
    exchange = knock(app_of(dev_mode=False), method, path, {})
    assert exchange.status == 404
    assert exchange.error["code"] == "not_found"
    assert "--dev-mode or --admin-key" in exchange.error["message"]


@pytest.mark.parametrize(("method", "path"), MANAGEMENT_READS)
def test_what_only_reads_needs_the_admin_key_too(method: str, path: str) -> None:
    app = app_of(admin_key="boss", dev_mode=False)
    exchange = knock(app, method, path, {})
    assert (exchange.status, exchange.error["code"]) == (401, "invalid_api_key")


def test_other_unknown_routes_tell_nothing_of_management() -> None:
    app = app_of(dev_mode=False)
    assert knock(app, "GET", "/v1/nothing", {}).error["message"] == "there is no such route"


@pytest.mark.parametrize(
    ("bound", "origins", "host", "status"),
    [
        ("127.0.0.1", (), "localhost:8000", 200),
        ("127.0.0.1", (), "127.0.0.1:8000", 200),
        ("127.0.0.1", (), "[::1]:8000", 200),
        ("127.0.0.1", (), "LOCALHOST", 200),
        ("127.0.0.1", (), "evil.example", 403),
        ("127.0.0.1", (), "127.0.0.1.evil.example", 403),
        ("127.0.0.1", (), "localhost.evil.example:8000", 403),
        ("localhost", (), "evil.example", 403),
        ("::1", (), "evil.example", 403),
        ("127.0.0.1", (), "localhost.:8000", 200),
        ("127.0.0.1", (), "[::1]", 200),
        ("::1", (), "[::1]:8000", 200),
        ("127.0.0.1", (), "", 403),
        ("127.0.0.1", (), ":8000", 403),
        ("127.0.0.1", (), "localhost:80@evil.example", 403),
        ("127.0.0.1", (), "localhost@evil.example", 403),
        ("127.0.0.1", (), "localhost:", 403),
        ("127.0.0.1", (), "localhost:x", 403),
        ("127.0.0.1", (), "localhost:800000", 403),
        ("127.0.0.1", (), "localhost:80:80", 403),
        ("127.0.0.1", (), "localhost/:80", 403),
        ("127.0.0.1", (), "localhost, evil.example", 403),
        ("127.0.0.1", (), "[localhost]", 403),
        ("127.0.0.1", (), "[::1]evil.example", 403),
        ("127.0.0.1", (), "[::1", 403),
        ("127.0.0.1", (), "::1", 403),
        ("0.0.0.0", (), "", 200),
        ("127.0.0.2", (), "127.0.0.2:1", 200),
        ("127.0.0.1", ("https://chat.example",), "chat.example", 200),
        ("127.0.0.1", ("*",), "evil.example", 200),
        ("0.0.0.0", (), "my.server", 200),
    ],
)
def test_a_loopback_bind_answers_to_its_own_names_only(
    bound: str, origins: tuple[str, ...], host: str, status: int
) -> None:
    app = app_of(host=bound, cors_origins=origins)
    exchange = ask(app, "GET", "/v1/models", headers={"host": host})
    assert exchange.status == status
    if status == 403:
        assert exchange.error["code"] == "not_permitted"


@pytest.mark.parametrize(
    ("hosts", "status"),
    [([], 403), (["localhost", "evil.example"], 403), (["localhost", "localhost:80"], 200)],
)
def test_all_hosts_of_a_request_are_looked_at_and_there_must_be_one(
    hosts: list[str], status: int
) -> None:
    exchange = Exchange("GET", "/livez")
    exchange.scope["headers"] = [(b"host", host.encode()) for host in hosts]
    assert anyio.run(exchange.run, app_of(host="127.0.0.1")).status == status


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("DELETE", "/v1/responses/resp_x")]
)
def test_a_browser_may_ask_beforehand_without_a_key(method: str, path: str) -> None:
    app = app_of(api_keys=("key",), cors_origins=("https://chat.example",))
    preflight = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    exchange = ask(app, "OPTIONS", path, headers=preflight)
    assert exchange.status == 200
    assert exchange.headers["access-control-allow-origin"] == "https://chat.example"


def test_a_browser_can_read_a_refusal() -> None:
    app = app_of(api_keys=("key",), cors_origins=("https://chat.example",))
    exchange = ask(app, "GET", "/v1/models", headers={"Origin": "https://chat.example"})
    assert exchange.status == 401
    assert exchange.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-request-id" in exchange.headers


def test_a_foreign_page_is_not_allowed_anything() -> None:
    app = app_of(cors_origins=("https://chat.example",))
    exchange = ask(app, "GET", "/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in exchange.headers


def test_two_lengths_of_one_body_are_refused_and_the_connection_closed() -> None:
    headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    service = ScriptedService()
    exchange = ask(app_of(service), "POST", "/v1/chat/completions", chat_body(), headers)
    assert exchange.status == 400
    assert exchange.error["code"] == "invalid_request"
    assert exchange.headers["connection"] == "close"
    assert service.requests == []


def test_no_more_requests_are_in_hand_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BESIDE_THE_QUEUE", 3)
    settings = Settings(swap=SwapRules(max_queue=2))
    service = ScriptedService(admission=anyio.Event())
    app = app_module.create_app(service, settings, Problems())
    body = json.dumps(chat_body()).encode()

    async def status(path: str) -> int:
        return (await Exchange("GET", path).run(app)).status

    async def main() -> None:
        inside = [Exchange("POST", "/v1/chat/completions", body) for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for exchange in inside:
                tasks.start_soon(exchange.run, app)
            await service.until(lambda: service.running == 5)
            refused = await Exchange("GET", "/v1/models").run(app)
            assert refused.status == 429
            assert refused.error["code"] == "queue_full"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert await status("/livez") == 200
            assert service.admission is not None
            service.admission.set()
        assert {exchange.status for exchange in inside} == {200}
        assert await status("/v1/models") == 200

    anyio.run(main)
