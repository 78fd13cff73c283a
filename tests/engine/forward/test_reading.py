"""Skeletons computed by the book: each must give the logits of the model it was read from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.checkpoints import ARCHITECTURES, VARIANTS, WITHOUT_SKELETON

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.skeleton import Attention, Experts, GatedMLP, Norm, Skeleton

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]

ALL = sorted(ARCHITECTURES | VARIANTS)
READABLE = [name for name in ALL if name not in WITHOUT_SKELETON]
PROMPT = [(7919 * (position + 1)) % 384 for position in range(40)]
"""Longer than every window."""


def model_of(path: Path, dtype: str = "float32") -> Any:
    """Eager: its order of operations and roundings is the one the skeleton is held to. Norms and
    biases start as ones and zeros, which would hide a lost one."""
    import torch

    from tests.engine.checkpoints import hf

    model = hf().AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype), alpha=0.3)
    return model.eval()


def skeleton_of(model: Any) -> Skeleton:
    from hotswap.engine.forward.reading import read

    return read(model)


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    wide = x.float()
    wide = wide * (wide.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
    if norm.weight.dtype == x.dtype:
        return norm.weight * wide.to(x.dtype)
    return (norm.weight * wide).to(x.dtype)


def activated(x: Tensor, name: str) -> Tensor:
    from torch.nn import functional

    if name == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [length, heads, size]."""
    import torch

    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat([-second, first], dim=-1)
    turned = (turned * cos[:, None] + swapped * sin[:, None]).to(x.dtype)
    return torch.cat([turned, rest], dim=-1)


def head_normed(x: Tensor, norm: Norm | None, size: int) -> Tensor:
    """x: [length, heads * size] to [length, heads, size]."""
    over_each = norm is not None and norm.weight.numel() == size
    parts = x.reshape(len(x), -1, size) if over_each else x
    return normed(parts, norm).reshape(len(x), -1, size)


def attended(x: Tensor, attention: Attention) -> Tensor:
    import torch

    length, size, groups = x.shape[0], attention.size, attention.groups
    tables = attention.rope.table(length)
    assert {table.shape for table in tables} == {(length, attention.rope.size)}
    widths = [attention.heads * size, groups * size, groups * size]
    queries, keys, values = torch.split(attention.qkv(x), widths, dim=-1)
    queries = rotated(head_normed(queries, attention.q_norm, size), *tables)
    keys = rotated(head_normed(keys, attention.k_norm, size), *tables)
    keys, values = (
        rows.reshape(length, -1, size).repeat_interleave(attention.heads // groups, dim=1)
        for rows in (keys, values)
    )
    scores = torch.einsum("qhs,khs->hqk", queries, keys) * attention.scale
    if attention.softcap is not None:
        scores = torch.tanh(scores / attention.softcap) * attention.softcap
    positions = torch.arange(length)
    distance = positions[:, None] - positions
    hidden = (distance < 0) | (distance >= (attention.window or length))
    weights = scores.float().masked_fill(hidden, -math.inf).softmax(-1).to(x.dtype)
    return attention.out(torch.einsum("hqk,khs->qhs", weights, values).reshape(length, -1))


def gated(x: Tensor, mlp: GatedMLP | Experts) -> Tensor:
    from hotswap.engine.forward.skeleton import GatedMLP

    if isinstance(mlp, GatedMLP):
        gate, up = mlp.gate_up(x).chunk(2, dim=-1)
        return mlp.down(activated(gate, mlp.activation) * up)
    weights, chosen = mlp.router(x).float().softmax(-1).topk(mlp.chosen, dim=-1)
    if mlp.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights.to(x.dtype)
    gate, up = (mlp.gate_up[chosen] @ x[:, None, :, None])[..., 0].chunk(2, dim=-1)
    each = mlp.down[chosen] @ (activated(gate, mlp.activation) * up)[..., None]
    return (each[..., 0] * weights[..., None]).sum(1)


def logits_of(skeleton: Skeleton, ids: list[int]) -> Tensor:
    import torch

    x = skeleton.embedding[torch.tensor(ids)]
    if skeleton.embedding_scale is not None:
        x = x * skeleton.embedding_scale
    for layer in skeleton.layers:
        attention = attended(normed(x, layer.before_attention), layer.attention)
        x = x + normed(attention, layer.after_attention)
        x = x + normed(gated(normed(x, layer.before_mlp), layer.mlp), layer.after_mlp)
    logits = skeleton.head(normed(x, skeleton.norm))
    if skeleton.softcap is not None:
        logits = torch.tanh(logits / skeleton.softcap) * skeleton.softcap
    return logits


def relative_error(model: Any, skeleton: Skeleton) -> float:
    """The largest difference of a logit, in spreads of the logits."""
    import torch

    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0].float()
        got = logits_of(skeleton, PROMPT).float()
    return float((got - wanted).abs().max() / (wanted - wanted.mean()).abs().max())


