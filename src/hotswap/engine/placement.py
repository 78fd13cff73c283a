"""Where a model is while it is on a device: in the memory that it was read into, or in an arena.
One that is larger than a device is `hotswap.engine.spread.Spread`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.forward.skeleton import RopeTable, Skeleton
from hotswap.engine.upload import Upload, upload_of
from hotswap.engine.weights import HostWeights

_log = logging.getLogger(__name__)


class Placement(Protocol):
    device: torch.device
    vocab: int

    @property
    def kind(self) -> str:
        """How the weights are held, for people: "mapped" where the files are the weights, "read"
        where copies of the files are, "converted" where they had to be changed, "arena", "modules"
        where they are transformers' own, or "spread" where these lie on several devices."""

    @property
    def whole(self) -> bool:
        """All of it is on one device, so that it can be computed without its modules."""

    @property
    def bytes_on(self) -> Mapping[str, int]:
        """Bytes of the weights, by the device that they lie on."""

    @property
    def model(self) -> PreTrainedModel:
        """Not there once a skeleton has been taken on."""

    @property
    def skeleton(self) -> Skeleton | None: ...

    def take_on(self, skeleton: Skeleton, /) -> None:
        """From now on the model is its skeleton, and the host copy is too: it need not be read
        again the next time."""

    def settle(self) -> None:
        """Until the weights are there, which what is computed on the device comes after anyway."""

    def leave(self) -> None:
        """Free what was placed, even where a stray reference to it lives."""


def place(
    weights: HostWeights,
    device: torch.device,
    memory: DeviceMemory | None,
    ahead: Upload | None = None,
) -> Placement:
    """
    Args:
        memory: Of the device, if it is not where the weights are.
        ahead: The same weights, on their way already. It is the placement's from now on.

    Raises:
        torch.OutOfMemoryError: what was placed by then is free again.
    """
    return InPlace(weights, device) if memory is None else InArena(weights, memory, ahead)


class InPlace:
    """The host copy itself."""

    whole = True

    def __init__(self, weights: HostWeights, device: torch.device) -> None:
        self.device = device
        self.vocab = weights.vocab
        self._weights = weights

    @property
    def kind(self) -> str:
        if self.skeleton is None:
            return "modules"
        if not self._weights.mapped:
            return "converted"
        return "read" if self._weights.are_copied else "mapped"

    @property
    def bytes_on(self) -> Mapping[str, int]:
        return {str(self.device): self._weights.bytes}

    @property
    def model(self) -> PreTrainedModel:
        assert isinstance(self._weights.content, PreTrainedModel)
        return self._weights.content

    @property
    def skeleton(self) -> Skeleton | None:
        content = self._weights.content
        return content if isinstance(content, Skeleton) else None

    def take_on(self, skeleton: Skeleton) -> None:
        if self.skeleton is None:
            _become(self._weights, skeleton)

    def settle(self) -> None:
        """They are."""

    def leave(self) -> None:
        """Nothing was placed."""


class InArena:
    """A copy on the device. The skeleton has all of its weights in one arena, and so have the
    modules that it is compared with the first time. Modules that are no skeleton are copied tensor
    by tensor."""

    whole = True

    def __init__(
        self, weights: HostWeights, memory: DeviceMemory, ahead: Upload | None = None
    ) -> None:
        self.device = memory.device
        self.vocab = weights.vocab
        self._weights = weights
        self._upload = ahead
        """Until all is there."""
        self._arena: Tensor | None = None
        self._skeleton: Skeleton | None = None
        self._source: Skeleton | None = None
        """On the host, until it is taken on."""
        self._model: PreTrainedModel | None = None
        self._own: list[Tensor] = []
        """What lies beside the arena."""
        try:
            self._put(memory)
        except BaseException:
            self.leave()
            raise

    @property
    def kind(self) -> str:
        return "arena" if self._model is None else "modules"

    @property
    def bytes_on(self) -> Mapping[str, int]:
        return {str(self.device): self._weights.bytes}

    @property
    def model(self) -> PreTrainedModel:
        assert self._model is not None
        return self._model

    @property
    def skeleton(self) -> Skeleton | None:
        return self._skeleton

    def take_on(self, _: Skeleton) -> None:
        assert self._source is not None
        self._model = None
        self._free_own()
        if not isinstance(self._weights.content, Skeleton):
            _become(self._weights, self._source)
        self._source = None

    def settle(self) -> None:
        if self._upload is not None:
            self._upload.wait()
            self._upload = None

    def leave(self) -> None:
        self._free_own()
        if self._skeleton is not None:
            for table in _tables(self._skeleton):
                table.close()
        if self._upload is not None:
            self._upload.close()
        elif self._arena is not None:
            self._arena.untyped_storage().resize_(0)
        self._model = self._skeleton = self._source = self._arena = self._upload = None

    def _put(self, memory: DeviceMemory) -> None:
        if self._upload is not None and self._upload.failed():
            _log.warning("An upload ahead of time failed and is made again")
            self._upload.close()
            self._upload = None
        if self._upload is None:
            self._upload = upload_of(self._weights, memory)
            if self._upload is not None:
                self._upload.send()
        content = self._weights.content
        views: list[tuple[Tensor, Tensor]] = []
        if self._upload is not None:
            layout, self._arena = self._upload.layout, self._upload.arena
            self._skeleton = layout.place(self._arena)
            views += layout.views(self._arena)
            if isinstance(content, PreTrainedModel):
                self._source = layout.source
        if isinstance(content, PreTrainedModel) and self._is_needed:
            self._model = self._copy(content, views)
        if self._upload is not None:  # last: copies to the device would wait for all of it
            self._upload.join()

    @property
    def _is_needed(self) -> bool:
        """The modules are: they are what runs, or what the skeleton is to be compared with."""
        return self._skeleton is None or self._weights.known is None

    def _copy(self, model: PreTrainedModel, views: list[tuple[Tensor, Tensor]]) -> PreTrainedModel:
        """``views``: tensors of it, each with what is to take its place."""
        viewed, others = {id(tensor) for tensor, _ in views}, []
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in viewed:
                moved = torch.empty_like(tensor.detach(), device=self.device).copy_(tensor.detach())
                self._own.append(moved)
                others.append((tensor, moved))
        return copied(model, [*views, *others])

    def _free_own(self) -> None:
        for tensor in self._own:
            tensor.untyped_storage().resize_(0)
        self._own.clear()


def _become(weights: HostWeights, skeleton: Skeleton) -> None:
    """Have the host copy be a skeleton of its own tensors."""
    assert isinstance(weights.content, PreTrainedModel)
    for module in weights.content.modules():  # they refer to each other and would live on
        module._parameters.clear()
    weights.content = skeleton


def copied(model: PreTrainedModel, tensors: Iterable[tuple[Tensor, Tensor]]) -> PreTrainedModel:
    """Modules like those of ``model``, of other tensors: each with what is to take its place."""
    # deepcopy takes what `memo` holds for a tensor, so only the modules around them are copied,
    # and tied weights stay tied.
    memo: dict[int, Any] = {id(tensor): _as(tensor, other) for tensor, other in tensors}
    found: PreTrainedModel = copy.deepcopy(model, memo)
    return found


def _as(tensor: Tensor, other: Tensor) -> Tensor:
    """``other`` in the role of ``tensor``."""
    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other


def _tables(skeleton: Skeleton) -> list[RopeTable]:
    ropes = {id(layer.attention.rope): layer.attention.rope for layer in skeleton.layers}
    return [rope.table for rope in ropes.values()]
