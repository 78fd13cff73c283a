"""How a model makes one vector of a text: as its own files say, which are laid out as
sentence-transformers does it, or by default where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotswap.engine.preflight import check_weights, inner_directory, read_list, read_object
from hotswap.errors import CheckpointRefused

_MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the longest text may be told; the first is the usual one."""
RECIPE_FILES = (
    *(_MODULES, _SETTINGS, *_LENGTHS, "1_Pooling/config.json"),
    *("2_Dense/config.json", "2_Dense/model.safetensors"),
    *("3_Dense/config.json", "3_Dense/model.safetensors"),
)
"""What a recipe is read from, as far as the names are known beforehand."""

_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which several are put together."""
POOLINGS = ("cls", "max", "mean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling."""

    file: Path
    """Has ``linear.weight`` [outputs, inputs] and perhaps ``linear.bias``."""
    inputs: int
    outputs: int
    bias: bool
    activation: str
    """One of `ACTIVATIONS`."""


@dataclass(frozen=True, slots=True)
class Normalise:
    """Scales a vector to length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Shared between threads, never changed."""

    pooling: tuple[str, ...]
    """Of `POOLINGS`; the vectors of several are put together."""
    steps: tuple[Dense | Normalise, ...]
    """What happens to a pooled vector, in order."""
    dimensions: int
    """Of what comes out."""
    max_tokens: int | None
    """Of a text, special ones included; None: as many as the model has positions."""
    prefix: str
    """Put before every text."""
    lower_case: bool


def default_recipe(directory: Path, width: int, *, is_causal: bool) -> Recipe:
    """Of a model without ``modules.json``: the last token where each sees only those before it,
    else the mean of all; vectors of length 1.

    Raises:
        CheckpointRefused
    """
    max_tokens, lower_case = _lengths(directory)
    return Recipe(
        pooling=("lasttoken" if is_causal else "mean",),
        steps=(Normalise(),),
        dimensions=width,
        max_tokens=max_tokens,
        prefix=_prefix(directory),
        lower_case=lower_case,
    )


def read_recipe(directory: Path, width: int) -> Recipe:
    """Of a model with ``modules.json``.

    Args:
        width: of the model's hidden states.

    Raises:
        CheckpointRefused: also when it asks for something that is not supported.
    """
    modules = [_module(entry) for entry in read_list(directory, _MODULES)]
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"] or modules[0][1]:
        raise CheckpointRefused(f"{_MODULES} does not begin with Transformer and Pooling.")
    prefix = _prefix(directory)
    pooling = _pooling(inner_directory(directory, modules[1][1]), prefix)
    dimensions = width * len(pooling)
    steps: list[Dense | Normalise] = []
    for kind, name in modules[2:]:
        if kind == "Normalize":
            steps.append(Normalise())
        elif kind == "Dense":
            dense = _dense(inner_directory(directory, name), dimensions)
            steps.append(dense)
            dimensions = dense.outputs
        elif kind != "Dropout":  # which does nothing but in training
            raise CheckpointRefused(f"{_MODULES}: {kind[:100]!r} is not supported.")
    max_tokens, lower_case = _lengths(directory)
    return Recipe(
        pooling=pooling,
        steps=tuple(steps),
        dimensions=dimensions,
        max_tokens=max_tokens,
        prefix=prefix,
        lower_case=lower_case,
    )


def _module(entry: Any) -> tuple[str, str]:
    """Kind and directory of a module; the kind is the name of a Python class."""
    if isinstance(entry, dict):
        kind, path = entry.get("type"), entry.get("path", "")
        if isinstance(kind, str) and isinstance(path, str):
            return kind.rpartition(".")[2], path
    raise CheckpointRefused(f"{_MODULES} has an entry without type and path.")


def _pooling(directory: Path, prefix: str) -> tuple[str, ...]:
    config = read_object(directory, "config.json")
    named = config.get("pooling_mode")
    if named is None:
        asked = [mode for key, mode in _POOLING_KEYS.items() if config.get(key, mode == "mean")]
    else:
        asked = list(named) if isinstance(named, list | tuple) else [named]
    if not asked:
        raise CheckpointRefused("The pooling takes nothing.")
    for mode in asked:
        if mode not in POOLINGS:
            raise CheckpointRefused(f"Pooling by {str(mode)[:100]!r} is not supported.")
    if prefix and config.get("include_prompt") is False:
        raise CheckpointRefused("Pooling without the prompt's tokens is not supported.")
    return tuple(asked)


def _dense(directory: Path, inputs: int) -> Dense:
    config = read_object(directory, "config.json")
    outputs, bias = config.get("out_features"), bool(config.get("bias", True))
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if config.get("in_features") != inputs or type(outputs) is not int:
        raise CheckpointRefused(f"A Dense module does not take {inputs} numbers.")
    if activation not in ACTIVATIONS:
        raise CheckpointRefused(f"The activation {activation[:100]!r} is not supported.")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointRefused(f"A Dense module with its own {key} is not supported.")
    weights = check_weights(directory)
    shapes = {name: entry.shape for name, entry in weights.tensors.items()}
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (outputs, inputs)}
    if bias:
        expected["linear.bias"] = (outputs,)
    if shapes != expected or len(weights.files) != 1:
        raise CheckpointRefused("The weights of a Dense module do not agree with its config.json.")
    return Dense(weights.files[0], inputs, outputs, bias, activation)


def _lengths(directory: Path) -> tuple[int | None, bool]:
    """Tokens of a text at most, and whether it is written in small letters."""
    for name in _LENGTHS:
        if (directory / name).exists():
            config = read_object(directory, name)
            longest = config.get("max_seq_length")
            if longest is not None and (type(longest) is not int or longest < 1):
                raise CheckpointRefused(f"{name}: max_seq_length is not a positive number.")
            return longest, config.get("do_lower_case") is True
    return None, False


def _prefix(directory: Path) -> str:
    """The prompt that the model puts before every text by itself; there may be others, which only
    a client can choose, by writing them."""
    if not (directory / _SETTINGS).exists():
        return ""
    settings = read_object(directory, _SETTINGS)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        raise CheckpointRefused(f"{_SETTINGS}: the default prompt is missing.")
    return prompt