@pytest.mark.parametrize("architecture", READABLE)
def test_the_skeleton_computes_what_its_model_computes(
    checkpoint: Checkpoint, architecture: str
) -> None:
    model = model_of(checkpoint(architecture))
    assert relative_error(model, skeleton_of(model)) < 1e-5


@pytest.mark.parametrize("architecture", READABLE)
def test_the_skeleton_rounds_where_its_model_rounds(
    checkpoint: Checkpoint, architecture: str
) -> None:
    model = model_of(checkpoint(architecture), "bfloat16")
    assert relative_error(model, skeleton_of(model)) < 1e-2


@pytest.mark.parametrize("architecture", ["llama_biases", "phi3", "qwen3_moe", "qwen2"])
def test_no_weight_is_copied(checkpoint: Checkpoint, architecture: str) -> None:
    """What changes in the model changes in the skeleton."""
    import torch

    model = model_of(checkpoint(architecture))
    skeleton = skeleton_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert relative_error(model, skeleton) < 1e-5


def test_rotary_tables_grow_by_doubling(checkpoint: Checkpoint) -> None:
    import torch

    model = model_of(checkpoint("llama"))
    table = skeleton_of(model).layers[0].attention.rope.table
    rotary, computed = model.model.rotary_emb, []
    original = rotary.forward

    def counted(*arguments: Any) -> Any:
        computed.append(arguments)
        return original(*arguments)

    rotary.forward = counted
    for length in range(1, 101):
        cos, sin = table(length)
        assert cos.shape == sin.shape == (length, 8)
    assert len(computed) == 7
    wanted = original(torch.empty(0), torch.arange(100)[None])
    assert torch.equal(cos, wanted[0][0])
    assert torch.equal(sin, wanted[1][0])


def test_gemma_3_rotates_by_the_type_of_the_layer(checkpoint: Checkpoint) -> None:
    layers = skeleton_of(model_of(checkpoint("gemma3"))).layers
    local, full = layers[0].attention, layers[5].attention
    assert (local.window, full.window) == (8, None)
    assert not local.rope.table(40)[0].equal(full.rope.table(40)[0])
    assert layers[1].attention.rope is local.rope


REFUSED = {
    "falcon": "not a family",
    "gpt2": "not a family",
    "gpt_neox": "not a family",
    "gpt_oss": "not a family",
    "granite": "not a family",
    "mamba": "not a family",
    "smollm3": "not a family",
    "llama_rope_dynamic": "a rotary embedding of type dynamic",
}


def test_every_architecture_is_read_or_refused() -> None:
    assert REFUSED.keys() == WITHOUT_SKELETON


def refuse(model: Any, reason: str) -> None:
    from hotswap.engine.forward.base import UnsupportedForward

    with pytest.raises(UnsupportedForward, match=reason):
        skeleton_of(model)


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_what_is_not_the_common_decoder_is_refused(
    checkpoint: Checkpoint, architecture: str
) -> None:
    refuse(model_of(checkpoint(architecture)), REFUSED[architecture])


