"""The settings tree: frozen, read once from flags, environment and a YAML file."""

from __future__ import annotations

import ipaddress
import os
import resource
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import hotswap
from hotswap import demo
from hotswap.contracts.models import EngineConfig, ModelSpec
from hotswap.contracts.requests import RESIDENT_NAMES
from hotswap.errors import InvalidRequest
from hotswap.model_settings import apply_overrides
from hotswap.options import (
    BY_KEY,
    OPTIONS,
    ConfigError,
    Option,
    command_line_parser,
    default_text,
    markdown_table,
    nearest,
    with_negatives,
)
from hotswap.yaml_text import parse_yaml

__all__ = [
    "CatalogConfig",
    "ConfigError",
    "EngineConfig",
    "ServerConfig",
    "Settings",
    "SwapRules",
    "apply_overrides",
    "check",
    "is_loopback",
    "listening_on",
    "load_settings",
    "parse_yaml",
    "settings_table",
    "settle_files",
    "settle_threads",
    "warnings_about",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    cors_origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_key: str | None = field(default=None, repr=False)
    dev_mode: bool = False
    keepalive_s: float = 10.0
    """How long a streaming request is held before its 200, and the pause between comments."""
    hang_timeout_s: float = 60.0
    """With work, and without a finished step for this long, the engine hangs."""
    no_self_restart: bool = False
    """Exit where the server would start itself again."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRules:
    """When the resident model changes, and who waits how long."""

    on_demand: bool = False
    drain_timeout_s: float = 300.0
    swap_timeout_s: float = 280.0
    """How long a request waits for its model. Open WebUI gives up after 300 s."""
    max_queue: int = 256
    patience_s: float = 1.0
    """How long a busy model still takes requests after another model's first waiter came."""
    max_wait_s: float = 60.0
    """After waiting this long a request is no longer passed by later ones of another model."""
    idle_timeout_s: float | None = None
    """None: a model stays until another one is wanted."""
    park_memory: int | None = None
    """Bytes of host memory for models that left the device; None: a share of what is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogConfig:
    """Which models there are."""

    model: str | None = None
    served_model_names: tuple[str, ...] = ()
    models_dirs: tuple[Path, ...] = ()
    allow_download: tuple[str, ...] = ()
    scan_hub_cache: bool = True
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per model: ``path`` (a directory or Hub repository), aliases, engine settings, request
    defaults, ``ttl_s``, ``pin``, ``background`` and ``show_loading``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    server: ServerConfig = ServerConfig()
    swap: SwapRules = SwapRules()
    catalog: CatalogConfig = CatalogConfig()
    engine: EngineConfig = field(default_factory=EngineConfig)


def load_settings(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that a command line, the environment and the config file named there ask for.

    A flag beats the environment, which beats the file, which beats the default.

    Args:
        argv: the words after the command's name.

    Raises:
        ConfigError: with one clear line.
        SystemExit: after printing, for --help and --version.
    """
    command, flags = _from_command_line(argv)
    environment = _from_environment(environ)
    file, models = _from_file(flags.get("config") or environment.get("config"))
    preset = _DEMO if command == "demo" else {}
    values = {**preset, **file, **environment, **flags}
    if command == "demo":  # whoever shows it other models still wants its own
        bundled = str(demo.MODELS_DIR)
        values["catalog.models_dirs"] = (*values.get("catalog.models_dirs", ()), bundled)
    settings = _assemble(values, models)
    check(settings)
    if command == "demo":
        _check_demo(values["catalog.model"], values["catalog.models_dirs"])
    return settings


def listening_on(settings: Settings, address: str) -> Settings:
    """The settings of a server whose listening socket was bound by somebody else: who can reach it
    is told by the socket's own address, where that is open to more than ``--host``.

    Raises:
        ConfigError: what is asked for is too much for such an address.
    """
    server = settings.server
    if is_loopback(address) or not is_loopback(server.host):
        return settings
    opened = replace(settings, server=replace(server, host=address))
    check(opened)
    return opened


def settle_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads sleep when there is nothing to do for a while, oneDNN forget, and torch
    compile nothing. To be called before torch is imported.

    Threads that spin for ever take the core that the event loop or another process needs: with
    one busy process beside it, a demo model fell from 180-270 to 20-46 tokens/s on two cores.
    Threads that sleep at once are woken for every operation: 65 ms instead of 48 ms for a step of
    a 0.6B model. So they spin for as long as the pause between two operations of a step.

    oneDNN keeps what it has compiled for the last 1,024 shapes, and prompts of every length are
    shapes of their own: 400 prompts of 60 to 140 tokens left 71 MB behind, and 35 MB with
    room for 32.

    Some of transformers' code asks torch to compile it when it first runs: BitNet's needs a C++
    compiler for that, and took a model of 100 KB 76 s on two busy cores.
    """
    environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", "10000")


_FILES = 1 << 16


def settle_files() -> None:
    """Let the process have as many files open as it may. Connections are files: where the usual
    1,024 are the limit, a thousand idle clients keep a model's files from being read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def warnings_about(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What the operator should know before the server takes requests."""
    known = {option.env for option in OPTIONS}
    found = [
        f"{name} is ignored: there is no such setting.{nearest(name, known)}"
        for name in sorted(environ)
        if name.startswith("HOTSWAP_") and name not in known
    ]
    server = settings.server
    if not server.api_keys and not is_loopback(server.host):
        found.append(
            f"anybody who can reach {server.host} may use this server: "
            "give --api-key to require one"
        )
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: localhost, or an address such as 127.0.0.1
    or [::1]."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def settings_table() -> str:
    """The table of all settings in Markdown."""
    return markdown_table(_default_texts())


_DEMO: Mapping[str, Any] = {
    "catalog.model": "hotswap/sums",
    "catalog.scan_hub_cache": False,
    "swap.on_demand": True,
    "server.dev_mode": True,
}


def _check_demo(model: str, folders: Sequence[str]) -> None:
    """Raises: ConfigError: the model to begin with is neither in such a folder nor a directory of
    its own. A demo needs no network, and a slip in a name is not to become a search on the Hub."""
    places = (os.path.join(folder, model, "config.json") for folder in ("", *folders))
    if not any(os.path.exists(os.path.expanduser(place)) for place in places):
        raise ConfigError(
            f"the demo has no model {model!r}: it serves {' and '.join(demo.NAMES)}, what is in "
            f"--models-dir, and a directory of its own; `hotswap --model {model}` serves any other"
        )


_COMMANDS = ("serve", "demo")


def _from_command_line(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command, empty if none is given, and the settings."""
    parser = command_line_parser(hotswap.__version__, _default_texts())
    # Intermixed: the command may come after flags, and the model after more of them.
    parsed, unknown = parser.parse_known_intermixed_args(with_negatives(argv))
    given = vars(parsed)
    command, model = _command_and_model(given.pop("words"), unknown)
    if model is not None:
        if given["model"] is not None:
            raise ConfigError(f"two models are given: {model} and --model {given['model']}")
        given["model"] = model
    return command, {
        option.target: _read(option, given[option.key], f"--{option.flag}")
        for option in OPTIONS
        if given[option.key] is not None
    }


def _command_and_model(words: list[str], unknown: Sequence[str]) -> tuple[str, str | None]:
    """What the words that are no flags say: ``demo``, ``serve``, ``serve MODEL`` or nothing."""
    flags = {f"--{name}" for option in OPTIONS for name in (option.flag, option.also) if name}
    for word in unknown:
        hint = nearest(word.partition("=")[0], flags)
        raise ConfigError(f"there is no option {word}.{hint} (see hotswap --help)")
    if not words:
        return "", None
    command, *others = words
    if command not in _COMMANDS:
        hint = nearest(command, _COMMANDS)
        raise ConfigError(f"there is no command {command!r}.{hint} (see hotswap --help)")
    model = others.pop(0) if others and command == "serve" else None
    if others:
        raise ConfigError(f"unexpected argument {others[0]!r} (see hotswap --help)")
    return command, model


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for option in OPTIONS:
        # An empty variable is an unset one, as in most compose files.
        if text := environ.get(option.env):
            found[option.target] = _read(option, text, option.env)
    return found


def _from_file(path: str | None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of a config file, and its ``models:``."""
    if path is None:
        return {}, {}
    try:
        content = parse_yaml(Path(path).read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except InvalidRequest as error:
        raise ConfigError(error.message) from None
    models = _models_in(content.pop("models", None), path)
    found = {}
    for key, value in content.items():
        option = BY_KEY.get(key.replace("-", "_"))
        if option is None or option.flag == "config":
            raise ConfigError(f"{path}: there is no setting {key!r}.{nearest(key, BY_KEY)}")
        if option.target in found:
            raise ConfigError(f"{path}: {option.key} is set twice")
        found[option.target] = _checked(option, value, f"{path}: {key}")
    return found, models


def _models_in(value: Any, path: str) -> dict[str, dict[str, Any]]:
    """``models:`` of a config file, checked, and with the text of its chat templates."""
    entries = {} if value is None else value
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: models must be a mapping of names to settings")
    return {name: _model_entry(name, entry, path) for name, entry in entries.items()}


def _model_entry(name: str, value: Any, path: str) -> dict[str, Any]:
    entry = {} if value is None else value
    where = f"{path}: models: {name}"
    _check_name(name, f"{path}: models")
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be a mapping of settings")
    if not isinstance(entry.get("path", ""), str):
        raise ConfigError(f"{where}: path must be a directory or a Hub repository")
    if isinstance(entry.get("chat_template"), str):
        entry = entry | {"chat_template": _chat_template(entry["chat_template"], where)}
    settings = {key: item for key, item in entry.items() if key != "path"}
    try:
        spec = apply_overrides(ModelSpec(id=name, path=None), settings, "config_file")
    except InvalidRequest as error:
        raise ConfigError(f"{where}: {error.message}") from None
    for alias in spec.aliases:
        _check_name(alias, f"{where}: aliases")
    # One alone may be written without a list.
    return entry | {"aliases": list(spec.aliases)} if "aliases" in entry else entry


def _check_name(name: str, where: str) -> None:
    if name in RESIDENT_NAMES:
        raise ConfigError(
            f"{where}: no model can be called {name!r}: "
            "a request for that name gets whichever model is loaded"
        )


def _read(option: Option, written: str | list[str], where: str) -> Any:
    """The value of text; of several texts for a flag that takes several."""
    if isinstance(written, list):
        return _checked(option, written, where)
    try:
        return option.kind.read(written)
    except ValueError as error:
        raise _complaint(option, where, error, written) from None


def _checked(option: Option, value: Any, where: str) -> Any:
    try:
        return option.kind.check(value)
    except ValueError as error:
        raise _complaint(option, where, error, value) from None


def _complaint(option: Option, where: str, error: ValueError, value: Any) -> ConfigError:
    if value == "" or (isinstance(value, list) and "" in value):
        return ConfigError(f"{where} must not be empty")
    secret = option.flag.endswith("-key")
    return ConfigError(f"{where} must be {error}" + ("" if secret else f", not {value!r}"))


def _assemble(by_target: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> Settings:
    settings = Settings()
    sections: dict[str, dict[str, Any]] = {"catalog": {"models": models}}
    own: dict[str, Any] = {}
    for target, value in by_target.items():
        section, _, name = target.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = value
        elif name != "config":
            own[name] = value
    catalog, engine = sections["catalog"], sections.get("engine", {})
    catalog["models_dirs"] = tuple(
        Path(folder).expanduser() for folder in catalog.get("models_dirs", ())
    )
    if engine.get("chat_template") is not None:
        engine["chat_template"] = _chat_template(engine["chat_template"], "--chat-template")
    replaced = {
        name: replace(getattr(settings, name), **fields) for name, fields in sections.items()
    }
    return replace(settings, **replaced, **own)


def _chat_template(written: str, where: str) -> str:
    """Jinja source, given as it stands or as the name of a file that holds it."""
    if "{{" in written or "{%" in written:
        return written
    try:
        return Path(written).expanduser().read_text("utf-8")
    except (OSError, ValueError):
        raise ConfigError(f"{where}: cannot read the chat template {written!r}") from None


def check(settings: Settings) -> None:
    """Raises: ConfigError: the settings do not go together."""
    catalog, server = settings.catalog, settings.server
    for folder in catalog.models_dirs:
        if not folder.is_dir():
            fault = (
                "it is a file, not a directory" if folder.exists() else "there is no such directory"
            )
            raise ConfigError(f"--models-dir {folder}: {fault}")
    manageable = server.dev_mode or server.admin_key is not None
    if catalog.model is None and not (settings.swap.on_demand or manageable):
        raise ConfigError(
            "nothing to serve: name a model with --model, or let requests name one with "
            "--enable-on-demand-loading; `hotswap demo` serves two bundled models"
        )
    if catalog.served_model_names and catalog.model is None:
        raise ConfigError("--served-model-name needs --model")
    for name in catalog.served_model_names:
        _check_name(name, "--served-model-name")
    if settings.engine.chat_template is not None and catalog.model is None:
        raise ConfigError("--chat-template needs --model; `models:` takes one per model")
    if server.api_keys or is_loopback(server.host):
        return
    if server.dev_mode:
        raise ConfigError(
            f"--dev-mode lets anybody who reaches {server.host} load and unload models: "
            "give --api-key, or --admin-key instead of --dev-mode"
        )
    if catalog.allow_download:
        raise ConfigError(
            f"--allow-download lets anybody who reaches {server.host} fill the disk: give --api-key"
        )


def _default_texts() -> dict[str, str]:
    settings = Settings()
    texts = {}
    for option in OPTIONS:
        section, _, name = option.target.rpartition(".")
        holder = getattr(settings, section) if section else settings
        texts[option.target] = default_text(option, getattr(holder, name, None))
    return texts
