"""Which models exist, which names mean them, and what may be downloaded."""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from anyio import Lock, from_thread, lowlevel, to_thread

from hotswap.config import CatalogConfig, ConfigError, EngineConfig, apply_overrides
from hotswap.contracts.models import ModelFacts, ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.requests import RESIDENT_NAMES
from hotswap.errors import (
    CheckpointRefused,
    DiskFull,
    DownloadFailed,
    InvalidRequest,
    ModelNotFound,
    ModelUnusable,
    WrongDownload,
)
from hotswap.hub import CachedModel, Hub, snapshot_files
from hotswap.model_dir import CONFIG, SETTINGS, ModelDir, Remembered, files_of, look_at
from hotswap.model_settings import overrides_of

log = logging.getLogger(__name__)

LISTING_AGE_S = 0.1
"""How old a listing may be. Whoever asks twice in this time cannot tell which of two things came
first, the change or the answer; and however often clients ask, the disk is looked at ten times a
second at most. A name that nothing is known under is looked for at once."""

_REPOSITORY = re.compile(
    r"(?P<repo>(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95})(?:@(?P<revision>.{1,200}))?"
)


_OF_MERE_NAMES = frozenset({"aliases", "background"})
"""The settings of a name without files; all others are about a model's own answers."""


@dataclass(slots=True)
class _Entry:
    """A model and the names that mean it."""

    id: str
    directory: ModelDir | None
    """None: a Hub repository that is not here yet, or a mere name for background requests."""
    repo_id: str | None = None
    revision: str | None = None
    aliases: list[str] = field(default_factory=list)
    """Names that it was found or given under beside its id; those of ``settings`` come on top."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """From ``models:`` in the config file; of the aliases there, those that it got."""


class Catalog:
    """The models of ``--model``, ``--models-dir``, ``models:`` and the Hub's cache.

    What is on the disk is looked at anew, for a listing once it is ``listing_age_s`` old, so that
    a model put there while the server runs appears; directories that did not change are not read
    again. The disk is read in worker threads: a slow one holds up no answer.
    """

    def __init__(
        self,
        config: CatalogConfig,
        engine: EngineConfig,
        hub: Hub,
        listing_age_s: float = LISTING_AGE_S,
        startup_places: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            startup_places: As the catalogue before this one knew them.
        """
        self._config = config
        self._listing_age_s = listing_age_s
        self.startup_places = dict(startup_places or {})
        """Directories of start-up models, by what ``--model`` said, other than in the Hub's cache.
        What was there is never fetched: a repository of that name is somebody else's."""
        self._startup = _startup_id(config)  # once: every request asks, and a path is resolved
        self._engine = engine
        self._hub = hub
        self._look_at = Remembered(look_at, files_of)
        self._main_snapshot = Remembered[CachedModel, Path | None](
            CachedModel.snapshot, snapshot_files
        )
        self._lock = threading.Lock()
        self._listing = Lock()
        self._last = _Survey()
        self._complained: set[str] = set()

    @property
    def startup(self) -> str | None:
        """Id of the model that ``--model`` names."""
        return self._startup

    async def startup_spec(self) -> ModelSpec | None:
        """The model that ``--model`` names, for the one who started the server.

        Raises:
            ConfigError: it is not there, or it is nothing that can be served.
        """
        name = self._config.model
        if name is None or self.startup is None:
            return None
        try:
            return await self.resolve(self.startup)
        except (CheckpointRefused, ModelNotFound) as error:
            raise ConfigError(f"--model {name}: {error.message}") from None

    async def models(self) -> tuple[ModelSpec, ...]:
        """Every model there is, the start-up model first. Never waits for a load."""
        return (await self._recent()).specs

    def unusable(self) -> Mapping[str, str]:
        """Why what is in ``--models-dir`` or named in ``models:`` cannot be loaded, by name: of
        models whose settings are wrong, and of directories that hold none. As it was seen at the
        last look at all of them."""
        return self._last.faults

    async def _recent(self) -> _Survey:
        earliest = time.monotonic() - self._listing_age_s
        if self._last.begun < earliest:
            async with self._listing:
                if self._last.begun < earliest:  # else the one before us has looked for us too
                    await to_thread.run_sync(self._survey, earliest)
        return self._last

    async def resolve(self, name: str) -> ModelSpec:
        """The model that a name, alias, path or ``repo@revision`` means. No network.

        Raises:
            ModelNotFound: nothing is called that.
            ModelUnusable: what is called that holds no model, or settings for it are wrong.
        """
        return await to_thread.run_sync(self._resolve, name)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Any], source: str) -> ModelSpec:
        """``spec`` with a load request's settings on top.

        Raises:
            InvalidRequest: naming the key.
        """
        return apply_overrides(spec, overrides, source)

    async def fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        """Download what ``spec`` names; stops when cancelled.

        Returns:
            The spec with its directory, and with the settings that its own files bring.

        Raises:
            ModelNotFound, NotPermitted, DownloadFailed, CheckpointRefused
        """
        token = lowlevel.current_token()
        cancelled = threading.Event()

        def relay(stage: str, value: float) -> None:
            if not cancelled.is_set():
                from_thread.run_sync(report, stage, value, token=token)

        def download() -> ModelSpec:
            repo_id, revision = self._repository(spec.id)
            try:
                path = self._hub.download(repo_id, revision, relay, cancelled)
            except (DiskFull, WrongDownload):
                raise
            except (ModelNotFound, DownloadFailed) as error:
                hint = self._meant_here(spec.id)
                if not hint:
                    raise
                raise type(error)(f"{error.message} {hint}") from error
            return self._localized(spec, path)

        try:
            # A stalled connection may take a minute to notice that nobody waits any more.
            return await to_thread.run_sync(download, abandon_on_cancel=True)
        finally:
            cancelled.set()

    def _meant_here(self, name: str) -> str:
        """The models on the disk that ``name``, which is not there, may be a slip for."""
        survey = self._survey(time.monotonic())
        return _meant(name, [entry.id for entry in survey.entries if entry.directory])

    def _resolve(self, name: str) -> ModelSpec:
        entry = self._last.named(name)
        if entry is None or not self._is_current(entry):
            survey = self._survey(time.monotonic())
            entry = survey.named(name) or self._entry_of_revision(name, survey)
            entry = entry or survey.unusable(name)
            if entry is None:
                raise _unknown(name, survey)
        spec = self._spec(entry)
        if spec.fault is not None:
            raise ModelUnusable(spec.fault, model=spec.id)
        return spec

    def _is_current(self, entry: _Entry) -> bool:
        """Whether nothing about ``entry`` has changed on disk. Every request asks for its model,
        and looking at 50 of them takes 2 ms."""
        directory = entry.directory
        if directory is None and entry.repo_id is None:
            return True  # there is nothing on the disk that a mere name could mean
        if directory is None or self._look_at(str(directory.path)) is not directory:
            return False
        if entry.repo_id is None or entry.revision is not None:
            return True
        return self._main_snapshot(self._hub.cached(entry.repo_id)) == directory.path

    def _entry_of_revision(self, name: str, survey: _Survey) -> _Entry | None:
        """A repository, with or without revision, that is in the cache or may be fetched."""
        written = _REPOSITORY.fullmatch(name)
        if written is None:
            return None
        repo_id, revision = written["repo"], written["revision"]
        allowed = any(fnmatchcase(repo_id, glob) for glob in self._config.allow_download)
        directory = None
        if allowed or self._config.scan_hub_cache:
            directory = self._cached(repo_id, revision)
        if directory is None and not allowed:
            return None
        if directory is not None and (known := survey.at(directory)):
            return known
        settings = self._config.models.get(name, {})
        return _Entry(name, directory, repo_id, revision, settings=settings)

    def _repository(self, id: str) -> tuple[str, str | None]:
        survey = self._survey(time.monotonic())
        entry = survey.named(id) or self._entry_of_revision(id, survey)
        if entry is None or entry.repo_id is None:
            raise _unknown(id, survey)
        return entry.repo_id, entry.revision

    def _localized(self, spec: ModelSpec, path: Path) -> ModelSpec:
        local = self._resolve(spec.id)
        if local.path is None:
            directory = self._look_at(str(path))
            defect = directory.defect if directory else None
            raise CheckpointRefused(_no_model(spec.id, defect or f"{CONFIG} is missing"))
        for source, settings in overrides_of(spec, "request", "uploaded").items():
            local = apply_overrides(local, settings, source)
        return local

    def _spec(self, entry: _Entry) -> ModelSpec:
        """The settings of ``entry``, layer upon layer. One with a mistake in it is left out, and
        the mistake told as the model's fault."""
        directory = entry.directory
        spec = ModelSpec(
            id=entry.id,
            path=directory.path if directory else None,
            task=directory.task if directory else "generate",
            revision=entry.revision,
            aliases=tuple(entry.aliases),
            engine=self._flags_for(entry),
            max_position_embeddings=directory.max_position_embeddings if directory else None,
            created_unix=directory.created_unix if directory else 0,
            facts=directory.facts if directory else ModelFacts(),
        )
        if directory is not None:
            spec = replace(spec, fault=_fault(entry.id, directory))
            spec = _laid_over(spec, directory.settings, "model_dir")
        settings = {key: value for key, value in entry.settings.items() if key != "path"}
        return _laid_over(spec, settings, "config_file")

    def _flags_for(self, entry: _Entry) -> EngineConfig:
        """The start-up flags as far as they concern a model: those that were chosen to fit
        ``--model`` must not keep the others from loading."""
        if entry.id == self.startup:
            return self._engine
        asked = self._engine.max_model_len
        own = entry.directory.max_position_embeddings if entry.directory else None
        length = asked if asked is None or own is None else min(asked, own)
        return replace(self._engine, max_model_len=length, chat_template=None)

    def _survey(self, earliest: float) -> _Survey:
        """What is there, looked at no earlier than ``earliest``, a monotonic time."""
        with self._lock:
            if self._last.begun < earliest:
                self._last = self._look_around()
            return self._last

    def _look_around(self) -> _Survey:
        survey = _Survey(time.monotonic())
        in_dirs = list(self._in_models_dirs())
        in_cache = list(self._in_hub_cache())
        self._add_startup(survey, dict(reversed(in_dirs)))
        local = {name for name, _ in in_dirs + in_cache}
        for name, settings in self._config.models.items():
            self._add_declared(survey, name, settings, local)
        for name, directory in in_dirs:
            survey.add(name, directory)
        for name, directory in in_cache:
            survey.add(name, directory, repo_id=name)
        self._add_mere_names(survey)
        # Last: a model's own name comes before any alias, wherever the model was found.
        self._give_aliases(survey)
        survey.specs = tuple(self._spec(entry) for entry in survey.entries)
        # The Hub's cache is everybody's: much of it is for something else.
        put_here = (self._spec(entry) for entry in survey.without_model() if not entry.repo_id)
        survey.faults = {
            spec.id: spec.fault for spec in (*survey.specs, *put_here) if spec.fault is not None
        }
        self._complain_of_faults(survey)
        self._complain_of_ids(survey, in_dirs + in_cache)
        return survey

    def _complain_of_faults(self, survey: _Survey) -> None:
        """Each when it comes. At the start that of the start-up model is no warning but the end."""
        known, is_first = self._last.faults, self._last.begun == -math.inf
        for id, fault in survey.faults.items():
            if fault != known.get(id) and not (is_first and id == self.startup):
                log.warning("%s", fault)

    def _complain_of_ids(self, survey: _Survey, local: Sequence[tuple[str, ModelDir]]) -> None:
        for entry in survey.entries:
            if entry.id in RESIDENT_NAMES:
                self._complain(
                    f"a model is called {entry.id!r}, and a request for that name gets whichever "
                    "model is loaded: give it another name"
                )
        first = self._config.served_model_names[:1]
        for name, directory in local:
            owner = survey.named(name) if name in first else None
            if owner is not None and not directory.defect and survey.at(directory) is not owner:
                self._complain(
                    f"--served-model-name {name} is also the name of another model, "
                    "which cannot be asked for"
                )

    def _add_mere_names(self, survey: _Survey) -> None:
        for name, settings in self._config.models.items():
            if survey.named(name) is None and _is_mere_name(name, settings):
                survey.put(_Entry(name, None))
                if idle := sorted(settings.keys() - _OF_MERE_NAMES):
                    self._complain_of_settings(
                        name, f"{', '.join(idle)} has no effect on a name without files"
                    )

    def _give_aliases(self, survey: _Survey) -> None:
        """Those of the start-up model first, then those of ``models:`` in their order."""
        startup = survey.named(self.startup) if self.startup is not None else None
        if startup is not None:
            asked = self._config.served_model_names[1:]
            startup.aliases[:0] = self._granted(survey, startup, asked)
        for name, settings in self._config.models.items():
            entry = survey.named(name) or survey.unusable(name)
            if entry is None:
                self._complain_of_settings(name, "there is no such model here")
                continue
            given = dict(settings)
            if "aliases" in settings:
                former = entry.settings.get("aliases", ())
                given["aliases"] = [*former, *self._granted(survey, entry, settings["aliases"])]
            entry.settings = {**entry.settings, **given}

    def _granted(self, survey: _Survey, entry: _Entry, aliases: Sequence[str]) -> list[str]:
        """The aliases that ``entry`` gets: not those that another model has."""
        granted = []
        for alias in dict.fromkeys(aliases):
            owner = survey.give(alias, entry)
            if owner is not entry:
                kind = "name" if survey.is_own_name(alias) else "alias"
                self._complain(
                    f"the alias {alias!r} of {entry.id!r} is left out: "
                    f"it is the {kind} of {owner.id!r}"
                )
            elif alias not in (entry.id, *entry.aliases):
                granted.append(alias)
        return granted

    def _complain_of_settings(self, name: str, reason: str) -> None:
        self._complain(f"`models:` has settings for {name!r}, and {reason}")

    def _complain(self, about: str) -> None:
        """Once, although the disk is looked at again and again: what is missing may be put there
        later."""
        if about not in self._complained:
            self._complained.add(about)
            log.warning("%s", about)

    def _add_startup(self, survey: _Survey, in_dirs: Mapping[str, ModelDir]) -> None:
        name, id = self._config.model, self.startup
        if name is None or id is None:
            return
        entry, own = _Entry(id, None), id
        path = Path(name).expanduser()
        written = _REPOSITORY.fullmatch(name)
        if _is_path(name) or written is None or os.path.lexists(path / CONFIG):
            entry.directory = self._look_at(str(path)) or _nothing_at(path, name)
        elif name in in_dirs:
            entry.directory = in_dirs[name]
            own = name
        elif os.path.exists(path):  # typed without "./"; the Hub is not asked
            entry.directory = self._look_at(str(path)) or _nothing_at(path, name)
        elif (place := self.startup_places.get(name)) is not None:
            entry.directory = self._look_at(place) or _gone(Path(place))
            own = name
        else:
            entry.repo_id, entry.revision = written["repo"], written["revision"]
            entry.directory = self._cached(entry.repo_id, entry.revision)
            own = name
        if entry.repo_id is None and entry.directory is not None:
            self.startup_places[name] = str(entry.directory.path)
        entry.aliases = [own] if own != id else []
        survey.put(entry)

    def _add_declared(
        self, survey: _Survey, name: str, settings: Mapping[str, Any], local: set[str]
    ) -> None:
        """A model of the config file's ``models:`` that is nowhere else."""
        where = settings.get("path", name)
        if "path" not in settings and (name in local or survey.named(name)):
            return
        directory = self._look_at(str(Path(where).expanduser()))
        written = _REPOSITORY.fullmatch(where)
        if directory is None and written is not None:
            directory = self._cached(written["repo"], written["revision"])
        if directory is not None:
            survey.add(_id_of(name), directory)

    def _in_models_dirs(self) -> Iterator[tuple[str, ModelDir]]:
        for folder in map(str, self._config.models_dirs):
            for name in _visible(folder):
                if os.path.lexists(f"{folder}/{name}/{CONFIG}"):
                    yield from self._found(name, f"{folder}/{name}")
                    continue
                for inner in _visible(f"{folder}/{name}"):
                    if os.path.lexists(f"{folder}/{name}/{inner}/{CONFIG}"):
                        yield from self._found(f"{name}/{inner}", f"{folder}/{name}/{inner}")

    def _in_hub_cache(self) -> Iterator[tuple[str, ModelDir]]:
        if not self._config.scan_hub_cache:
            return
        for model in self._hub.cached_models():
            path = self._main_snapshot(model)
            if path is not None:
                yield from self._found(model.repo_id, str(path))

    def _found(self, name: str, path: str) -> Iterator[tuple[str, ModelDir]]:
        if (directory := self._look_at(path)) is not None:
            yield name, directory

    def _cached(self, repo_id: str, revision: str | None) -> ModelDir | None:
        """The directory of a repository in the cache, if all of it is there."""
        path = self._hub.cached(repo_id).snapshot(revision)
        directory = self._look_at(str(path)) if path else None
        return directory if directory and not directory.defect else None