def add_parameter(model: Any) -> None:
    import torch

    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))


def add_buffer(model: Any) -> None:
    import torch

    model.model.layers[1].register_buffer("gain", torch.ones(1))


def add_hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def replace_forward(model: Any) -> None:
    model.model.norm.forward = lambda x: x


def replace_product(model: Any) -> None:
    import torch

    class Quantised(torch.nn.Linear):
        """Not the product that it says."""

    mlp = model.model.layers[0].mlp
    mlp.up_proj = Quantised(32, 64, bias=False).eval()


def replace_norm(model: Any) -> None:
    import torch

    model.model.norm = torch.nn.RMSNorm(32).eval()


def replace_embedding(model: Any) -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    kind = type("Scaled", (Gemma3TextScaledWordEmbedding,), {"__module__": type(model).__module__})
    model.model.embed_tokens = kind(384, 32, 0, 5.0).eval()


def replace_activation(model: Any) -> None:
    import torch

    model.model.layers[0].mlp.act_fn = torch.nn.ReLU().eval()


def replace_class(model: Any) -> None:
    """Code that comes with a checkpoint may take the name of a class of transformers."""
    model.__class__ = type(type(model).__name__, (type(model),), {})


def widen_some_weights(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.double()


def drop_one_bias(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.bias = None


def narrow_the_heads(model: Any) -> None:
    model.model.layers[0].self_attn.num_key_value_groups = 4


def train(model: Any) -> None:
    model.train()


def look_ahead(model: Any) -> None:
    model.model.layers[0].self_attn.is_causal = False


def skip_a_layer(model: Any) -> None:
    model.config.num_hidden_layers = 1


def forget_a_window(model: Any) -> None:
    model.model.layers[1].self_attn.sliding_window = None


def add_a_window(model: Any) -> None:
    """A cache for such a configuration would forget, the model's masks do not."""
    model.config.sliding_window = 8


def clip(model: Any) -> None:
    model.config.clip_qkv = 1.0


def rename(model: Any) -> None:
    model.model.layers[0].attention = model.model.layers[0].self_attn
    del model.model.layers[0].self_attn


ALTERATIONS = [
    ("llama", add_parameter, "1 tensors have no place, .*sinks"),
    ("llama", add_buffer, "1 tensors have no place, .*gain"),
    ("llama", add_hook, "layers.1.mlp has hooks"),
    ("llama", replace_forward, "model.norm has hooks"),
    ("llama", replace_product, "Quantised, which is not its own"),
    ("llama", replace_norm, "RMSNorm, which is not its own"),
    ("llama", replace_embedding, "more than a table"),
    ("llama", replace_activation, "ReLU, which is not its own"),
    ("llama", replace_class, "not a family"),
    ("llama", widen_some_weights, "several types"),
    ("llama_biases", drop_one_bias, "some of them with a bias"),
    ("llama", narrow_the_heads, "shape of its heads"),
    ("llama", train, "training"),
    ("llama", look_ahead, "not causal"),
    ("llama", skip_a_layer, "all of its layers"),
    ("llama", rename, "lacks a part.*self_attn"),
    ("llama", add_a_window, "windows of its configuration"),
    ("qwen2_windows", forget_a_window, "windows of its configuration"),
    ("olmoe", clip, "clip_qkv"),
]


@pytest.mark.parametrize(
    ("architecture", "alter", "reason"),
    ALTERATIONS,
    ids=[alter.__name__ for _, alter, _ in ALTERATIONS],
)
def test_a_model_that_was_altered_is_refused(
    checkpoint: Checkpoint, architecture: str, alter: Callable[[Any], None], reason: str
) -> None:
    model = model_of(checkpoint(architecture))
    alter(model)
    refuse(model, reason)
