"""The table of settings, from which flags, environment, config file and documentation derive."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hotswap import values
from hotswap.values import Kind


class ConfigError(Exception):
    """The server cannot be started as it was asked to be. One line, for whoever started it; no
    `HotswapError`, because no client ever sees it."""


_NAME = values.text(metavar="NAME", pattern=r"[^\x00-\x20\x7f]+", expected="a name without spaces")
_KEY = values.text(
    metavar="KEY", pattern=r"[\x21-\x7e]+", expected="a key of visible ASCII characters"
)
_ORIGIN = values.text(
    metavar="ORIGIN",
    # Some apps are pages too, of schemes of their own: tauri://localhost.
    pattern=r"\*|[a-z][a-z0-9+.-]*://(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?",
    expected="an origin such as http://localhost:3000, or *",
)

ENGINE_KINDS: Mapping[str, Kind] = {
    "device": values.text(
        metavar="NAME",
        pattern=r"auto|cpu|cuda(:\d{1,3})?",
        expected="auto, cpu, cuda or a numbered device such as cuda:1",
    ),
    "device_map": values.choice("none", "auto"),
    "dtype": values.choice("auto", "float32", "bfloat16", "float16"),
    "no_mmap": values.boolean(),
    "max_model_len": values.optional(values.whole(1, metavar="TOKENS")),
    "max_num_seqs": values.whole(1, 4096),
    "kv_cache_memory": values.optional(values.size_bytes(low=1)),
    "chat_template": values.optional(values.text(metavar="FILE")),
    "trust_remote_code": values.boolean(),
}
"""The fields of `EngineConfig`, which are also the keys of load_model and of config files."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: ``--flag``, ``HOTSWAP_FLAG`` and ``flag`` in a config file."""

    flag: str
    target: str
    """Where it goes in the settings tree: "server.port"."""
    kind: Kind
    group: str
    help: str
    also: str | None = None
    """Another name of the flag."""
    default: str = ""
    """What the settings table says where the tree's default does not speak for itself."""
    fixed: bool = False
    """It stays what it was when the server was started."""

    @property
    def key(self) -> str:
        return self.flag.replace("-", "_")

    @property
    def env(self) -> str:
        return f"HOTSWAP_{self.key.upper()}"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.also.replace("-", "_")) if self.also else (self.key,)


MODELS, SWAPPING, ACCESS, ENGINE, LOGGING = "Models", "Swapping", "Server", "Engine", "Logging"


def _engine(flag: str, help_text: str, default: str = "") -> Option:
    key = flag.replace("-", "_")
    return Option(flag, f"engine.{key}", ENGINE_KINDS[key], ENGINE, help_text, default=default)


