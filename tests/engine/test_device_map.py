"""Which part of a model goes where, on devices that are made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hotswap.errors import CheckpointRefused, InsufficientMemory
from tests.engine.checkpoints import hf

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hotswap.engine.device_map import DeviceMap

pytestmark = pytest.mark.torch

LAYERS = 10


def made(architecture: str = "llama", **settings: Any) -> PreTrainedModel:
    """Without weights: ten layers of 1 MB, and as much again for each of embedding and head."""
    import torch

    config = hf().AutoConfig.for_model(
        architecture,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=2048,
        **settings,
    )
    with torch.device("meta"):
        model: PreTrainedModel = hf().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def divided(model: PreTrainedModel, *megabytes: float, kv: float = 0) -> DeviceMap:
    """On devices that have so much beside their reserve."""
    from hotswap.engine.device_map import DEVICE_RESERVE_BYTES, divide

    free = [DEVICE_RESERVE_BYTES + int(size * 1e6) for size in megabytes]
    return divide(model, free, int(kv * 1e6))


def places_of_layers(model: PreTrainedModel, found: DeviceMap) -> list[Any]:
    """Of each layer in order; none is divided."""
    from hotswap.engine.device_map import named_tensors

    places: list[set[Any]] = [set() for _ in range(LAYERS)]
    for name, _, is_buffer in named_tensors(model):
        if ".layers." in name:
            number = int(name.split(".layers.")[1].split(".")[0])
            places[number].add(found.place_of(name, is_buffer=is_buffer))
    assert all(len(place) == 1 for place in places)
    return [place for [place] in places]


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}])
def test_devices_that_have_room_for_all_of_it_share_it_evenly(settings: dict[str, Any]) -> None:
    from hotswap.engine.device_map import model_bytes

    model = made(**settings)
    found = divided(model, 10, 10)
    assert set(found.bytes) == {0, 1}
    assert sum(found.bytes.values()) == model_bytes(model)
    assert found.fetched_bytes == 0
    assert found.bytes[0] == pytest.approx(found.bytes[1], abs=3.2e6)
    places = places_of_layers(model, found)
    assert places == sorted(places)
    assert 3 <= places.count(0) <= 7
    assert found.layers == {0: places.count(0) / LAYERS, 1: places.count(1) / LAYERS}


def test_what_devices_have_no_room_for_stays_on_the_host_and_is_brought_to_the_first() -> None:
    from hotswap.engine.device_map import HOST

    model = made()
    found = divided(model, 4, 4)
    assert set(found.bytes) == {0, 1, HOST}
    places = places_of_layers(model, found)
    assert places == sorted(places, key=[0, 1, HOST].index)
    assert 0 < found.fetched_bytes <= 2048 * 128 * 4
    on_host = places.count(HOST)
    assert found.layers == {
        0: pytest.approx((places.count(0) + on_host) / LAYERS),
        1: pytest.approx(places.count(1) / LAYERS),
    }


@pytest.mark.parametrize("kv", [0, 1, 2, 6])
@pytest.mark.parametrize("megabytes", [(14,), (9, 6), (6, 5), (4, 30), (30, 2), (8, 3, 3), (8,)])
def test_what_lies_on_a_device_leaves_room_for_the_keys_of_its_layers(
    megabytes: tuple[float, ...], kv: float
) -> None:
    """If there is any for them, once a layer has been fetched."""
    from hotswap.engine.device_map import kv_limit

    found = divided(made(), *megabytes, kv=kv)
    left = {n: int(size * 1e6) - found.bytes.get(n, 0) for n, size in enumerate(megabytes)}
    left[0] -= found.fetched_bytes
    assert min(left.values()) >= 0
    assert kv_limit(left, found.layers) >= kv * 1e6


def test_a_device_that_is_full_has_nothing_of_it() -> None:
    found = divided(made(), 0, 30)
    assert set(found.bytes) == {1}
    assert found.layers == {1: 1.0}


def test_no_device_keeps_what_fits_on_the_others() -> None:
    """Even shares would leave some of it on the host."""
    from hotswap.engine.device_map import HOST

    for first in (12.55, 12, 11):
        assert HOST not in divided(made(), first, 3).bytes


def test_tied_weights_lie_in_one_place() -> None:
    model = made(tie_word_embeddings=True)
    for megabytes in ((6, 9), (3, 3), (4,)):
        found = divided(model, *megabytes)
        ends = ("model.embed_tokens.weight", "lm_head.weight")
        assert len({found.place_of(name, is_buffer=False) for name in ends}) == 1


def test_buffers_lie_where_they_are_computed_with() -> None:
    from hotswap.engine.device_map import HOST, named_tensors

    model = made()
    found = divided(model, 2.5)
    assert found.bytes[HOST] > found.bytes[0]
    buffers = [name for name, _, is_buffer in named_tensors(model) if is_buffer]
    assert buffers
    assert {found.place_of(name, is_buffer=True) for name in buffers} == {0}


def test_a_device_without_room_for_a_single_layer_is_told_how_much_it_lacks() -> None:
    with pytest.raises(InsufficientMemory, match=r"1019\.2 KiB more are needed"):
        divided(made(), 0.005)


def test_a_model_that_does_not_say_where_it_may_be_divided_is_refused() -> None:
    model = made()
    model._no_split_modules = None
    with pytest.raises(CheckpointRefused, match="LlamaForCausalLM cannot be spread"):
        divided(model, 4, 4)


@pytest.mark.parametrize(
    ("rooms", "shares", "limit"),
    [
        ({0: 100, 1: 100}, {0: 0.5, 1: 0.5}, 200),
        ({0: 100, 1: 100}, {0: 0.8, 1: 0.2}, 125),
        ({0: 100, 1: 0}, {0: 1.0, 1: 0.0}, 100),
        ({0: 100, 1: 0}, {0: 0.9, 1: 0.1}, 0),
        ({0: -5}, {0: 1.0}, 0),
        ({0: 70, 1: 100}, {}, 100),
    ],
)
def test_the_device_that_is_full_first_ends_what_keys_may_take(
    rooms: dict[int, int], shares: dict[int, float], limit: int
) -> None:
    from hotswap.engine.device_map import kv_limit

    assert kv_limit(rooms, shares) == limit
