"""A model without its weights: the modules it is made of, and how large they will be once they have
been read."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from hotswap.contracts.models import EngineConfig
from hotswap.engine.blame import blamed
from hotswap.engine.device_map import model_bytes
from hotswap.engine.front import Front
from hotswap.engine.preflight import WeightFiles
from hotswap.engine.quantization import for_reading, is_quantised, quantizer_of
from hotswap.engine.weights import TRANSFORMERS, dtype_for
from hotswap.errors import CheckpointRefused, HotswapError

_log = logging.getLogger(__name__)


def outline(front: Front, engine: EngineConfig) -> PreTrainedModel:
    """The model on the meta device. Waits while another one is read.

    Raises:
        CheckpointRefused: its configuration makes no model, or its weights cannot be read here.
    """
    config = for_reading(front.config)
    dtype = dtype_for(config, engine)
    if not isinstance(dtype, torch.dtype):  # the checkpoint's own
        dtype = config.dtype or torch.float32
    kind: Any = AutoModelForCausalLM if front.recipe is None else AutoModel
    quantizer = quantizer_of(config)
    try:
        with TRANSFORMERS, torch.device("meta"):
            model: PreTrainedModel = kind.from_config(
                config, dtype=dtype, trust_remote_code=engine.trust_remote_code
            )
            if quantizer is not None:
                quantizer.preprocess_model(model, dtype=dtype)
    except HotswapError:
        raise
    except Exception as error:  # whatever a model's code makes of wrong values
        _log.warning("A model cannot be made of its configuration", exc_info=True)
        raise CheckpointRefused(blamed(config.to_dict(), error)) from None
    return model


def loaded_bytes(front: Front, engine: EngineConfig, files: WeightFiles) -> int:
    """What the weights will take in memory.

    Raises:
        CheckpointRefused: as `outline`; there is no such dtype.
    """
    if is_quantised(front.config):
        return model_bytes(outline(front, engine))
    dtype = dtype_for(front.config, engine)
    return files.bytes_as(dtype.itemsize if isinstance(dtype, torch.dtype) else None)
