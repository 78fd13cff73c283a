"""Checkpoint to host memory. Weights never change, so the host copy stays the truth and leaving the
device is dropping what is there."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hotswap.contracts.models import EngineConfig
from hotswap.engine.blame import blamed
from hotswap.engine.blueprint import Arena, Blueprint, FileId
from hotswap.engine.device import without_frames
from hotswap.engine.embedding.encoder import Encoder, read_encoder
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.front import Front
from hotswap.engine.image import HostImage
from hotswap.engine.quantization import for_reading, is_made_plain, is_quantised
from hotswap.errors import CheckpointRefused, HotswapError, InsufficientMemory

_log = logging.getLogger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
TRANSFORMERS = threading.Lock()
"""transformers sets process-wide state while it builds a model (the default dtype among it)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about a model; stays true as long as its files do."""

    tier: str
    token_bytes: int
    """Of keys and values, per token of a sequence."""
    fixed_bytes: int
    """Of state per sequence, whatever its length."""
    native: bool = False
    """Its newest tokens are computed by `hotswap.engine.native`."""


@dataclass(slots=True, weakref_slot=True)
class HostWeights:
    """A model in host memory, ready to be placed any number of times: as transformers has it, as
    the skeleton that it was read into, or as the encoder of an embedding model."""

    content: PreTrainedModel | Skeleton | Encoder
    bytes: int
    dtype: str
    vocab: int
    """Ids below it may be fed to the model."""
    known: Known | None = None
    """What was found out about them, once they have been on a device."""
    image: HostImage | None = None
    """What they lie in, if they have been brought there."""
    files: tuple[FileId, ...] = ()
    """That they may lie in: the checkpoint's, or copies of them."""
    are_copied: bool = False
    """From the files into memory that nobody else can change."""

    @property
    def mapped(self) -> bool:
        """They are known to lie in files, which the process shares with whoever else has them."""
        return self.image is None and self.known is not None and self.known.blueprint is not None

    def move_into(self, image: HostImage) -> None:
        """Of these weights."""
        self.content = image.skeleton
        self.image = image

    def close(self) -> None:
        """They are not kept for the device any more. From any thread."""
        if self.image is not None:
            self.image.close()


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out about a checkpoint; stays true as long as its files do."""

    verdict: Verdict
    blueprint: Blueprint | None
    """None: it has to be read anew each time."""
    bare: HostWeights | None
    """The weights without what they hold, of a model with a blueprint."""

    def rebuilt(self, arenas: Sequence[Arena]) -> HostWeights:
        """The weights of a model with a blueprint, in ``arenas``."""
        assert self.blueprint is not None
        assert self.bare is not None
        return replace(self.bare, content=self.blueprint.bind(arenas), known=self)


class LoadAbandoned(Exception):
    """Nobody waits for the weights any more."""


def read_weights(
    directory: Path, front: Front, engine: EngineConfig, abandoned: threading.Event
) -> HostWeights:
    """Load a checkpoint that `preflight` has passed, through transformers.

    One load reads at a time. One that is ``abandoned`` while it waits for its turn gives up. One
    that is abandoned while it reads cannot be interrupted (`from_pretrained` has no way): it goes
    on to its end, holds its memory until then, and the next load waits for that one.

    Raises:
        CheckpointRefused: its tensors are not those that its configuration asks for.
        InsufficientMemory
        LoadAbandoned
    """
    try:
        return _read(directory, front, engine, abandoned)
    except HotswapError as error:
        raise without_frames(error)  # noqa: B904 (a loader's frames hold half a model)


def _read(
    directory: Path, front: Front, engine: EngineConfig, abandoned: threading.Event
) -> HostWeights:
    config = for_reading(front.config)
    dtype = dtype_for(config, engine)
    kind: Any = AutoModelForCausalLM if front.recipe is None else AutoModel
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with TRANSFORMERS:
            if abandoned.is_set():
                raise LoadAbandoned
            loaded: Any = kind.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=engine.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # it would only say that there are some
            )
    except LoadAbandoned:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise InsufficientMemory("The model does not fit into host memory.") from None
    except Exception as error:  # a loader meets every kind of wrong tensor in its own way
        _log.warning("The weights of %s cannot be loaded", directory, exc_info=True)
        if _was_reading(error):
            raise CheckpointRefused(
                "The weights do not agree with config.json (names, shapes or types of tensors)."
            ) from None
        raise CheckpointRefused(blamed(front.config.to_dict(), error)) from None
    model, info = loaded
    _refuse_gaps(info, unused=() if front.recipe is None else _UNUSED_FOR_EMBEDDING)
    if is_made_plain(front.config):
        _cast_the_rest(model)
    model.eval()
    content = model if front.recipe is None else read_encoder(model, front.recipe)
    return HostWeights(
        content=content,
        bytes=sum(tensor.nbytes for tensor in _tensors(content)),
        dtype=str(model.dtype).removeprefix("torch."),
        vocab=front.vocab_size,
    )


def _was_reading(error: Exception) -> bool:
    """transformers had made the modules of the model, and met its tensors."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "_load_pretrained_model" for frame, _ in frames)


def _cast_the_rest(model: PreTrainedModel) -> None:
    """transformers may leave the tensors beside quantised ones in the type that they were saved in,
    and nothing can be computed with both."""
    dtype = model.config.dtype
    assert isinstance(dtype, torch.dtype)
    kept = model._get_dtype_plan(dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def torch_dtype(name: str) -> torch.dtype | str:
    """What a setting means; "auto" stays as it is.

    Raises:
        CheckpointRefused: there is no such type.
    """
    if name == "auto":
        return "auto"
    if name not in _DTYPES:
        raise CheckpointRefused(f"dtype {name[:100]!r} is not one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def dtype_for(config: PreTrainedConfig, engine: EngineConfig) -> torch.dtype | str:
    """What the weights become; "auto" is what the configuration or else the files say.

    Raises:
        CheckpointRefused: there is no such type.
    """
    dtype = torch_dtype(engine.dtype)
    if dtype == "auto" and config.dtype is None and is_quantised(config):
        return torch.bfloat16  # in the files are numbers that nothing is computed in
    return dtype


_UNUSED_FOR_EMBEDDING = ("pooler.",)
"""Tensors of encoders that were trained for something else, and that checkpoints may lack."""


def _refuse_gaps(info: dict[str, Any], unused: tuple[str, ...]) -> None:
    missing = sorted(name for name in map(str, info["missing_keys"]) if not name.startswith(unused))
    mismatched = sorted(
        f"{_named(name)} is {list(saved)} in the files and {list(asked)} by config.json"
        for name, saved, asked in info["mismatched_keys"]
    )
    for what, told in (
        ("have the wrong shape", mismatched),
        ("are missing", [*map(_named, missing)]),
    ):
        if told:
            more = ", ..." if len(told) > _TOLD else ""
            raise CheckpointRefused(f"{len(told)} tensors {what}: {', '.join(told[:_TOLD])}{more}.")
    if info["unexpected_keys"]:
        _log.info("%d tensors of the checkpoint are not used", len(info["unexpected_keys"]))


_TOLD = 3
"""Tensors that a refusal names."""


def _named(tensor: str) -> str:
    return repr(tensor[:200])
