"""Small random skeletons, and steps of them computed twice: by torch, and by the compiled loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hotswap.engine.blocks import BlockTable
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.layout import in_order
from tests.engine.checkpoints import VOCAB
from tests.engine.forward.test_lean import forward_of

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.skeleton import Skeleton

EXPERTS = frozenset({"olmoe", "qwen3_moe", "qwen3_moe_normalised"})
"""Architectures and variants with the skeleton that the loops do not compute."""
LOGITS = {"float32": 1e-4, "bfloat16": 6e-2}
"""How far logits may be from those of torch, as a part of the largest, centred."""
STORED = {"float32": 1e-5, "bfloat16": 6e-2}
"""The same of keys and values."""

MATRICES_FROM = 5
PROMPT_TOKENS = 64
"""So that tests see both sides of each."""

Part = tuple[int, int, int]
"""Sequence, first position, one after the last."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    dtype: str = "float32"
    layers: int = 2
    width: int = 64
    inner: int = 96
    heads: int = 4
    groups: int = 2
    size: int = 32
    """Of a head."""
    vocab: int = VOCAB

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.groups) * self.size


def skeleton_of(sizes: Sizes) -> Skeleton:
    """Random weights."""
    import torch

    from hotswap.engine.forward.linear import Linear
    from hotswap.engine.forward.skeleton import Attention, GatedMLP, Layer, Norm, Rope, Skeleton

    dice, dtype = torch.Generator().manual_seed(sizes.size), getattr(torch, sizes.dtype)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice)

    def linear(rows: int, width: int) -> Linear:
        return Linear([((random(rows, width) * 1.5 / width**0.5).to(dtype), None)])

    def norm() -> Norm:
        return Norm((1 + 0.1 * random(sizes.width)).to(dtype), 1e-6)

    class Turns:
        def __call__(self, length: int) -> tuple[Tensor, Tensor]:
            speeds = 100.0 ** (-torch.arange(sizes.size // 2) / (sizes.size // 2))
            angles = (torch.arange(length)[:, None] * speeds).repeat(1, 2)
            return angles.cos().to(dtype), angles.sin().to(dtype)

        def on(self, _: torch.device) -> Turns:
            return self

        def close(self) -> None:
            """It keeps nothing."""

    rope = Rope(Turns(), sizes.size)

    def layer() -> Layer:
        return Layer(
            attention=Attention(
                qkv=linear(sizes.qkv_rows, sizes.width),
                out=linear(sizes.width, sizes.heads * sizes.size),
                heads=sizes.heads,
                groups=sizes.groups,
                size=sizes.size,
                scale=sizes.size**-0.5,
                rope=rope,
            ),
            mlp=GatedMLP(
                gate_up=linear(2 * sizes.inner, sizes.width),
                down=linear(sizes.width, sizes.inner),
                activation="silu",
            ),
            before_attention=norm(),
            after_attention=None,
            before_mlp=norm(),
            after_mlp=None,
        )

    return Skeleton(
        embedding=random(sizes.vocab, sizes.width).to(dtype),
        embedding_scale=None,
        layers=tuple(layer() for _ in range(sizes.layers)),
        norm=norm(),
        head=linear(sizes.vocab, sizes.width),
        softcap=None,
    )


def with_attention(skeleton: Skeleton, **fields: Any) -> Skeleton:
    """With other fields of every layer's attention."""
    layers = (
        replace(layer, attention=replace(layer.attention, **fields)) for layer in skeleton.layers
    )
    return replace(skeleton, layers=tuple(layers))


# -- sequences -----------------------------------------------------------------------------------


def ids_of(part: Part) -> list[int]:
    """Some tokens or other, different in each sequence."""
    number, start, end = part
    return [(7919 * (position + 1) + 31 * number) % VOCAB for position in range(start, end)]


def scattered(count: int, blocks: int) -> list[BlockTable]:
    """Tables of so many blocks each, hardly two of them neighbours in the pool."""
    total, tables = count * blocks, []
    step = next(n for n in range(total * 2 // 5 + 1, 2 * total) if _coprime(n, total))
    for number in range(count):
        table = BlockTable()
        table.extend([(number * blocks + i) * step % total for i in range(blocks)])
        tables.append(table)
    return tables


def in_one_piece(count: int, blocks: int) -> list[BlockTable]:
    """Tables of so many neighbouring blocks each."""
    tables = [BlockTable() for _ in range(count)]
    for number, table in enumerate(tables):
        table.extend(range(number * blocks, (number + 1) * blocks))
    return tables


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def segments_of(
    tables: Sequence[BlockTable], parts: Iterable[Part], *, samples: bool = True
) -> list[Segment]:
    """In the order in which the runner hands them on."""
    return in_order(
        Segment(part[0], ids_of(part), part[1], samples, tables[part[0]]) for part in parts
    )


class Beside:
    """The operations of torch and the loops on one pool."""

    def __init__(self, skeleton: Skeleton, tables: Sequence[BlockTable]) -> None:
        from hotswap.engine.native.forward import NativeForward
        from hotswap.engine.native.tuning import Tuning

        self.tables = tables
        self.lean = forward_of(skeleton, sum(len(table.blocks) for table in tables))
        self.native = NativeForward(skeleton, self.lean.pool, Tuning(MATRICES_FROM, PROMPT_TOKENS))
        self._dtype = str(skeleton.embedding.dtype).removeprefix("torch.")

    def begin(self, *lengths: int) -> None:
        """Have torch compute so many tokens of each sequence."""
        import torch

        parts = [(number, 0, length) for number, length in enumerate(lengths) if length]
        if not parts:
            return
        with torch.inference_mode():
            self.lean.logits(segments_of(self.tables, parts))

    def step(self, *parts: Part) -> None:
        """A step of these parts, all of which sample; see `compare`."""
        self.compare(segments_of(self.tables, parts))

    def compare(self, segments: Sequence[Segment]) -> None:
        """Compute a step both ways. What is in the pool after it is the loops' work."""
        import torch

        before = self.stored()
        with torch.inference_mode():
            wanted = self.lean.logits(segments).float()
            wanted_stored = self.stored()
            self._restore(before)
            got = self.native.logits(segments).clone()
        assert got.shape == wanted.shape
        assert got.dtype == torch.float32
        assert difference(got, wanted) <= LOGITS[self._dtype]
        for pool, wanted_pool in zip(self.stored(), wanted_stored, strict=True):
            scale = float(wanted_pool.abs().max())
            assert float((pool - wanted_pool).abs().max()) <= STORED[self._dtype] * scale
        likeliest = self.native.highest(segments)
        if likeliest is not None:
            assert likeliest.tolist() == firsts_of_the_largest(got)

    def stored(self) -> list[Tensor]:
        """Keys and values of all layers, float32 [groups, slots, size]."""
        return [pool.float() for pair in self._pools() for pool in pair]

    def _restore(self, stored: list[Tensor]) -> None:
        pools = [pool for pair in self._pools() for pool in pair]
        for pool, before in zip(pools, stored, strict=True):
            pool.copy_(before)

    def _pools(self) -> list[tuple[Tensor, Tensor]]:
        skeleton, pool = self.lean.skeleton, self.lean.pool
        found = []
        for index, layer in enumerate(skeleton.layers):
            attention = layer.attention
            like = skeleton.embedding.new_empty(1, attention.groups, attention.size)
            found.append(pool.layer(index, like, like))
        return found


def difference(got: Tensor, wanted: Tensor) -> float:
    """The largest of a logit, as a part of its row's largest, centred."""
    if not len(wanted):
        return 0.0
    scale = (wanted - wanted.mean(-1, keepdim=True)).abs().amax(-1, keepdim=True)
    return float(((got - wanted).abs() / scale).max())


def firsts_of_the_largest(logits: Tensor) -> list[int]:
    return [int((row == row.max()).nonzero()[0]) for row in logits]
