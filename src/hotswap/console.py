"""What the one who starts the server reads."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

from hotswap.config import Settings
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.progress import Progress
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.logs import printable

_SHOWN_MODELS = 8


def print_error(message: str) -> None:
    """One line on standard error, whatever ``message`` holds."""
    print(f"hotswap: error: {_one_line(message)}", file=sys.stderr)


def print_warning(message: str) -> None:
    """One line on standard error, whatever ``message`` holds."""
    print(f"hotswap: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(message: str) -> str:
    return printable(" ".join(message.splitlines()))


def _shown(model: str) -> str:
    return printable(model[:200])


def print_banner(
    settings: Settings, url: str, snapshot: SwapSnapshot, models: Sequence[ModelListing]
) -> None:
    """Say that the server is ready, on standard output."""
    print(banner(settings, url, snapshot, models), flush=True)


def banner(
    settings: Settings, url: str, snapshot: SwapSnapshot, models: Sequence[ModelListing]
) -> str:
    """What is served, where, and how to ask the first question.

    Args:
        url: of the server, without a path.
        models: what a request may name.
    """
    names = [model.id for model in models]
    loaded = snapshot.resident.id if snapshot.resident else None
    shown = ", ".join(map(_shown, names[:_SHOWN_MODELS])) or "none yet"
    if len(names) > _SHOWN_MODELS:
        shown += f" and {len(names) - _SHOWN_MODELS} more"
    lines = [
        "",
        f"  hotswap is ready at {url}",
        "",
        f"  models    {shown}",
        f"  loaded    {_shown(loaded or '') or 'none; the first request brings its model'}",
        f"  device    {_device(settings, snapshot)}",
        f"  swapping  {_swapping(settings)}",
        f"  manage    {_management(settings)}",
        "",
        "  A first request:",
        "",
        *_curl(url, loaded or (names[0] if names else "MODEL"), settings),
        "",
        f"  Chat clients take {url}/v1 as base URL. Ctrl-C stops the server.",
        "",
    ]
    return "\n".join(lines)


def _device(settings: Settings, snapshot: SwapSnapshot) -> str:
    details = snapshot.engine.details if snapshot.engine else {}
    device = details.get("device", settings.engine.device)
    return f"{device}, {details.get('dtype', settings.engine.dtype)}"


def _swapping(settings: Settings) -> str:
    if settings.swap.on_demand:
        return "a request may name any of these models"
    return "off; --enable-on-demand-loading lets a request name another model"


def _management(settings: Settings) -> str:
    if settings.server.dev_mode:
        return "open to whoever may send requests (dev mode)"
    if settings.server.admin_key is not None:
        return "open with the admin key"
    return "off; --dev-mode or --admin-key opens the management routes"


def _curl(url: str, model: str, settings: Settings) -> list[str]:
    content = "What is 45 + 27?" if model == "hotswap/sums" else "Hello!"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    lines = [f"    curl {url}/v1/chat/completions \\"]
    if settings.server.api_keys:
        lines.append("      -H 'Authorization: Bearer YOUR_API_KEY' \\")
    quoted = body.replace("'", "'\\''")
    return [*lines, "      -H 'Content-Type: application/json' \\", f"      -d '{quoted}'"]


class LoadProgress:
    """Shows how far loads are, inside its ``with`` block: on a terminal a bar that goes away in
    the end, elsewhere a line for each tenth and each stage.

    Args:
        stream: where to; standard error by default.
        on_terminal: overrides what the stream says of itself.
    """

    def __init__(self, stream: TextIO | None = None, *, on_terminal: bool | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._on_terminal = self._stream.isatty() if on_terminal is None else on_terminal
        self._model: str | None = None
        self._written: tuple[str, int] | None = None
        self._bar: Any = None
        self._until_exit = ExitStack()

    def __enter__(self) -> LoadProgress:
        if self._on_terminal:  # log lines above the bar, not into it
            self._until_exit.enter_context(logging_redirect_tqdm())
        self._until_exit.callback(self._finish)
        return self

    def __exit__(self, *_: object) -> None:
        self._until_exit.close()

    def show(self, progress: Progress) -> None:
        """Show a new reading; a reading of another model starts afresh."""
        if progress.model != self._model:
            self._finish()
            self._model = progress.model
        if self._on_terminal:
            self._draw(progress)
        else:
            self._write(progress)

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._model = self._written = self._bar = None

    def _draw(self, progress: Progress) -> None:
        text = f"loading {_shown(progress.model)}: {progress.stage}"
        if self._bar is None:
            self._bar = tqdm(
                desc=text,
                total=100,
                leave=False,
                file=self._stream,
                bar_format="{desc} {percentage:3.0f}% {bar} {elapsed}",
                # A terminal in a container may say that it is 0 wide, where tqdm draws nothing.
                ncols=shutil.get_terminal_size().columns,
            )
        self._bar.set_description_str(text, refresh=False)
        self._bar.n = round(100 * progress.value)
        self._bar.refresh()

    def _write(self, progress: Progress) -> None:
        percent = round(100 * progress.value)
        written = (progress.stage, percent // 10)
        if written == self._written:
            return
        self._written = written
        line = f"loading {_shown(progress.model)}: {progress.stage} {percent}%"
        print(line, file=self._stream, flush=True)
