"""The Hugging Face Hub: what of it is on this disk, and fetching more."""

from __future__ import annotations

import errno
import hashlib
import importlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The package loads its functions on first use, which costs half a second.
import huggingface_hub
from huggingface_hub import constants, errors

from hotswap.contracts.progress import Report
from hotswap.errors import (
    DiskFull,
    DownloadFailed,
    HotswapError,
    HubUnavailable,
    ModelNotFound,
    NotPermitted,
    WrongDownload,
)
from hotswap.files import content

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger(__name__)

# Never pickles, which run code when opened, and never Python.
_WANTED_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "hotswap_config.yaml",
)
# Mistral's repositories hold the weights a second time; folders hold other formats.
_UNWANTED_FILES = ("consolidated*.safetensors", "*/*")
_MODEL_FOLDER = "models--"
_MAX_REF_BYTES = 1024
_MIN_HASH = 7
"""Characters of a commit hash that name it, as in git."""
_HASHED_BYTES = 16 << 20
"""Read between two looks whether anybody still wants the download."""
_SPARE_BYTES = 256 * 1024 * 1024
"""Disk space that a download must leave free."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model repository in the local cache; some of its files may be missing."""

    repo_id: str
    folder: str

    def snapshot(self, revision: str | None = None) -> Path | None:
        """The directory of a branch, tag or commit; of the main branch without ``revision``,
        or of the newest commit here if that branch is not here."""
        try:
            if revision is None:
                return self._at(self._commit(constants.DEFAULT_REVISION)) or self._newest()
            return self._at(self._commit(revision)) or self._at(self._full_hash(revision))
        except OSError:  # not ours to read, or being deleted
            log.debug("cannot read the cache of %r", self.repo_id, exc_info=True)
            return None

    def _commit(self, ref: str) -> str | None:
        path = Path(self.folder, "refs", ref)
        # A revision comes from a client: it must not lead out of the folder.
        if ".." in path.parts or Path(ref).is_absolute():
            return None
        try:
            return content(path, _MAX_REF_BYTES).decode("ascii").strip()
        except (OSError, ValueError):
            return None

    def _full_hash(self, revision: str) -> str | None:
        if len(revision) < _MIN_HASH or not revision.isalnum():
            return None
        matching = [path.name for path in self._snapshots() if path.name.startswith(revision)]
        return matching[0] if len(matching) == 1 else None

    def _at(self, commit: str | None) -> Path | None:
        if not commit or "/" in commit:
            return None
        path = Path(self.folder, "snapshots", commit)
        return path if path.is_dir() else None

    def _newest(self) -> Path | None:
        return max(self._snapshots(), key=lambda path: path.stat().st_mtime_ns, default=None)

    def _snapshots(self) -> Iterator[Path]:
        folder = Path(self.folder, "snapshots")
        return filter(Path.is_dir, folder.iterdir() if folder.is_dir() else ())


def snapshot_files(model: CachedModel) -> tuple[str, ...]:
    """The directories whose change can change which snapshot ``model`` has."""
    return f"{model.folder}/refs", f"{model.folder}/snapshots"


