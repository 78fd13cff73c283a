"""Checkpoints with quantised weights: what transformers reads of them with the packages that are
here, and what is missing where it cannot."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer

from hotswap.errors import CheckpointRefused

_MADE_PLAIN = frozenset({"fp8", "mxfp4", "mxfp8"})
"""transformers makes plain weights of these while it reads. To compute with them as they are, it
would fetch kernels from the Hub, and those are foreign code."""
_NEED_KERNELS = frozenset({"eetq", "metal", "nvfp4"})
"""These cannot be had without such kernels."""
_BITS_AND_BYTES = "bitsandbytes"
_SHOWN_CHARACTERS = 300


def is_quantised(config: PreTrainedConfig) -> bool:
    return _settings(config) is not None


def is_made_plain(config: PreTrainedConfig) -> bool:
    """The weights are quantised in their files only."""
    settings = _settings(config)
    return settings is not None and _method(settings) in _MADE_PLAIN


def for_reading(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of ``config``, as `from_pretrained` is to have it."""
    config = copy.deepcopy(config)
    settings = _settings(config)
    if settings is not None and _method(settings) in _MADE_PLAIN:
        settings["dequantize"] = True
    return config


def quantizer_of(config: PreTrainedConfig) -> HfQuantizer | None:
    """What transformers reads the weights with; None: they are not quantised.

    Args:
        config: As of `for_reading`.

    Raises:
        CheckpointRefused: it cannot read them, and why: a package or a device is missing, or it
            does not know the method.
    """
    settings = _settings(config)
    if settings is None:
        return None
    method = _method(settings)
    if method in _NEED_KERNELS:
        raise _refusal(method, "they need kernels from the Hub, which is foreign code")
    bits = ("_4bit", "_8bit") if method == _BITS_AND_BYTES else ("",)
    if not any(method + suffix in AUTO_QUANTIZER_MAPPING for suffix in bits):
        raise _refusal(method, "which is not known")
    try:
        quantizer: Any = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _refusal(method, " ".join(str(error).split())[:_SHOWN_CHARACTERS]) from None
    except Exception:  # whatever a method makes of settings that are not its own
        raise _refusal(method, "with settings that make no sense") from None
    assert isinstance(quantizer, HfQuantizer)
    return quantizer


def _settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """How the weights are quantised; None: they are not."""
    for holder in (config, config.get_text_config(decoder=True)):
        settings = getattr(holder, "quantization_config", None)
        if isinstance(settings, dict):
            return settings
    return None


def _method(settings: dict[str, Any]) -> str:
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return _BITS_AND_BYTES
    return str(settings.get("quant_method"))[:100]


def _refusal(method: str, reason: str) -> CheckpointRefused:
    return CheckpointRefused(f"The weights are quantised ({method}): {reason.rstrip('.')}.")