class _Survey:
    """What was found, in order; each directory once, each name meaning the first that had it, and
    an alias only where it is nobody's name."""

    def __init__(self, begun: float = -math.inf) -> None:
        self.begun = begun
        """Monotonic time from which on everything was looked at."""
        self.specs: tuple[ModelSpec, ...] = ()
        """What is listed."""
        self.faults: Mapping[str, str] = {}
        """See `Catalog.unusable`."""
        self.entries: list[_Entry] = []
        self._names: dict[str, _Entry] = {}
        self._aliases: dict[str, _Entry] = {}
        self._places: dict[tuple[int, int], _Entry] = {}
        self._without_model: dict[str, _Entry] = {}
        """Directories that hold no model that can be served, by name."""

    def put(self, entry: _Entry) -> None:
        self.entries.append(entry)
        for name in (entry.id, *entry.aliases):
            self._names.setdefault(name, entry)
        if entry.directory is not None:
            self._places.setdefault(entry.directory.identity, entry)

    def add(self, name: str, directory: ModelDir, repo_id: str | None = None) -> None:
        if name in self._names:
            return
        if directory.defect:
            self._without_model.setdefault(name, _Entry(name, directory, repo_id))
        elif known := self._places.get(directory.identity):
            known.aliases.append(name)
            self._names[name] = known
        else:
            self.put(_Entry(name, directory, repo_id))

    def give(self, alias: str, entry: _Entry) -> _Entry:
        """Who has that name now: ``entry``, unless another one had it before."""
        return self._names.get(alias) or self._aliases.setdefault(alias, entry)

    def is_own_name(self, name: str) -> bool:
        return name in self._names

    def named(self, name: str) -> _Entry | None:
        known = self._names.get(name) or self._aliases.get(name)
        place = None if known else _identity_at(name)
        return self._places.get(place) if place else known

    def at(self, directory: ModelDir) -> _Entry | None:
        return self._places.get(directory.identity)

    def without_model(self) -> list[_Entry]:
        """Directories that hold none, unless a model elsewhere has their name."""
        return [entry for name, entry in self._without_model.items() if name not in self._names]

    def unusable(self, name: str) -> _Entry | None:
        """Such a directory, by its name or path."""
        place = _identity_at(name)
        for entry in self.without_model():
            assert entry.directory is not None
            if name == entry.id or place == entry.directory.identity:
                return entry
        return None


