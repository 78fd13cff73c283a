"""The decoder skeleton of a transformers model: which parts it has, and where its weights are.

Only families of `FAMILIES` are read: what a model does with its weights stands in its code, and a
short prompt does not show all of it (positions that change the temperature, attention in chunks).
A row says what the code of a family does; the modules say the rest, and whatever they hold that
nobody asked for is a reason to refuse.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, GELUTanh, SiLUActivation

from hotswap.engine.forward.base import UnsupportedForward
from hotswap.engine.forward.flat import expected_windows
from hotswap.engine.forward.linear import Linear
from hotswap.engine.forward.skeleton import (
    Attention,
    Experts,
    GatedMLP,
    Layer,
    Norm,
    Rope,
    Skeleton,
)


class NormStyle(Enum):
    ROUNDED = "weight * x.to(dtype)"
    EXACT = "(weight * x).to(dtype)"
    ONE_PLUS = "((1 + weight) * x).to(dtype)"


@dataclass(frozen=True, slots=True)
class Norms:
    """The names of a layer's norms; "" where there is none."""

    before_attention: str = ""
    after_attention: str = ""
    before_mlp: str = ""
    after_mlp: str = ""


_BEFORE = Norms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
_AFTER = Norms(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
_AROUND = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the code of a family does, as far as its modules do not tell."""

    norms: Norms = _BEFORE
    style: NormStyle = NormStyle.ROUNDED
    windows: bool = False
    """Its masks obey a sliding window."""
    scaled_embedding: bool = False
    attention_softcap: bool = False
    logits_softcap: bool = False
    unset: tuple[str, ...] = ()
    """Settings that would make it something else than the skeleton."""


FAMILIES = {
    "GemmaForCausalLM": Family(style=NormStyle.ONE_PLUS, scaled_embedding=True),
    "Gemma2ForCausalLM": Family(
        norms=_AROUND,
        style=NormStyle.ONE_PLUS,
        windows=True,
        scaled_embedding=True,
        attention_softcap=True,
        logits_softcap=True,
    ),
    # Gemma 3 has a setting for a soft-cap of its attention, and does not use it.
    "Gemma3ForCausalLM": Family(
        norms=_AROUND,
        style=NormStyle.ONE_PLUS,
        windows=True,
        scaled_embedding=True,
        logits_softcap=True,
    ),
    "LlamaForCausalLM": Family(),
    "MinistralForCausalLM": Family(windows=True),
    "MistralForCausalLM": Family(windows=True),
    "Olmo2ForCausalLM": Family(norms=_AFTER, style=NormStyle.EXACT),
    "Olmo3ForCausalLM": Family(norms=_AFTER, style=NormStyle.EXACT, windows=True),
    "OlmoeForCausalLM": Family(unset=("clip_qkv",)),
    "Phi3ForCausalLM": Family(windows=True),
    "Qwen2ForCausalLM": Family(windows=True),
    "Qwen3ForCausalLM": Family(windows=True),
    "Qwen3MoeForCausalLM": Family(windows=True),
    "SeedOssForCausalLM": Family(),
}
"""By the name of the model's class in transformers."""

_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose table is the same whatever the length of a sequence."""

_PLAIN_MODULES = frozenset({nn.Linear, nn.Embedding, nn.ModuleList, nn.Dropout})
_ACTIVATIONS: dict[type[nn.Module], str] = {
    SiLUActivation: "silu",
    nn.SiLU: "silu",
    GELUActivation: "gelu",
    GELUTanh: "gelu_tanh",
}


def read(model: PreTrainedModel) -> Skeleton:
    """The skeleton, which holds the model's own tensors and no copies of them (except for some
    weights of norms, folded in float32).

    Raises:
        UnsupportedForward: the model is something else, or more, than the skeleton can say.
    """
    family = FAMILIES.get(type(model).__name__)
    if family is None or not type(model).__module__.startswith("transformers.models."):
        raise UnsupportedForward(f"{type(model).__name__} is not a family that is known")
    _refuse_altered(model)
    try:
        return _Reader(model, family).skeleton()
    except AttributeError as error:  # transformers renames parts now and then
        raise UnsupportedForward(f"it lacks a part: {error}") from error


def _refuse_altered(model: PreTrainedModel) -> None:
    """The family's row holds only for modules as the family's own code defines them."""
    own = type(model).__module__
    for name, module in model.named_modules():
        kind = type(module)
        if not (kind in _PLAIN_MODULES or kind in _ACTIVATIONS or kind.__module__ == own):
            raise UnsupportedForward(f"{name} is a {kind.__qualname__}, which is not its own")
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise UnsupportedForward(f"{name or 'the model'} has hooks")
        if module.training:
            raise UnsupportedForward("the model is in training mode")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            raise UnsupportedForward(f"{name} is not a plain tensor")
        if parameter.dtype != model.dtype or not parameter.is_floating_point():
            raise UnsupportedForward("the weights are of several types")


class _RopeTable:
    """What the model's rotary module answers for the positions from 0 on, kept."""

    def __init__(self, rotary: Any, layer_type: tuple[str, ...], like: Tensor) -> None:
        self._rotary = rotary
        self._layer_type = layer_type
        self._like = like.new_empty(0)
        self._cos, self._sin = self._compute(1)

    def __call__(self, length: int) -> tuple[Tensor, Tensor]:
        if length > self._cos.shape[0]:
            self._cos, self._sin = self._compute(max(length, 2 * self._cos.shape[0]))
        return self._cos[:length], self._sin[:length]

    def on(self, device: torch.device) -> _RopeTable:
        # What it computes is small, and no two devices round alike: so it is not copied.
        config = self._rotary.config
        rotary = copy.deepcopy(self._rotary, {id(config): config}).to(device)
        return _RopeTable(rotary, self._layer_type, self._like.to(device))

    def close(self) -> None:
        for tensor in (*self._rotary.buffers(), self._cos, self._sin):
            tensor.untyped_storage().resize_(0)

    def _compute(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self._like.device)[None]
        cos, sin = self._rotary(self._like, positions, *self._layer_type)
        return cos[0], sin[0]


