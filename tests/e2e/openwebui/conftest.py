"""Open WebUI from PyPI in front of `hotswap demo`, and a browser in front of that.

`make e2e` makes the environment; HOTSWAP_OPEN_WEBUI names its `open-webui` command, CHROMIUM the
browser.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.openwebui import overheard
from tests.e2e.openwebui.overheard import Overheard
from tests.e2e.openwebui.stories import STORIES
from tests.e2e.openwebui.told import TEMPLATE, write_told
from tests.e2e.openwebui.webui import WebUI
from tests.e2e.served import Server, serving

_START_S = 180.0
_ENDLESS_TOKENS = 3_000
"""Of prompt and answer: some seconds, and the titles and tags that it is asked for end as well."""
_TOOLS_TOKENS = 10_000
"""What some thousands of tokens of tool definitions leave room in, for an answer."""
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_NO_NETWORK = {
    "OFFLINE_MODE": "True",
    "HF_HUB_OFFLINE": "1",
    "ENABLE_VERSION_UPDATE_CHECK": "False",
    "DO_NOT_TRACK": "true",
    "SCARF_NO_ANALYTICS": "true",
    "ANONYMIZED_TELEMETRY": "false",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ENABLE_COMMUNITY_SHARING": "false",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "openwebui" in item.path.parts:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models: ``tiny-a`` goes on for `_ENDLESS_TOKENS` whatever it is asked,
    ``tiny-b`` reads of tools before it does, ``told`` answers what `STORIES` tell it to, and
    ``broken`` has weights that are cut short."""
    from bench.checkpoints import checkpoint

    models = tmp_path_factory.mktemp("models")
    endless = checkpoint(models, "tiny", "a")
    checkpoint(models, "tiny", "b")
    told = write_told(models / "told", endless, STORIES)
    weights = shutil.copytree(told, models / "broken") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return models


@pytest.fixture(scope="session")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Overheard:
    file = tmp_path_factory.mktemp("heard") / "exchanges"
    file.touch()
    return Overheard(file)


@pytest.fixture(scope="session")
def server(
    models: Path, heard: Overheard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    template = home / "tools.jinja"
    template.write_text(TEMPLATE)
    settings = {
        "tiny-a": {"max_model_len": _ENDLESS_TOKENS},
        "tiny-b": {"max_model_len": _TOOLS_TOKENS, "chat_template": str(template)},
    }
    config = home / "hotswap.yaml"
    config.write_text(json.dumps({"models": settings}))  # which is YAML, too
    words = ("demo", "--models-dir", str(models), "--config", str(config))
    launcher = (sys.executable, overheard.__file__, str(heard.file))
    with serving(*words, home=home, launcher=launcher) as server:
        yield server


@pytest.fixture(scope="session")
def webui(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. Connected to the server as llama.cpp and as Ollama."""
    port, home = _free_port(), tmp_path_factory.mktemp("webui")
    command = os.environ.get("HOTSWAP_OPEN_WEBUI", ".venv-openwebui/bin/open-webui")
    environment = {
        **os.environ,
        **_NO_NETWORK,
        "DATA_DIR": str(home),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "e2e",
        "OPENAI_API_BASE_URLS": f"{server.url}/v1",
        "OPENAI_API_KEYS": "none",
        "OPENAI_API_CONFIGS": '{"0": {"provider": "llama.cpp"}}',
        "ENABLE_OLLAMA_API": "True",
        "OLLAMA_BASE_URLS": server.url,
        "OLLAMA_API_CONFIGS": '{"0": {"prefix_id": "ollama"}}',
        "RAG_OPENAI_API_BASE_URL": f"{server.url}/v1",
        "RAG_OPENAI_API_KEY": "none",
    }
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, home / "log")
            yield address
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "no browser: apt-get install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_QUIET))
        yield browser
        browser.close()


@pytest.fixture
def ui(
    browser: Any, webui: str, server: Server, heard: Overheard, request: pytest.FixtureRequest
) -> Iterator[WebUI]:
    """The page, with a new chat; a screenshot is left in ``.e2e/`` however the test ends, and what
    the page complained of."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.route("**/*", _only_loopback)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda failed: complaints.append(f"{failed.url} {failed.failure}"))
    shots = Path(".e2e")
    shots.mkdir(exist_ok=True)
    try:
        yield WebUI.opened(page, webui, server, heard)
    finally:
        page.screenshot(path=shots / f"{request.node.name}.png")
        (shots / f"{request.node.name}.txt").write_text("".join(f"{one}\n" for one in complaints))
        context.close()


def _only_loopback(route: Any) -> None:
    url = route.request.url
    if url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        route.continue_()
    else:
        route.abort()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        try:
            if httpx2.get(f"{address}/health").status_code == 200:
                return
        except httpx2.TransportError:
            process.poll()
