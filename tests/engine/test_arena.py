"""Skeletons in one flat range of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.forward.test_lean import READABLE, forward_of, model_of, plain, worst

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.arena import Layout
    from hotswap.engine.forward.skeleton import Skeleton

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


def skeleton_of(path: Path) -> Skeleton:
    from hotswap.engine.forward.reading import read

    return read(model_of(path))


def filled(layout: Layout) -> Tensor:
    """An arena whose other bytes would be seen."""
    import torch

    arena = torch.full((layout.size,), 0xFF, dtype=torch.uint8)
    for piece in layout.pieces:
        arena[piece.offset : piece.offset + len(piece.content)] = piece.content
    return arena


@pytest.mark.parametrize("architecture", READABLE)
def test_a_placed_skeleton_computes_what_the_model_does(
    checkpoint: Checkpoint, architecture: str
) -> None:
    """Not to the bit: a product of joined weights adds up in another order than its parts do."""
    import torch

    from hotswap.engine.arena import Layout

    model = model_of(checkpoint(architecture))
    layout = Layout.of(skeleton_of(checkpoint(architecture)))
    with torch.inference_mode():
        assert worst(forward_of(layout.place(filled(layout))), plain(model)) < 1e-4


@pytest.mark.parametrize("architecture", READABLE)
def test_pieces_lie_beside_each_other_and_fill_the_arena(
    checkpoint: Checkpoint, architecture: str
) -> None:
    from hotswap.engine.arena import ALIGNMENT, Layout

    layout = Layout.of(skeleton_of(checkpoint(architecture)))
    end = 0
    for piece in layout.pieces:
        assert end <= piece.offset < end + ALIGNMENT
        assert piece.offset % piece.tensor.element_size() == 0
        end = piece.offset + piece.tensor.nbytes
    assert end == layout.size


@pytest.mark.parametrize("architecture", ["qwen3", "llama_biases", "phi3", "qwen3_moe"])
def test_products_are_one_weight_of_their_parts(checkpoint: Checkpoint, architecture: str) -> None:
    import torch

    from hotswap.engine.arena import ALIGNMENT, Layout

    layout = Layout.of(skeleton_of(checkpoint(architecture)))
    arena = filled(layout)
    source, placed = layout.source.layers[1].attention, layout.place(arena).layers[1].attention
    for one, other in ((source.qkv, placed.qkv), (source.out, placed.out)):
        [(weight, bias)] = other.parts
        assert torch.equal(weight, torch.cat([w for w, _ in one.parts]))
        assert (weight.data_ptr() - arena.data_ptr()) % ALIGNMENT == 0
        biases = [b for _, b in one.parts if b is not None]
        assert (bias is None) == (not biases)
        assert bias is None or torch.equal(bias, torch.cat(biases))


def test_tied_weights_lie_in_one_place(checkpoint: Checkpoint) -> None:
    from hotswap.engine.arena import Layout

    tied, untied = (Layout.of(skeleton_of(checkpoint(n))) for n in ("llama_tied", "llama"))
    placed = tied.place(filled(tied))
    assert placed.head.parts[0][0].data_ptr() == placed.embedding.data_ptr()
    apart = untied.place(filled(untied))
    assert apart.head.parts[0][0].data_ptr() != apart.embedding.data_ptr()


def test_a_placed_skeleton_is_laid_out_as_what_it_was_made_of(checkpoint: Checkpoint) -> None:
    from hotswap.engine.arena import Layout

    layout = Layout.of(skeleton_of(checkpoint("llama_biases")))
    arena = filled(layout)
    again = Layout.of(layout.place(arena))
    assert again.size == layout.size
    assert len(again.pieces) < len(layout.pieces)
    assert {p.offset for p in again.pieces} < {p.offset for p in layout.pieces}
    assert all(p.tensor.data_ptr() == arena.data_ptr() + p.offset for p in again.pieces)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_layers_that_rotate_alike_share_a_table_of_the_arenas(
    checkpoint: Checkpoint, architecture: str
) -> None:
    import torch

    from hotswap.engine.arena import Layout
    from hotswap.engine.blueprint import with_tensors

    source = skeleton_of(checkpoint(architecture))
    layout = Layout.of(source)
    placed = layout.place(filled(layout))
    wanted, found = _ropes(source), _ropes(placed)
    assert len(found) == len(wanted) == (2 if architecture == "gemma3" else 1)
    for one, other in zip(wanted, found, strict=True):
        assert one is not other
        for left, right in zip(one.table(20), other.table(20), strict=True):
            assert torch.equal(left, right)
        kept = other.table(20)[0]
        other.table.close()
        assert not kept.untyped_storage().nbytes()
        assert one.table(20)[0].any(), "the host's own is as it was"
    same = with_tensors(source, lambda tensor: tensor)
    assert [id(rope) for rope in _ropes(same)] == [id(rope) for rope in wanted]


def _ropes(skeleton: Skeleton) -> list[Any]:
    ropes = {id(layer.attention.rope): layer.attention.rope for layer in skeleton.layers}
    return list(ropes.values())