class Hub:
    """The Hub as ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` define it."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self.cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)

    def cached_models(self) -> tuple[CachedModel, ...]:
        """The model repositories in the cache, by name. Files are not looked at.

        Walks the documented folder layout itself: `huggingface_hub.scan_cache_dir` reads every
        blob's size, 30 ms for 50 repositories where this takes 0.3, at every listing.
        """
        try:
            folders = sorted(os.listdir(self.cache_dir))
        except OSError:
            return ()
        return tuple(
            CachedModel(
                name.removeprefix(_MODEL_FOLDER).replace("--", "/"), f"{self.cache_dir}/{name}"
            )
            for name in folders
            if name.startswith(_MODEL_FOLDER)
        )

    def cached(self, repo_id: str) -> CachedModel:
        """The place of ``repo_id`` in the cache, whether anything is there or not."""
        folder = _MODEL_FOLDER + repo_id.replace("/", "--")
        return CachedModel(repo_id, f"{self.cache_dir}/{folder}")

    def download(
        self,
        repo_id: str,
        revision: str | None,
        report: Report,
        cancelled: threading.Event,
    ) -> Path:
        """Bring what serving needs of a repository to the cache. Blocks.

        Args:
            report: called from several threads, with the share of bytes that are here.
            cancelled: set by another thread to make this one raise `DownloadFailed` soon.

        Returns:
            The directory of the model.

        Raises:
            ModelNotFound: no such repository or revision, as far as we may see.
            NotPermitted: the Hub does not let us have it.
            DownloadFailed: unreachable, interrupted, not what it should be, or the disk is full.
        """
        progress = _Progress(report, cancelled)
        bar: Any = progress.bar
        try:
            info = huggingface_hub.HfApi().model_info(
                repo_id,
                revision=revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
            missing = self._missing(repo_id, info)
            progress.total_bytes = sum(missing.values())
            self._check_disk(repo_id, progress.total_bytes)
            path = huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=self.cache_dir,
                allow_patterns=list(_WANTED_FILES),
                ignore_patterns=list(_UNWANTED_FILES),
                tqdm_class=bar,
            )
            _check_hashes(Path(path), info, missing, cancelled)
        except _Cancelled:
            raise DownloadFailed(f"The download of {repo_id} was cancelled.") from None
        except HotswapError:
            raise
        except Exception as error:
            name = f"{repo_id}@{revision}" if revision else repo_id
            raise _explained(error, name) from None
        return Path(path)

    def _missing(self, repo_id: str, info: ModelInfo) -> Mapping[str, int]:
        """Bytes of each file that is to be fetched, by its name."""
        snapshot = Path(self.cached(repo_id).folder, "snapshots", info.sha or "")
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return {
            name: size
            for name, size in sizes.items()
            if _is_wanted(name) and not (snapshot / name).exists()
        }

    def _check_disk(self, repo_id: str, needed_bytes: int) -> None:
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache_dir).free
        if needed_bytes and needed_bytes + _SPARE_BYTES > free:
            raise DiskFull(
                f"{repo_id} needs {needed_bytes / 1e9:.1f} GB of disk space, "
                f"and {free / 1e9:.1f} GB are free."
            )


def _is_wanted(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return matches(_WANTED_FILES) and not matches(_UNWANTED_FILES)


def _check_hashes(
    directory: Path, info: ModelInfo, names: Collection[str], cancelled: threading.Event
) -> None:
    """Of the large files among ``names``; the library compares sizes only. One that is wrong is
    removed, so that the next download fetches it again.

    Raises:
        WrongDownload
    """
    for file in info.siblings or ():
        if file.rfilename not in names or file.lfs is None:
            continue
        here = directory / file.rfilename
        if _sha256(here, cancelled) != file.lfs.sha256:
            here.resolve().unlink()
            here.unlink(missing_ok=True)
            raise WrongDownload(
                f"{file.rfilename!r} came otherwise than the Hub says it is, and was removed."
            )


def _sha256(file: Path, cancelled: threading.Event) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_HASHED_BYTES):
            if cancelled.is_set():
                raise _Cancelled
            found.update(part)
    return found.hexdigest()


class _Cancelled(BaseException):
    """Nobody wants the download any more. Not an Exception: the library retries those."""


class _Progress:
    """Follows the bytes of all files, whichever of the library's threads receives them."""

    def __init__(self, report: Report, cancelled: threading.Event) -> None:
        self.total_bytes = 0
        self._report = report
        self._cancelled = cancelled
        self._received_bytes = 0.0
        self._lock = threading.Lock()

    def bar(self, *_: Any, unit: str = "it", **__: Any) -> _Bar:
        """Stands in for the class of progress bars that the library makes several of: one
        counts files, one bytes received, one bytes written."""
        return _Bar(self._advance if unit == "B" else self._check_cancelled)

    def _advance(self, received_bytes: float) -> None:
        self._check_cancelled(received_bytes)
        with self._lock:
            # Two bars count the same bytes, and a retry counts backwards.
            if received_bytes <= self._received_bytes or not self.total_bytes:
                return
            self._received_bytes = received_bytes
            share = min(1.0, received_bytes / self.total_bytes)
        self._report("downloading", share)

    def _check_cancelled(self, _: float) -> None:
        if self._cancelled.is_set():
            raise _Cancelled


