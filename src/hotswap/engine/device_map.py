"""Which part of a model lies where when it does not fit one device: a pure function of the sizes of
its modules and of the memory that is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from hotswap.engine.device import shown_bytes
from hotswap.errors import CheckpointRefused, InsufficientMemory

HOST = "cpu"
Place = int | str
"""The number of a device, or `HOST`, as accelerate has them."""
K = TypeVar("K")

DEVICE_RESERVE_BYTES = 512 << 20
"""Of each device, for what is computed there, beside weights, keys and values. Not measured: no GPU
has run it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    places: Mapping[str, Place]
    """By the names of modules, and of tensors that belong to a module which is divided itself."""
    bytes: Mapping[Place, int]
    """Of weights that lie there."""
    fetched_bytes: int
    """Of the largest module on the host: the first device has it while it computes with it."""
    layers: Mapping[int, float]
    """Which share of the layers each device computes; there are their keys and values."""

    def place_of(self, name: str, *, is_buffer: bool) -> Place:
        """Where a tensor of the model lies."""
        return _place_of(self.places, name, is_buffer=is_buffer)


def divide(model: PreTrainedModel, free: Sequence[int], kv_bytes: int) -> DeviceMap:
    """
    Args:
        model: Only its modules and the sizes of its tensors matter; it may be on the meta device.
        free: Bytes of each device. The first one also computes with what lies on the host.
        kv_bytes: Keys and values to leave room for.

    Raises:
        CheckpointRefused: its code does not say how it may be divided.
        InsufficientMemory: the first device has no room for what it has to fetch.
    """
    if not model._no_split_modules:
        name = type(model).__name__
        raise CheckpointRefused(f"{name} cannot be spread: it does not say where to divide it.")
    rooms = [max(0, count - DEVICE_RESERVE_BYTES) for count in free]
    found = _found(model, _budgets(model, rooms, kv_bytes))
    lacking = found.bytes.get(0, 0) + found.fetched_bytes - rooms[0]
    if lacking > 0:
        raise InsufficientMemory(
            f"The device has {shown_bytes(free[0])} free, and {shown_bytes(lacking)} more are "
            "needed to bring the layers that stay in host memory there, one after the other."
        )
    return found


def kv_limit(rooms: Mapping[K, int], shares: Mapping[K, float]) -> int:
    """Bytes that keys and values may take in all.

    Args:
        rooms: Bytes that each device has for them.
        shares: Which part of them lies on each device.
    """
    limits = (int(rooms[place] / share) for place, share in shares.items() if share)
    return max(0, min(limits, default=max(rooms.values())))


def model_bytes(model: PreTrainedModel) -> int:
    return sum(tensor.nbytes for _, tensor, _ in named_tensors(model))


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, bool]]:
    """Each tensor once, with whether it is a buffer. Tied ones have the first of their names."""
    for name, parameter in model.named_parameters():
        yield name, parameter, False
    for name, buffer in model.named_buffers():
        yield name, buffer, True


def _budgets(model: PreTrainedModel, rooms: Sequence[int], kv_bytes: int) -> list[int]:
    """Bytes of weights that each device may have, so that beside them it has room for the keys and
    values of the layers that it computes. The first one has those of the layers on the host, too.
    """
    layers = sum(_bytes_of(layer) for _, layer in _named_layers(model))
    beside = kv_bytes / (layers or model_bytes(model))  # a byte of weights
    away = max(0.0, model_bytes(model) * (1 + beside) - sum(rooms))
    first, *others = rooms
    first -= int(min(kv_bytes, away * beside))
    return [int(max(0, room) / (1 + beside)) for room in (first, *others)]


def _found(model: PreTrainedModel, budgets: Sequence[int]) -> DeviceMap:
    """Balanced between the devices, if all of it fits there."""
    # accelerate leaves room for a fetched layer on the first device, also where none is fetched,
    # but not beside the last one.
    most = model_bytes(model) - (budgets[0] < model_bytes(model))
    roomy = [min(budgets[0] + _largest_block(model), most), *budgets[1:]]
    for budget, balanced in ((roomy, True), (roomy, False)):
        found = _described(model, _inferred(model, budget, balanced=balanced))
        if HOST not in found.bytes and found.bytes.get(0, 0) <= budgets[0]:
            return found
    return _described(model, _inferred(model, budgets, balanced=False))


def _inferred(
    model: PreTrainedModel, budgets: Sequence[int], *, balanced: bool
) -> Mapping[str, Place]:
    # The host has it all already; accelerate leaves room for a layer there, too.
    memory: dict[Place, int] = {**dict(enumerate(budgets)), HOST: 2 * model_bytes(model)}
    whole = list(model._no_split_modules or ())
    if balanced:
        memory = get_balanced_memory(model, memory, no_split_module_classes=whole)
    found: Mapping[str, Place] = infer_auto_device_map(
        model,
        max_memory=memory,
        no_split_module_classes=whole,
        clean_result=False,
        offload_buffers=True,  # they are not, but it only warns of them; `divide` counts them
    )
    return found


def _largest_block(model: PreTrainedModel) -> int:
    """Of the parts that are not divided, in bytes."""
    whole = set(model._no_split_modules or ())
    return max(
        _bytes_of(module)
        for module in model.modules()
        if type(module).__name__ in whole or not list(module.children())
    )


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _described(model: PreTrainedModel, found: Mapping[str, Place]) -> DeviceMap:
    # Buffers of a module that is divided are in no map of accelerate's.
    others = [name for name, _, _ in named_tensors(model) if _holder(found, name) is None]
    places: dict[str, Place] = {**dict.fromkeys(others, 0), **found}
    lying, fetched = Counter[Place](), Counter[str]()
    for name, tensor, is_buffer in named_tensors(model):
        place = _place_of(places, name, is_buffer=is_buffer)
        lying[place] += tensor.nbytes
        if place == HOST:
            fetched[name.rpartition(".")[0]] += tensor.nbytes
    return DeviceMap(
        places=places,
        bytes=dict(lying),
        fetched_bytes=max(fetched.values(), default=0),
        layers=_layers(model, places),
    )


def _place_of(places: Mapping[str, Place], name: str, *, is_buffer: bool) -> Place:
    """accelerate fetches the parameters of whole modules only; the rest lies where it is computed
    with."""
    holder = _holder(places, name)
    assert holder is not None
    place = places[holder]
    return 0 if place == HOST and (is_buffer or holder == name) else place


def _layers(model: PreTrainedModel, places: Mapping[str, Place]) -> Mapping[int, float]:
    computing = Counter[int]()
    for name, _ in _named_layers(model):
        holder = _holder(places, name)
        place = HOST if holder is None else places[holder]
        computing[place if isinstance(place, int) else 0] += 1  # the first one fetches
    count = computing.total()
    return {place: n / count for place, n in computing.items()} if count else {0: 1.0}


def _named_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Those of a list of modules that are not divided."""
    whole = set(model._no_split_modules or ())
    for name, module in model.named_modules():
        if type(module).__name__ in whole and name.rpartition(".")[2].isdigit():
            yield name, module


def _holder(places: Mapping[str, Place], name: str) -> str | None:
    """What of ``places`` the module or the tensor of that name is, or is part of."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return name if name in places else None
