"""Tier S: the decoder skeleton computed as one flat list of operations, without any modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from hotswap.engine.forward.attention import FlatStep
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.scores import AttentionOptions
from hotswap.engine.forward.skeleton import (
    Attention,
    Experts,
    GatedMLP,
    Layer,
    Norm,
    Rope,
    Skeleton,
)
from hotswap.engine.kv_pool import KVPool

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines of a step's positions, each [tokens, 1, rotary size]."""


class LeanForward:
    """One forward a step, whatever the mix of prompts and decoding sequences."""

    tier = "S"
    chunked = True

    def __init__(self, skeleton: Skeleton, pool: KVPool) -> None:
        self.pool = pool
        self.skeleton = skeleton
        self._attentions = [_SelfAttention(i, x.attention) for i, x in enumerate(skeleton.layers)]

    def reserve(self, blocks: int) -> None:
        self.pool.resize(blocks)

    def grow(self, blocks: int) -> None:
        self.pool.grow(blocks)

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        self.pool.copy(blocks)

    def drop(self, sequence: int) -> None:
        """Everything is in the blocks."""

    def rest(self) -> None:
        """Stop what runs between steps. What is in the pool stays."""

    def wake(self) -> None:
        """Be ready for steps again."""

    def close(self) -> None:
        self.pool.close()
        self._attentions.clear()  # they have weights of their own

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        skeleton = self.skeleton
        step = FlatStep(self.pool, segments, skeleton.embedding.device)
        x = F.embedding(step.ids if ids is None else ids, skeleton.embedding)
        if skeleton.embedding_scale is not None:
            x *= skeleton.embedding_scale
        rotations: dict[int, Rotation] = {}
        *layers, final = zip(skeleton.layers, self._attentions, strict=True)
        for layer, attention in layers:
            x = _mixed(x, layer, attention(_norm(x, layer.before_attention), step, rotations))
        layer, attention = final
        attended = attention(_norm(x, layer.before_attention), step, rotations)
        if step.sampled is not None:
            if not len(step.sampled):  # keys and values are stored, and that is all
                return x.new_empty(0, skeleton.head.rows)
            x, attended = x[step.sampled], attended[step.sampled]
        logits = skeleton.head(_norm(_mixed(x, layer, attended), skeleton.norm))
        if skeleton.softcap is not None:
            logits = torch.tanh(logits / skeleton.softcap) * skeleton.softcap
        return logits


def _mixed(x: Tensor, layer: Layer, attended: Tensor) -> Tensor:
    """What a layer makes of its input and of what its heads saw."""
    x = x + _norm(layer.attention.out(attended), layer.after_attention)
    return x + _norm(_mlp(_norm(x, layer.before_mlp), layer.mlp), layer.after_mlp)


def _norm(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    weight = norm.weight
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, norm.eps)
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, norm.eps).to(x.dtype)


class _SelfAttention:
    """One layer's attention without its output projection."""

    def __init__(self, index: int, data: Attention) -> None:
        self._index = index
        self._data = data
        self._options = AttentionOptions(data.scale, data.window, data.softcap)
        self._head_weight = _head_weight(data)

    def __call__(self, x: Tensor, step: FlatStep, rotations: dict[int, Rotation]) -> Tensor:
        """x [tokens, hidden] to what the heads saw, [tokens, heads * size]."""
        data, tokens = self._data, x.shape[0]
        turned = data.heads + data.groups
        heads = data.qkv(x).view(tokens, turned + data.groups, data.size)
        if id(data.rope) not in rotations:
            rotations[id(data.rope)] = _rotation(data.rope, step)
        rotated = _rotated(self._normed(heads[:, :turned]), *rotations[id(data.rope)])
        query, key = rotated[:, : data.heads], rotated[:, data.heads :]
        out = step.attend(self._index, query, key, heads[:, turned:], self._options)
        return out.reshape(tokens, -1)

    def _normed(self, heads: Tensor) -> Tensor:
        """Queries and keys, [tokens, heads + groups, size]."""
        data, weight = self._data, self._head_weight
        if weight is not None and data.q_norm is not None:
            x = heads.to(weight.dtype)
            return (F.rms_norm(x, (data.size,), None, data.q_norm.eps) * weight).to(heads.dtype)
        if data.q_norm is None and data.k_norm is None:
            return heads
        parts = heads[:, : data.heads], heads[:, data.heads :]
        normed = [
            _norm(part.flatten(1), norm).view(part.shape)
            for part, norm in zip(parts, (data.q_norm, data.k_norm), strict=True)
        ]
        return torch.cat(normed, dim=1)


def _head_weight(data: Attention) -> Tensor | None:
    """Weights of norms over each head, [heads + groups, size]; None: there are none."""
    norms = data.q_norm, data.k_norm
    if any(norm is None or norm.weight.shape != (data.size,) for norm in norms):
        return None
    counts = data.heads, data.groups
    return torch.cat(
        [n.weight.expand(count, -1) for n, count in zip(norms, counts, strict=True) if n]
    )


def _rotation(rope: Rope, step: FlatStep) -> Rotation:
    cosines, sines = (table[step.positions][:, None] for table in rope.table(step.longest))
    sines[..., : rope.size // 2].neg_()
    return cosines, sines


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x [tokens, heads, size], its first entries turned: the halves of them are the two
    coordinates."""
    size = cosines.shape[-1]
    part = x[..., :size].to(cosines.dtype)
    turned = torch.addcmul(part * cosines, part.roll(size // 2, -1), sines).to(x.dtype)
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], dim=-1)


def _mlp(x: Tensor, mlp: GatedMLP | Experts) -> Tensor:
    if isinstance(mlp, Experts):
        return _experts(x, mlp)
    return mlp.down(_gated(mlp.gate_up(x), mlp.activation))


def _gated(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return _ACTIVATIONS[activation](gate) * up


def _experts(x: Tensor, mlp: Experts) -> Tensor:
    """Each token goes through the experts that its router scores highest."""
    shares, chosen = mlp.router(x).softmax(-1, dtype=torch.float32).topk(mlp.chosen, dim=-1)
    if mlp.normalised:
        shares /= shares.sum(-1, keepdim=True)
    shares = shares.to(x.dtype)
    out = torch.zeros_like(x)
    for expert in sorted(set(chosen.flatten().tolist())):
        tokens, rank = (chosen == expert).nonzero(as_tuple=True)
        inner = _gated(F.linear(x[tokens], mlp.gate_up[expert]), mlp.activation)
        share = shares[tokens, rank][:, None]
        out.index_add_(0, tokens, F.linear(inner, mlp.down[expert]) * share)
    return out