class _Bar:
    """As much of tqdm as `snapshot_download` uses."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.n = 0.0
        self.total = 0.0
        self.format_dict: dict[str, Any] = {}
        self._advance = advance

    def update(self, count: float | None = 1) -> None:
        self.n += count or 0
        self._advance(self.n)

    def refresh(self) -> None:
        """There is nothing to draw."""

    def set_description(self, *_: Any, **__: Any) -> None:
        """There is nothing to draw."""

    set_description_str = set_postfix_str = close = set_description

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _of_http_client(name: str) -> tuple[type[Exception], ...]:
    """A class of errors of the library's HTTP client: httpx2 in its version 2, httpx before."""
    found = []
    for client in ("httpx2", "httpx"):
        with suppress(ModuleNotFoundError):
            found.append(getattr(importlib.import_module(client), name))
    return tuple(found)


_TRANSPORT_ERRORS = _of_http_client("HTTPError")
_TIMEOUTS = _of_http_client("TimeoutException")

_REASONS: tuple[tuple[type[Exception], type[HotswapError], str], ...] = (
    (
        errors.GatedRepoError,
        NotPermitted,
        "{name} is gated: accept its terms on the Hub and set HF_TOKEN.",
    ),
    (errors.RevisionNotFoundError, ModelNotFound, "There is no {name} on the Hub."),
    (
        errors.RepositoryNotFoundError,
        ModelNotFound,
        "There is no model {name} on the Hub, or it is private and HF_TOKEN is not set.",
    ),
    (errors.HFValidationError, ModelNotFound, "{name} cannot be the name of a Hub repository."),
    (
        errors.OfflineModeIsEnabled,
        DownloadFailed,
        "HF_HUB_OFFLINE is set, and {name} is not in the local cache.",
    ),
)
_STATUSES: dict[int, tuple[type[HotswapError], str]] = {
    401: (NotPermitted, "The Hub does not let us have {name}: check HF_TOKEN."),
    403: (NotPermitted, "The Hub does not let us have {name}: check HF_TOKEN."),
    404: (ModelNotFound, "There is no model {name} on the Hub."),
}


def _explained(error: Exception, name: str) -> HotswapError:
    """What went wrong, in one line for whoever wanted the model.

    An error's own text may name paths of this machine: it goes to the log only.
    """
    for cause in _causes(error):
        if known := _reading(cause):
            log.debug("downloading %r failed", name, exc_info=error)
            kind, text = known
            return kind(text.format(name=name))
    log.warning("downloading %r failed", name, exc_info=error)
    return DownloadFailed(f"Downloading {name} failed: {_public_reason(error)}.")


def _public_reason(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ if code is None else os.strerror(code)


def _reading(cause: BaseException) -> tuple[type[HotswapError], str] | None:
    for raised, kind, text in _REASONS:
        if isinstance(cause, raised):
            return kind, text
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        kind = HubUnavailable if status >= 500 else DownloadFailed
        return _STATUSES.get(status, (kind, f"The Hub answered {status} when asked for {{name}}."))
    if isinstance(cause, _TRANSPORT_ERRORS):
        if isinstance(cause, _TIMEOUTS):
            return HubUnavailable, "The Hub did not answer in time for {name}."
        return HubUnavailable, "Cannot reach the Hub, and {name} is not in the local cache."
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull, "The disk is full; {name} was not downloaded."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