OPTIONS: tuple[Option, ...] = (
    Option(
        "model",
        "catalog.model",
        values.text(metavar="NAME"),
        MODELS,
        "Hub repository, repository@revision or local directory to serve from the start",
    ),
    Option(
        "served-model-name",
        "catalog.served_model_names",
        values.several(_NAME),
        MODELS,
        "names under which --model is served; the first one is its id",
    ),
    Option(
        "models-dir",
        "catalog.models_dirs",
        values.several(values.text(metavar="DIR"), separator=":"),
        MODELS,
        "folder whose sub-folders with a config.json are models; may be given again",
    ),
    Option(
        "enable-on-demand-loading",
        "swap.on_demand",
        values.boolean(),
        MODELS,
        "let a request name another local model and swap it in",
        also="enable-inline-model-loading",
    ),
    Option(
        "allow-download",
        "catalog.allow_download",
        values.several(values.text(metavar="GLOB")),
        MODELS,
        "repositories that a request may fetch from the Hub, such as 'Qwen/*'",
        default="none",
    ),
    Option(
        "config",
        "config",
        values.text(metavar="FILE"),
        MODELS,
        "YAML file with these settings as keys, and `models:` with settings per model",
    ),
    Option(
        "host",
        "server.host",
        values.text(metavar="ADDRESS", pattern=r"\S+", expected="an address"),
        ACCESS,
        "address to listen on",
        fixed=True,
    ),
    Option(
        "port",
        "server.port",
        values.whole(0, 65535),
        ACCESS,
        "port to listen on; 0 takes a free one",
        fixed=True,
    ),
    Option(
        "api-key",
        "server.api_keys",
        values.several(_KEY),
        ACCESS,
        "keys of which every request must carry one",
        default="none",
        fixed=True,
    ),
    Option(
        "admin-key",
        "server.admin_key",
        _KEY,
        ACCESS,
        "key that opens the management routes",
        default="none",
        fixed=True,
    ),
    Option(
        "dev-mode",
        "server.dev_mode",
        values.boolean(),
        ACCESS,
        "open the management routes to everybody who may send requests",
        fixed=True,
    ),
    Option(
        "cors-origins",
        "server.cors_origins",
        values.several(_ORIGIN),
        ACCESS,
        "web pages that may call this server, such as http://localhost:3000",
        default="none",
        fixed=True,
    ),
    Option(
        "keepalive-s",
        "server.keepalive_s",
        values.duration_s(above_zero=True),
        ACCESS,
        "seconds before a waiting stream is answered, and between its comment lines",
        fixed=True,
    ),
    Option(
        "hang-timeout-s",
        "server.hang_timeout_s",
        values.duration_s(above_zero=True),
        ACCESS,
        "how long a step may take before the server starts itself again",
        also="hang-timeout",
    ),
    Option(
        "no-self-restart",
        "server.no_self_restart",
        values.boolean(),
        ACCESS,
        "exit instead: with 70 when the device is lost, with 71 when something hangs",
    ),
    Option(
        "drain-timeout-s",
        "swap.drain_timeout_s",
        values.duration_s(),
        SWAPPING,
        "how long running answers may take to end before a swap is given up",
    ),
    Option(
        "swap-timeout-s",
        "swap.swap_timeout_s",
        values.duration_s(above_zero=True),
        SWAPPING,
        "how long a request waits for its model",
    ),
    Option(
        "max-queue",
        "swap.max_queue",
        values.whole(1),
        SWAPPING,
        "requests that may wait; more get 429",
    ),
    Option(
        "patience-s",
        "swap.patience_s",
        values.duration_s(),
        SWAPPING,
        "how long a busy model takes new requests after another model was asked for",
    ),
    Option(
        "max-wait-s",
        "swap.max_wait_s",
        values.duration_s(above_zero=True),
        SWAPPING,
        "after this long a request is no longer passed by requests for another model",
    ),
    Option(
        "idle-timeout-s",
        "swap.idle_timeout_s",
        values.optional(values.duration_s(above_zero=True)),
        SWAPPING,
        "unload a model after so long without a request",
        default="never",
    ),
    Option(
        "park-memory",
        "swap.park_memory",
        values.optional(values.size_bytes()),
        SWAPPING,
        "host memory for models that left the device, so that they come back quickly; 0 keeps none",
        default="a share of what is available",
        fixed=True,
    ),
    _engine("device", "device to run on"),
    _engine(
        "device-map",
        "auto: spread a model that has no room on the device over all CUDA devices and host memory",
    ),
    _engine("dtype", "number format of the weights; auto is the checkpoint's own"),
    _engine(
        "no-mmap",
        "read weights into memory instead of mapping their files, which may then be cut or go away",
    ),
    _engine(
        "max-model-len",
        "tokens of prompt and answer of --model together; other models: their own if that is less",
        "the model's own",
    ),
    _engine("max-num-seqs", "answers that run at the same time"),
    _engine("kv-cache-memory", "bytes for keys and values at most", "a share of what is free"),
    _engine(
        "chat-template",
        "chat template of --model, as a Jinja file or text",
        "the model's own",
    ),
    _engine("trust-remote-code", "run Python code that comes with a model"),
    Option(
        "log-level",
        "server.log_level",
        values.choice("debug", "info", "warning", "error"),
        LOGGING,
        "how much to log",
    ),
    Option(
        "log-format",
        "server.log_format",
        values.choice("text", "json"),
        LOGGING,
        "how to write it",
    ),
)