class _Reader:
    """Takes a model apart, and remembers what it has taken."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self._whole = model
        self._model: Any = model
        self._config: Any = model.config.get_text_config(decoder=True)
        self._family = family
        self._taken: set[int] = set()
        self._windows = expected_windows(model)
        self._ropes: dict[tuple[str, ...], Rope] = {}

    def skeleton(self) -> Skeleton:
        for name in self._family.unset:
            if getattr(self._config, name, None):
                raise UnsupportedForward(f"its configuration sets {name}")
        decoder = self._model.model
        layers = tuple(self._layer(index, layer) for index, layer in enumerate(decoder.layers))
        if len(layers) != self._config.num_hidden_layers:
            raise UnsupportedForward("it does not run all of its layers")
        skeleton = Skeleton(
            embedding=self._take(decoder.embed_tokens, "weight"),
            embedding_scale=self._embedding_scale(),
            layers=layers,
            norm=self._norm(decoder.norm),
            head=self._linear(self._model.lm_head),
            softcap=self._config.final_logit_softcapping if self._family.logits_softcap else None,
        )
        if skeleton.head.width != skeleton.embedding.shape[1]:
            raise UnsupportedForward("its head does not have the width of its embedding")
        self._refuse_leftovers()
        return skeleton

    def _embedding_scale(self) -> Tensor | None:
        embedding = self._model.model.embed_tokens
        if not self._family.scaled_embedding:
            if type(embedding) is not nn.Embedding:
                raise UnsupportedForward("an embedding that is more than a table")
            return None
        if not isinstance(getattr(embedding, "embed_scale", None), Tensor):
            raise UnsupportedForward("an embedding that is scaled in another way")
        return self._take(embedding, "embed_scale").to(embedding.weight.dtype)

    def _layer(self, index: int, layer: Any) -> Layer:
        names = self._family.norms
        return Layer(
            attention=self._attention(index, layer.self_attn),
            mlp=self._experts(layer.mlp) if hasattr(layer.mlp, "experts") else self._mlp(layer.mlp),
            before_attention=self._named_norm(layer, names.before_attention),
            after_attention=self._named_norm(layer, names.after_attention),
            before_mlp=self._named_norm(layer, names.before_mlp),
            after_mlp=self._named_norm(layer, names.after_mlp),
        )

    def _attention(self, index: int, attention: Any) -> Attention:
        if not attention.is_causal:
            raise UnsupportedForward("attention that is not causal")
        size = attention.head_dim
        out = self._linear(attention.o_proj)
        qkv, heads, groups = self._qkv(attention, out.width, size)
        rope = self._rope(index)
        if rope.size > size:
            raise UnsupportedForward("rotary positions wider than a head")
        return Attention(
            qkv=qkv,
            out=out,
            heads=heads,
            groups=groups,
            size=size,
            scale=float(attention.scaling),
            rope=rope,
            q_norm=self._head_norm(attention, "q_norm", heads, size),
            k_norm=self._head_norm(attention, "k_norm", groups, size),
            window=self._window(index, attention),
            softcap=attention.attn_logit_softcapping if self._family.attention_softcap else None,
        )

    def _qkv(self, attention: Any, width: int, size: int) -> tuple[Linear, int, int]:
        """The product, the number of heads and that of heads of keys and values."""
        if hasattr(attention, "qkv_proj"):
            qkv = self._linear(attention.qkv_proj)
        else:
            qkv = self._linear(attention.q_proj, attention.k_proj, attention.v_proj)
            if attention.k_proj.out_features != attention.v_proj.out_features:
                raise UnsupportedForward("keys and values of different sizes")
            if attention.q_proj.out_features != width:
                raise UnsupportedForward("queries and values of different sizes")
        heads, rest = divmod(width, size)
        groups, odd = divmod(qkv.rows - width, 2 * size)
        if rest or odd or groups < 1 or heads != groups * attention.num_key_value_groups:
            raise UnsupportedForward("attention whose weights do not have the shape of its heads")
        return qkv, heads, groups

    def _head_norm(self, attention: Any, name: str, heads: int, size: int) -> Norm | None:
        if not hasattr(attention, name):
            return None
        norm = self._norm(getattr(attention, name))
        if norm.weight.shape not in ((size,), (heads * size,)):
            raise UnsupportedForward(f"a {name} of another width")
        return norm

    def _window(self, index: int, attention: Any) -> int | None:
        """What the layer's mask obeys, where the layer, the configuration and its cache agree."""
        window: int | None = None
        if self._family.windows:
            of_all = getattr(self._config, "sliding_window", None)
            window = getattr(attention, "sliding_window", of_all)
        if window != self._windows.get(index):
            raise UnsupportedForward("layers that do not obey the windows of its configuration")
        return window

    def _rope(self, index: int) -> Rope:
        rotary = self._model.model.rotary_emb
        layer_type: tuple[str, ...] = ()
        rope_type = rotary.rope_type
        if isinstance(rope_type, dict):
            layer_type = (self._config.layer_types[index],)
            rope_type = rope_type.get(layer_type[0])
        if rope_type not in _ROPE_TYPES:
            raise UnsupportedForward(f"a rotary embedding of type {rope_type}")
        if layer_type not in self._ropes:
            for name, _ in rotary.named_buffers():
                self._take(rotary, name)
            table = _RopeTable(rotary, layer_type, self._model.model.embed_tokens.weight)
            self._ropes[layer_type] = Rope(table, table(1)[0].shape[-1])
        return self._ropes[layer_type]

    def _mlp(self, mlp: Any) -> GatedMLP:
        fused = hasattr(mlp, "gate_up_proj")
        gate_up = (mlp.gate_up_proj,) if fused else (mlp.gate_proj, mlp.up_proj)
        read = GatedMLP(
            gate_up=self._linear(*gate_up),
            down=self._linear(mlp.down_proj),
            activation=_activation(mlp.activation_fn if fused else mlp.act_fn),
        )
        if read.gate_up.rows != 2 * read.down.width:
            raise UnsupportedForward("a gate that is not as wide as what it gates")
        return read

    def _experts(self, mlp: Any) -> Experts:
        router, experts = mlp.gate, mlp.experts
        read = Experts(
            router=Linear([(self._take(router, "weight"), None)]),
            gate_up=self._take(experts, "gate_up_proj"),
            down=self._take(experts, "down_proj"),
            chosen=router.top_k,
            normalised=bool(router.norm_topk_prob),
            activation=_activation(experts.act_fn),
        )
        count, hidden, width = read.down.shape
        shapes = (read.router.rows, read.router.width, *read.gate_up.shape)
        if shapes != (count, hidden, count, 2 * width, hidden):
            raise UnsupportedForward("experts whose weights are laid out in another way")
        return read

    def _named_norm(self, layer: Any, name: str) -> Norm | None:
        return self._norm(getattr(layer, name)) if name else None

    def _norm(self, norm: Any) -> Norm:
        eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        weight = self._take(norm, "weight")
        with torch.no_grad():
            if self._family.style is NormStyle.ONE_PLUS:
                weight = 1.0 + weight.float()
            elif self._family.style is NormStyle.EXACT:
                weight = weight.float()
        return Norm(weight, float(eps))

    def _linear(self, *modules: Any) -> Linear:
        for module in modules:
            if type(module) is not nn.Linear:
                raise UnsupportedForward(f"a {type(module).__name__} in the place of a product")
        if len({module.in_features for module in modules}) > 1:
            raise UnsupportedForward("products that belong together and differ in width")
        if len({module.bias is None for module in modules}) > 1:
            raise UnsupportedForward("products that belong together, some of them with a bias")
        return Linear(
            [
                (
                    self._take(module, "weight"),
                    None if module.bias is None else self._take(module, "bias"),
                )
                for module in modules
            ]
        )

    def _take(self, module: nn.Module, name: str) -> Tensor:
        tensor: Tensor = getattr(module, name)
        self._taken.add(id(tensor))
        return tensor

    def _refuse_leftovers(self) -> None:
        tensors = chain(self._whole.named_parameters(), self._whole.named_buffers())
        left = [name for name, tensor in tensors if id(tensor) not in self._taken]
        if left:
            raise UnsupportedForward(f"{len(left)} tensors have no place, {left[0]} among them")


def _activation(module: nn.Module) -> str:
    name = _ACTIVATIONS.get(type(module))
    if name is None:
        raise UnsupportedForward(f"the activation {type(module).__name__}")
    return name
