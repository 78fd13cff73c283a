"""A Hugging Face Hub on loopback: as much of it as `huggingface_hub.snapshot_download` uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository, and what is wrong with it.

    Faults: ``status`` is the answer to every request (404, 401, 403, 500); ``error_code`` goes
    with it as the Hub's ``X-Error-Code``; ``silent`` gives no answer at all until ``release`` is
    set. The next safetensors file breaks off after ``cut_at`` bytes, or stops there for as long
    as it takes until ``release`` is set if ``stalls``. ``corrupts``: it comes with another last
    byte. ``elsewhere``: files are to be had at that address, as from a CDN.
    """

    folder: Path
    repo_id: str = "Qwen/Qwen3-0.6B"
    status: int | None = None
    error_code: str | None = None
    silent: bool = False
    cut_at: int | None = None
    stalls: bool = False
    corrupts: bool = False
    elsewhere: str | None = None
    release: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    """Method and path of each request, and the token it came with, if any."""
    url: str = ""

    def environ(self, home: Path) -> dict[str, str]:
        """What makes a process use this Hub and the cache in ``home``."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def described(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": _etag(content),
                **({"lfs": _pointer(content)} if name.endswith(".safetensors") else {}),
            }
            for name, content in self.files().items()
        ]
        return {"id": self.repo_id, "modelId": self.repo_id, "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
            for name, content in self.files().items()
        ]


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _pointer(content: bytes) -> dict[str, Any]:
    """What the Hub says of a file that is too large for git."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"sha256": sha256, "size": len(content), "pointerSize": 130}


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve ``hub`` on a free port; its ``url`` is set inside the block."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client left

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read ``FakeHub.requests`` instead."""

    def _answer(self) -> None:
        hub = self.served
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path} {self.headers.get('Authorization', '')}")
        if hub.silent:
            hub.release.wait()
        if hub.status is not None:
            headers = {"X-Error-Code": hub.error_code} if hub.error_code else {}
            self._send(hub.status, b"{}", headers)
            return
        api = f"/api/models/{hub.repo_id}"
        resolve = f"/{hub.repo_id}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._send_json(hub.described())
        elif path in (f"{api}/tree/main", f"{api}/tree/{COMMIT}"):
            self._send_json(hub.tree())
        elif path.startswith((resolve + "main/", resolve + f"{COMMIT}/")):
            self._send_file(path.removeprefix(resolve).partition("/")[2])
        elif path.startswith(api):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str) -> None:
        content = self.served.files().get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.served.elsewhere is not None:
            self._send(302, b"", {**headers, "Location": self.served.elsewhere + self.path})
            return
        start = 0
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, name)

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.served
        if name.endswith(".safetensors") and hub.corrupts:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if name.endswith(".safetensors") and hub.cut_at is not None:
            body, hub.cut_at = body[: hub.cut_at], None
            self.close_connection = True
            self.wfile.write(body)
            self.wfile.flush()
            if hub.stalls:
                hub.release.wait()
            return
        self.wfile.write(body)
