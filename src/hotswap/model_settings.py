"""Settings of one model, laid over one another: who may set what, and who did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from hotswap import values
from hotswap.contracts.models import AppliedSetting, ModelSpec
from hotswap.errors import InvalidRequest
from hotswap.options import ENGINE_KINDS, nearest
from hotswap.values import Kind

Source = Literal["request", "uploaded", "config_file", "model_dir"]

_SPEC_KINDS: Mapping[str, Kind] = {
    "aliases": values.several(values.text(metavar="NAME")),
    "ttl_s": values.optional(values.duration_s()),
    "pin": values.boolean(),
    "background": values.boolean(),
    "show_loading": values.boolean(),
}
SAMPLING_KINDS: Mapping[str, Kind] = {  # what requests may ask for
    "temperature": values.optional(values.number(0, 2)),
    "top_k": values.optional(values.whole(-1, 2**31 - 1)),
    "top_p": values.optional(values.number(0, 1)),
    "min_p": values.optional(values.number(0, 1)),
    "repetition_penalty": values.optional(values.number(0.01, 100)),
    "frequency_penalty": values.optional(values.number(-2, 2)),
    "presence_penalty": values.optional(values.number(-2, 2)),
    "seed": values.optional(values.whole(-(2**63), 2**63 - 1)),
}
_SETTABLE = ENGINE_KINDS.keys() | _SPEC_KINDS.keys() | {"sampling"}

# A request can come from anybody who may infer, a model's own file from anybody on the Hub:
# neither may run code, move to another device, take a name that means another model, keep host
# memory for good, or have its requests answered by others. Nor may a model take all devices.
_OPERATORS = frozenset({"trust_remote_code", "device", "aliases", "pin", "background"})
_REFUSED: Mapping[str, frozenset[str]] = {
    "request": _OPERATORS | {"chat_template"},
    "model_dir": _OPERATORS | {"device_map"},
    "config_file": frozenset(),
}
_BESIDE: Mapping[str, frozenset[str]] = {
    "request": frozenset({"model"}),
    "uploaded": frozenset({"model"}),
    "config_file": frozenset({"path"}),
}
"""Keys that stand beside the settings, and may have been meant."""


def apply_overrides(spec: ModelSpec, overrides: Mapping[str, Any], source: str) -> ModelSpec:
    """``spec`` with ``overrides`` on top, each noted in ``applied`` with its source.

    Keys are the fields of `EngineConfig`, ``aliases``, ``ttl_s``, ``pin``, ``background``,
    ``show_loading``, and ``sampling``: a mapping of request defaults.

    Args:
        source: "request", "uploaded", "config_file" or "model_dir".

    Raises:
        InvalidRequest: a key is unknown or not settable from there, or a value is of the wrong
            type or out of range; ``param`` is the key.
    """
    refused = _REFUSED.get(source, _REFUSED["request"])
    engine: dict[str, Any] = {}
    own: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    for key, value in overrides.items():
        if key in refused:
            by = "the model's own file" if source == "model_dir" else "a request"
            raise InvalidRequest(f"{key} cannot be set by {by}.", param=key)
        if key == "sampling":
            sampling = _sampling(value)
        elif key in ENGINE_KINDS:
            engine[key] = _checked(key, ENGINE_KINDS[key], value)
        elif key in _SPEC_KINDS:
            own[key] = _checked(key, _SPEC_KINDS[key], value)
        else:
            shown = key[:200]
            hint = nearest(shown, (_SETTABLE - refused) | _BESIDE.get(source, frozenset()))
            raise InvalidRequest(f"There is no setting {shown!r}.{hint}", param=shown)
    _check_length(spec, engine.get("max_model_len"))
    settled = engine | own | {f"sampling.{key}": value for key, value in sampling.items()}
    noted = {key: AppliedSetting(value, source) for key, value in settled.items()}
    if "aliases" in own:
        own["aliases"] = tuple(dict.fromkeys(spec.aliases + own["aliases"]))
    return replace(
        spec,
        engine=replace(spec.engine, **engine),
        sampling=replace(spec.sampling, **sampling),
        applied={**spec.applied, **noted},
        **own,
    )


def _check_length(spec: ModelSpec, asked: int | None) -> None:
    own = spec.max_position_embeddings
    if asked is not None and own is not None and asked > own:
        raise InvalidRequest(
            f"max_model_len {asked} is more than the {own} tokens that {spec.id!r} was made for.",
            param="max_model_len",
        )


def overrides_of(spec: ModelSpec, *sources: str) -> dict[str, dict[str, Any]]:
    """Per source, what `apply_overrides` was given from there and still holds."""
    found: dict[str, dict[str, Any]] = {}
    for key, setting in spec.applied.items():
        if setting.source not in sources:
            continue
        layer = found.setdefault(setting.source, {})
        if key.startswith("sampling."):
            layer.setdefault("sampling", {})[key.removeprefix("sampling.")] = setting.value
        else:
            layer[key] = setting.value
    return found


def _sampling(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest("sampling must be a mapping of request defaults.", param="sampling")
    checked = {}
    for key, item in value.items():
        if key not in SAMPLING_KINDS:
            shown = key[:200]
            hint = nearest(shown, SAMPLING_KINDS)
            raise InvalidRequest(
                f"There is no setting {shown!r} in sampling.{hint}", param=f"sampling.{shown}"
            )
        checked[key] = _checked(f"sampling.{key}", SAMPLING_KINDS[key], item)
    if checked.get("top_k") == -1:  # vLLM's way to say "off"
        checked["top_k"] = 0
    if checked.get("seed") == -1:
        checked["seed"] = None
    return checked


def _checked(key: str, kind: Kind, value: Any) -> Any:
    try:
        return kind.check(value)
    except ValueError as error:
        shown = repr(value)[:80]
        raise InvalidRequest(f"{key} must be {error}, not {shown}.", param=key) from None
