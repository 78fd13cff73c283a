"""Logits of the flat list of operations, in steps of all kinds, beside those of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.engine.blocks import BlockPool, BlockTable
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.layout import in_order
from tests.engine.checkpoints import ARCHITECTURES, VARIANTS, VOCAB, WITHOUT_SKELETON

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.lean import LeanForward
    from hotswap.engine.forward.linear import Linear
    from hotswap.engine.forward.skeleton import Skeleton

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]

READABLE = sorted((ARCHITECTURES | VARIANTS).keys() - WITHOUT_SKELETON)
LENGTH = 40
"""Longer than every window."""
SEQUENCES = 4
STEPS = [
    [(0, 0, 17), (1, 0, 9)],
    [(0, 17, 18), (1, 9, 26), (2, 0, 20)],
    [(0, 18, 19), (1, 26, 27), (2, 20, 21)],
    [(0, 19, 20), (3, 0, 38)],
    *([(0, 20 + i, 21 + i), (1, 27 + i, 28 + i), (2, 21 + i, 22 + i)] for i in range(13)),
    [(3, 38, 39), (2, 34, 40), (1, 40, 40)],
    [(3, 39, 40)],
]
"""As (sequence, first position, one after the last)."""


def model_of(path: Path, dtype: str = "float32") -> Any:
    import torch

    from tests.engine.checkpoints import hf

    model = hf().AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    return model.eval()


def forward_of(skeleton: Skeleton, blocks: int = 16) -> LeanForward:
    import torch

    from hotswap.engine.forward.lean import LeanForward
    from hotswap.engine.kv_pool import KVPool

    forward = LeanForward(skeleton, KVPool(torch.device("cpu"), 1))
    forward.reserve(blocks)
    return forward


def lean(model: Any) -> LeanForward:
    from hotswap.engine.forward.reading import read

    return forward_of(read(model))


def prompt(number: int) -> list[int]:
    return [(7919 * (position + 1) + 31 * number) % VOCAB for position in range(LENGTH)]


def plain(model: Any) -> list[Tensor]:
    """Logits of each sequence, [positions, vocab]."""
    import torch

    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([prompt(n)]), use_cache=False).logits[0].float()
            for n in range(SEQUENCES)
        ]


class Stepping:
    """Sequences that go through steps, and how far their logits are from those of the model."""

    def __init__(self, forward: LeanForward, wanted: list[Tensor]) -> None:
        self.forward = forward
        self.wanted = wanted
        pool = BlockPool(forward.pool.slots // 16)
        self.tables = [BlockTable() for _ in range(SEQUENCES)]
        for table in self.tables:
            assert pool.grow(table, LENGTH)

    def step(self, parts: list[tuple[int, int, int]], *, samples: bool = True) -> float:
        """The largest difference of a logit, in spreads of the logits."""
        import torch

        segments = in_order(
            Segment(number, prompt(number)[start:end], start, samples, self.tables[number])
            for number, start, end in parts
        )
        with torch.inference_mode():
            logits = self.forward.logits(segments)
        sampled = [segment for segment in segments if segment.samples]
        assert logits.shape == (len(sampled), VOCAB)
        worst = 0.0
        for segment, got in zip(sampled, logits, strict=True):
            wanted = self.wanted[segment.sequence][segment.start + len(segment.ids) - 1]
            scale = (wanted - wanted.mean()).abs().max()
            worst = max(worst, float((got.float() - wanted).abs().max() / scale))
        return worst


def worst(forward: LeanForward, wanted: list[Tensor]) -> float:
    stepping = Stepping(forward, wanted)
    steps = [[part for part in step if part[1] < part[2]] for step in STEPS]
    return max(stepping.step(step) for step in steps)


@pytest.mark.parametrize("architecture", READABLE)
def test_steps_of_all_kinds_give_the_logits_of_the_model(
    checkpoint: Checkpoint, architecture: str
) -> None:
    model = model_of(checkpoint(architecture))
    assert worst(lean(model), plain(model)) < 1e-4


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "llama_biases", "olmo2", "qwen3_moe"])
def test_half_precision_is_about_right(checkpoint: Checkpoint, architecture: str) -> None:
    model = model_of(checkpoint(architecture), "bfloat16")
    assert worst(lean(model), plain(model)) < 6e-2


def test_a_chunk_in_the_middle_of_a_prompt_gives_no_logits(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint("mistral"))
    stepping = Stepping(lean(model), plain(model))
    for start in range(0, 30, 10):
        stepping.step([(0, start, start + 10)], samples=False)
    assert stepping.step([(0, 30, 40), (1, 0, 5)]) < 1e-4


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_a_step_that_samples_nothing_reads_no_head_and_stores_all_keys(
    checkpoint: Checkpoint, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine.forward.linear import Linear

    called: list[Linear] = []
    product = Linear.__call__

    def noted(self: Linear, x: Tensor) -> Tensor:
        called.append(self)
        return product(self, x)

    model = model_of(checkpoint(architecture))
    forward = lean(model)
    stepping = Stepping(forward, plain(model))
    monkeypatch.setattr(Linear, "__call__", noted)
    segments = [
        Segment(number, prompt(number)[:20], 0, False, stepping.tables[number])
        for number in range(2)
    ]
    with torch.inference_mode():
        logits = forward.logits(segments)
    assert (logits.shape, logits.dtype) == ((0, VOCAB), torch.float32)
    qkv = [layer.attention.qkv for layer in forward.skeleton.layers]
    assert [linear for linear in called if linear in qkv] == qkv
    assert forward.skeleton.head not in called
    assert stepping.step([(0, 20, 21), (1, 20, 30)]) < 1e-4
    assert forward.skeleton.head in called


# -- the pool --------------------------------------------------------------------------------


def test_closing_frees_the_pool(checkpoint: Checkpoint) -> None:
    forward = lean(model_of(checkpoint("qwen3")))
    Stepping(forward, plain(model_of(checkpoint("qwen3")))).step([(0, 0, 5)])
    # 2 layers x (keys + values) x 2 heads x 8 x float32
    assert forward.pool.token_bytes == 256
    forward.close()
    assert forward.pool.token_bytes == 0