BY_KEY: Mapping[str, Option] = {key: option for option in OPTIONS for key in option.keys}


_NEGATIVE = re.compile(r"-(?:[.\d]|inf|nan)", re.IGNORECASE)
_VALUED = frozenset(
    f"--{flag}"
    for option in OPTIONS
    if option.kind.metavar is not None and not option.kind.many
    for flag in (option.flag, option.also)
    if flag
)
"""Flags that take one value."""


_ALIKE = 0.7
"""How alike a slip and what was meant must be. "modell" is as near as 0.63 to max_model_len."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?', or nothing if no name is near."""
    names = {_letters(name): name for name in sorted(known)}
    close = difflib.get_close_matches(_letters(word), names, n=1, cutoff=_ALIKE)
    return f" Did you mean {names[close[0]]}?" if close else ""


def _letters(name: str) -> str:
    """What tells a setting's name from others, however it is written."""
    return name.casefold().removeprefix("--").removeprefix("hotswap_").replace("-", "_")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse says "argument --port: expected one argument".
        text = re.sub(r"^argument ([^:]+): ", r"\1: ", message)
        raise ConfigError(f"{text} (see hotswap --help)")


def command_line_parser(version: str, defaults: Mapping[str, str]) -> argparse.ArgumentParser:
    """Reads flags as text; what they mean is up to each option's kind.

    Args:
        defaults: per target, the default as text.
    """
    parser = _Parser(
        prog="hotswap",
        usage="hotswap [serve] [--model] NAME [options]\n       hotswap demo [options]",
        description="Serve Hugging Face models over OpenAI's API and change them in place.",
        epilog=(
            "Each option --some-name can also be given as environment variable "
            "HOTSWAP_SOME_NAME or as key some_name of the --config file; a flag beats the "
            "environment, which beats the file. `hotswap demo` serves two bundled models."
        ),
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add_flag(groups[option.group], option, defaults[option.target])
    information = parser.add_argument_group("Information")
    information.add_argument("-h", "--help", action="help", help="show this text")
    information.add_argument(
        "--version", action="version", version=f"hotswap {version}", help="show the version"
    )
    return parser


def with_negatives(argv: Sequence[str]) -> list[str]:
    """``argv`` with what looks like a negative number tied to the flag before it. argparse takes
    "-5GB" for a flag; the option's kind is to say that it must not be negative."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in _VALUED and _NEGATIVE.match(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _add_flag(group: argparse._ArgumentGroup, option: Option, default: str) -> None:
    flags = [f"--{option.flag}"] + ([f"--{option.also}"] if option.also else [])
    shown = f"{option.help} (default: {default})" if default else option.help
    details: dict[str, Any] = {"dest": option.key, "default": None, "help": shown}
    if _is_switch(option):
        group.add_argument(*flags, action="store_const", const="true", **details)
        return
    if option.kind.many:
        details |= {"action": "extend", "nargs": "+"}
    group.add_argument(*flags, metavar=option.kind.metavar, **details)


def markdown_table(defaults: Mapping[str, str]) -> str:
    """The settings as a Markdown table, for the README."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for option in OPTIONS:
        value = "" if _is_switch(option) else f" {option.kind.metavar}"
        name = f"`--{option.flag}{value}`".replace("|", "\\|")
        lines.append(f"| {name} | {defaults[option.target]} | {option.help} |")
    return "\n".join(lines) + "\n"


def default_text(option: Option, value: Any) -> str:
    """How the default is shown; empty where there is none worth showing."""
    if option.default or value is None or value == () or isinstance(value, bool):
        return option.default or ("off" if value is False else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_switch(option: Option) -> bool:
    return option.kind.metavar is None
