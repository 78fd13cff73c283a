"""A model whose parts lie on several devices and on the host, where accelerate's hooks bring
together what is computed with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import Tensor
from transformers import PreTrainedModel

from hotswap.engine.device import wait_for
from hotswap.engine.device_map import HOST, DeviceMap, named_tensors
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.placement import copied
from hotswap.engine.weights import HostWeights


class Spread:
    """`hotswap.engine.placement.Placement`. Copies of modules, whose tensors on devices are copies
    as well; those on the host are the host copy's own. What lies there is brought to the first
    device, module by module, whenever it is computed with."""

    kind = "spread"
    whole = False

    def __init__(
        self, weights: HostWeights, device_map: DeviceMap, devices: Sequence[torch.device]
    ) -> None:
        """
        Args:
            devices: What the numbers of the map mean.

        Raises:
            torch.OutOfMemoryError: what was placed by then is free again.
        """
        assert isinstance(weights.content, PreTrainedModel), "it was read to be spread"
        self.device = devices[0]
        self.vocab = weights.vocab
        self._host = weights.content
        self._map = device_map
        self._devices = devices
        self._model: PreTrainedModel | None = None
        self._own: list[Tensor] = []
        try:
            self._put()
        except BaseException:
            self.leave()
            raise

    @property
    def model(self) -> PreTrainedModel:
        assert self._model is not None
        return self._model

    @property
    def skeleton(self) -> None:
        """It runs in modules."""

    @property
    def bytes_on(self) -> Mapping[str, int]:
        found = Counter[str]()
        for place, count in self._map.bytes.items():
            found[str(self._device_of(place))] += count
        return dict(found)

    @property
    def fetched_bytes(self) -> int:
        """Of the first device, for what is brought there while it is computed with."""
        return self._map.fetched_bytes

    def take_on(self, _: Skeleton) -> None:
        raise AssertionError("a model that is spread has no skeleton")

    def settle(self) -> None:
        for device in self._devices:
            wait_for(device)

    def leave(self) -> None:
        model, self._model = self._model, None
        mine = self._own
        if model is not None:  # a forward that failed leaves behind what it had fetched
            mine = [*mine, *_not_of(self._host, model)]
        for tensor in mine:
            tensor.untyped_storage().resize_(0)
        self._own = []
        if model is not None:
            _take_apart(model)

    def _put(self) -> None:
        placed = [
            (tensor, self._placed(name, tensor, is_buffer))
            for name, tensor, is_buffer in named_tensors(self._host)
        ]
        self._model = copied(self._host, placed)
        dispatch_model(
            self._model,
            {name: self._device_of(place) for name, place in self._map.places.items()},
            main_device=self.device,
            skip_keys=self._model._skip_keys_device_placement,
            force_hooks=True,
        )

    def _placed(self, name: str, tensor: Tensor, is_buffer: bool) -> Tensor:
        place = self._map.place_of(name, is_buffer=is_buffer)
        if place == HOST:
            return tensor.detach()
        there = torch.empty_like(tensor.detach(), device=self._device_of(place))
        self._own.append(there)
        return there.copy_(tensor.detach())

    def _device_of(self, place: int | str) -> torch.device | str:
        """As accelerate takes it: "cpu" is what has to be fetched, a device never is."""
        return self._devices[place] if isinstance(place, int) else place


def _not_of(host: PreTrainedModel, model: PreTrainedModel) -> list[Tensor]:
    """Tensors of ``model`` that have memory of their own."""
    shared = {tensor.untyped_storage().data_ptr() for _, tensor, _ in named_tensors(host)}
    return [
        tensor
        for _, tensor, _ in named_tensors(model)
        if tensor.device.type != "meta" and tensor.untyped_storage().data_ptr() not in shared
    ]


def _take_apart(model: PreTrainedModel) -> None:
    """Modules with hooks refer to themselves and would live on, with the host's tensors."""
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        vars(module).pop("forward", None)
        module._parameters.clear()
        module._buffers.clear()
