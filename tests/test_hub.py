"""Through the real huggingface_hub against a Hub on loopback, in processes of their own: the
library reads its environment when it is imported."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest

from hotswap.errors import DownloadFailed
from hotswap.hub import Hub
from tests.fake_hub import COMMIT, FakeHub, serve
from tests.model_files import write_model

pytestmark = pytest.mark.e2e

DOWNLOADER = """
import json, shutil, sys, threading
from pathlib import Path
from types import SimpleNamespace
from hotswap.hub import Hub

usage = shutil.disk_usage

for line in sys.stdin:
    cache, revision, cancel_at, free_bytes = json.loads(line)
    disk = SimpleNamespace(free=free_bytes)
    shutil.disk_usage = usage if free_bytes is None else lambda path: disk
    hub = Hub(Path(cache))
    readings, cancelled = [], threading.Event()

    def report(stage, value):
        readings.append([stage, value])
        if cancel_at is not None and value >= cancel_at:
            cancelled.set()

    try:
        answer = {"path": str(hub.download("Qwen/Qwen3-0.6B", revision, report, cancelled))}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    here = [[model.repo_id, str(model.snapshot())] for model in hub.cached_models()]
    print(json.dumps(answer | {"readings": readings, "here": here}), flush=True)
"""


@dataclass
class Downloader:
    """A process that downloads ``Qwen/Qwen3-0.6B`` to a cache."""

    process: subprocess.Popen[str]
    cache: Path

    def download(
        self,
        revision: str | None = None,
        *,
        cancel_at: float | None = None,
        free_bytes: int | None = None,
    ) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = [str(self.cache), revision, cancel_at, free_bytes]
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def downloading(hub: FakeHub, cache: Path, **environ: str) -> Iterator[Downloader]:
    with subprocess.Popen(
        [sys.executable, "-c", DOWNLOADER],
        env=os.environ | hub.environ(cache) | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Downloader(process, cache)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    files = {
        "model.safetensors": "w" * 50_000,
        "pytorch_model.bin": "pickle",
        "modeling_custom.py": "import os",
        "consolidated.safetensors": "w" * 50_000,
        "README.md": "# a model",
        "chat_template.jinja": "{{ messages }}",
        "hotswap_config.yaml": "max_model_len: 7",
    }
    folder = write_model(tmp_path_factory.mktemp("served"), files=files)
    write_model(folder / "onnx")
    with serve(FakeHub(folder)) as hub:
        yield hub


@pytest.fixture(scope="module")
def process(
    served: FakeHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    """One for all tests that need nothing special in its environment: importing takes long."""
    timeouts = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with downloading(served, tmp_path_factory.mktemp("home"), **timeouts) as downloader:
        yield downloader.process


@pytest.fixture
def hub(served: FakeHub) -> FakeHub:
    """Without faults."""
    served.status = served.error_code = served.cut_at = None
    served.stalls = served.silent = served.corrupts = False
    served.elsewhere = None
    served.requests.clear()
    return served


@pytest.fixture
def downloader(process: subprocess.Popen[str], tmp_path: Path) -> Downloader:
    """With an empty cache."""
    return Downloader(process, tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_model_is_fetched_without_what_could_run_or_is_there_twice(
    downloader: Downloader,
) -> None:
    answer = downloader.download()
    assert {path.name for path in Path(answer["path"]).iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "chat_template.jinja",
        "hotswap_config.yaml",
    }
    assert answer["here"] == [["Qwen/Qwen3-0.6B", answer["path"]]]
    values = [value for _, value in answer["readings"]]
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_a_token_goes_along(hub: FakeHub, tmp_path: Path) -> None:
    with downloading(hub, tmp_path, HF_TOKEN="hf_secret") as downloader:
        downloader.download()
    assert hub.requests
    assert all(request.endswith("Bearer hf_secret") for request in hub.requests)


def test_a_second_download_fetches_no_file(hub: FakeHub, downloader: Downloader) -> None:
    downloader.download()
    hub.requests.clear()
    assert "path" in downloader.download()
    assert not [request for request in hub.requests if "/resolve/" in request]


@pytest.mark.usefixtures("hub")
def test_a_revision_is_asked_for_by_name(downloader: Downloader) -> None:
    assert downloader.download(COMMIT)["path"].endswith(COMMIT)
    refused = downloader.download("v9")
    assert refused["error"] == "ModelNotFound"
    assert "Qwen/Qwen3-0.6B@v9" in refused["message"]


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (404, "RepoNotFound", "ModelNotFound: There is no model Qwen/Qwen3-0.6B on the Hub"),
        (404, None, "ModelNotFound: There is no model Qwen/Qwen3-0.6B on the Hub"),
        # What the Hub says of a repository that does not exist to whoever has no token.
        (401, "RepoNotFound", "ModelNotFound: There is no model Qwen/Qwen3-0.6B on the Hub, or"),
        (401, None, "NotPermitted: The Hub does not let us have Qwen/Qwen3-0.6B: check HF_TOKEN"),
        (403, "GatedRepo", "NotPermitted: Qwen/Qwen3-0.6B is gated: accept its terms"),
        (403, None, "NotPermitted: The Hub does not let us have Qwen/Qwen3-0.6B: check HF_TOKEN"),
        (500, None, "HubUnavailable: The Hub answered 500"),
        (418, None, "DownloadFailed: The Hub answered 418"),
    ],
)
def test_a_refusal_is_one_clear_line(
    hub: FakeHub, downloader: Downloader, status: int, error_code: str | None, expected: str
) -> None:
    hub.status, hub.error_code = status, error_code
    answer = downloader.download()
    line = f"{answer['error']}: {answer['message']}"
    assert line.startswith(expected)
    assert "\n" not in line
    assert answer["here"] == []


@pytest.mark.parametrize(
    ("environ", "error", "message"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "HubUnavailable",
            "Cannot reach the Hub, and Qwen/Qwen3-0.6B is not in the local cache.",
        ),
        (
            {"HF_HUB_OFFLINE": "1"},
            "DownloadFailed",
            "HF_HUB_OFFLINE is set, and Qwen/Qwen3-0.6B is not in the local cache.",
        ),
    ],
)
def test_without_a_network_the_line_says_so(
    hub: FakeHub, tmp_path: Path, environ: dict[str, str], error: str, message: str
) -> None:
    with downloading(hub, tmp_path, **environ) as downloader:
        answer = downloader.download()
    assert answer["error"] == error
    assert answer["message"] == message


def test_a_hub_that_does_not_answer_is_given_up(hub: FakeHub, downloader: Downloader) -> None:
    hub.silent = True
    answer = downloader.download()
    assert answer["error"] == "HubUnavailable"
    assert "did not answer in time" in answer["message"]


@pytest.mark.parametrize("stalls", [False, True])
def test_a_download_that_breaks_off_or_stalls_is_taken_up_where_it_was(
    hub: FakeHub, downloader: Downloader, stalls: bool
) -> None:
    hub.cut_at, hub.stalls = 30_000, stalls
    answer = downloader.download()
    assert (Path(answer["path"]) / "model.safetensors").read_text() == "w" * 50_000
    values = [value for _, value in answer["readings"]]
    assert values == sorted(values)


@pytest.mark.usefixtures("hub")
def test_a_cancelled_download_stops_and_leaves_no_half_file(downloader: Downloader) -> None:
    answer = downloader.download(cancel_at=0.0)
    assert answer["error"] == "DownloadFailed"
    assert "cancelled" in answer["message"]
    assert not list(downloader.cache.rglob("*.incomplete"))


def test_what_is_not_what_the_hub_says_is_refused_and_fetched_again(
    hub: FakeHub, downloader: Downloader
) -> None:
    hub.corrupts = True
    answer = downloader.download()
    assert answer["error"] == "WrongDownload"
    assert "'model.safetensors' came otherwise" in answer["message"]
    assert not list(downloader.cache.rglob("model.safetensors"))
    hub.corrupts = False
    path = Path(downloader.download()["path"])
    assert (path / "model.safetensors").read_text() == "w" * 50_000


def test_a_token_goes_to_the_hub_alone(hub: FakeHub, tmp_path: Path) -> None:
    with serve(FakeHub(hub.folder)) as other:
        # By another name: for the library a host is its name, whatever the port.
        hub.elsewhere = other.url.replace("127.0.0.1", "localhost")
        with downloading(hub, tmp_path, HF_TOKEN="hf_secret") as downloader:
            assert "path" in downloader.download()
    assert [request for request in other.requests if "model.safetensors" in request]
    assert not [request for request in other.requests if "hf_secret" in request]
    assert all("hf_secret" in request for request in hub.requests)


def test_nothing_is_fetched_that_the_disk_has_no_room_for(
    hub: FakeHub, downloader: Downloader
) -> None:
    answer = downloader.download(free_bytes=1000)
    assert answer["error"] == "DiskFull"
    assert "disk space" in answer["message"]
    assert not [request for request in hub.requests if "/resolve/" in request]


def refused(raised: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a client is told when the library raises ``raised``."""

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(DownloadFailed) as caught:
        Hub(cache).download("org/m", None, lambda *_: None, threading.Event())
    return caught.value.message


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (PermissionError(13, "Permission denied", "/root/.cache/x"), "Permission denied"),
        (OSError(30, "cannot write /root/.cache/x"), "Read-only file system"),
        (FileNotFoundError("no /root/.cache/x"), "FileNotFoundError"),
        (RuntimeError("in /root/.cache/x"), "RuntimeError"),
    ],
)
def test_an_error_nobody_foresaw_names_no_path_but_in_the_log(
    raised: Exception,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = refused(raised, tmp_path, monkeypatch)
    assert message == f"Downloading org/m failed: {reason}."
    assert "/root/.cache/x" in caplog.text


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (httpx2.ConnectError("x"), "Cannot reach the Hub, and org/m is not in the local cache."),
        (httpx2.ReadTimeout("x"), "The Hub did not answer in time for org/m."),
        (OSError(errno.ENOSPC, "x"), "The disk is full; org/m was not downloaded."),
    ],
)
def test_a_known_cause_is_named(
    raised: Exception, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(raised, tmp_path, monkeypatch) == line