def _laid_over(spec: ModelSpec, settings: Mapping[str, Any], source: str) -> ModelSpec:
    try:
        return apply_overrides(spec, settings, source) if settings else spec
    except InvalidRequest as error:
        where = SETTINGS if source == "model_dir" else "`models:` of the config file"
        return replace(spec, fault=spec.fault or _wrong_settings(spec.id, error, f" in {where}"))


def _fault(id: str, directory: ModelDir) -> str | None:
    """What keeps ``directory`` from being served, whatever is laid over its settings."""
    if directory.defect:
        return _no_model(id, directory.defect)
    error = directory.settings_error
    return None if error is None else _wrong_settings(id, error)


def _no_model(id: str, defect: str) -> str:
    return f"{id[:200]!r} cannot be served: {defect}."


def _wrong_settings(id: str, error: InvalidRequest, where: str = "") -> str:
    return f"{id[:200]!r} has wrong settings{where}: {error.message}"


def _is_mere_name(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether an entry of ``models:`` that no files belong to is meant so: a name under which
    background requests come."""
    return bool(settings.get("background")) and "path" not in settings and not _is_path(name)


def _is_path(name: str) -> bool:
    """Whether a name is written as a path, which no repository's name is."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def _identity_at(name: str) -> tuple[int, int] | None:
    """Device and inode of what a name that is written as a path means; None: nothing."""
    if not _is_path(name):
        return None
    try:
        status = os.stat(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):
        return None
    return status.st_dev, status.st_ino


def _id_of(name: str) -> str:
    """The id of a model given by ``name``: for a path, the directory's own name."""
    if _is_path(name) or not _REPOSITORY.fullmatch(name):
        return Path(name).expanduser().resolve().name or name
    return name


def _startup_id(config: CatalogConfig) -> str | None:
    if config.model is None:
        return None
    return config.served_model_names[0] if config.served_model_names else _id_of(config.model)


def _nothing_at(path: Path, name: str) -> ModelDir:
    """The directory that ``name`` should mean, and why it does not."""
    if os.path.isdir(path):
        defect = "it cannot be read"
    elif os.path.exists(path):
        defect = "it is a file, not a directory"
    elif _is_path(name):
        defect = "there is no such directory"
    else:
        defect = "it is neither a directory nor a repository id such as org/name"
    return ModelDir(path=path, identity=(0, 0), defect=defect)


def _gone(path: Path) -> ModelDir:
    return ModelDir(path=path, identity=(0, 0), defect="its directory is gone")


def _visible(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _unknown(name: str, survey: _Survey) -> ModelNotFound:
    hint = _meant(name, [entry.id for entry in survey.entries])
    return ModelNotFound(f"The model {name[:200]!r} does not exist.", hint=hint)


def _meant(name: str, ids: Sequence[str]) -> str:
    close = _near(name[:200], ids)
    return f"Did you mean {' or '.join(close)}?" if close else ""


_NEAR_WHOLE = 0.8
"""How alike two names with their organisations must be: those of one organisation begin alike."""


def _near(name: str, ids: Sequence[str]) -> list[str]:
    """The ids that ``name`` may be a slip for, whole or without the organisation, and without a tag
    such as Ollama's ``:latest``; three at most."""
    whole = {id.casefold(): id for id in reversed(ids)}
    last = {id.rpartition("/")[2]: whole[id] for id in whole}
    name = name.casefold()
    if name in whole:
        return [whole[name]]
    name = name.partition(":")[0] or name
    if name in whole:
        return [whole[name]]
    near = [whole[one] for one in difflib.get_close_matches(name, whole, cutoff=_NEAR_WHOLE)]
    near += [last[one] for one in difflib.get_close_matches(name.rpartition("/")[2], last)]
    return list(dict.fromkeys(near))[:3]
