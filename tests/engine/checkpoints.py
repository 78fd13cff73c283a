"""Tiny random checkpoints of many architectures, all with one small ChatML tokenizer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB = 384
EOS, BOS, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{%- for m in messages %}"
    "{%- if m.role not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' ~ m.role) }}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "A stop string may cross the border between two tokens.",
    "user assistant system one two three four five six seven eight nine ten",
]
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_WINDOW_THEN_FULL = ["sliding_attention", "full_attention"]


def hf() -> Any:
    """transformers, not before it is used: tests that are left out must not pay for it, and its
    classes are not typed well."""
    return importlib.import_module("transformers")


def tokenizer() -> Any:
    """A byte-level BPE of a few hundred tokens, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXT * 3, trainer)
    fast = hf().PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, additional_special_tokens=[BOS]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: hf().Qwen3Config(**_SIZES, head_dim=8),
    "llama": lambda: hf().LlamaConfig(**_SIZES),
    "qwen2": lambda: hf().Qwen2Config(**_SIZES),
    "mistral": lambda: hf().MistralConfig(**_SIZES, sliding_window=8),
    "gemma3": lambda: hf().Gemma3TextConfig(
        **_SIZES | {"num_hidden_layers": 6}, head_dim=8, sliding_window=8
    ),
    "gemma2": lambda: hf().Gemma2Config(
        **_SIZES, head_dim=8, sliding_window=8, attn_logit_softcapping=2.0
    ),
    "phi3": lambda: hf().Phi3Config(**_SIZES, pad_token_id=0),
    "gpt2": lambda: hf().GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": lambda: hf().GPTNeoXConfig(
        **_SIZES | {"num_key_value_heads": None}, rotary_pct=0.5
    ),
    "falcon": lambda: hf().FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512
    ),
    "mamba": lambda: hf().MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),
    "qwen3_moe": lambda: hf().Qwen3MoeConfig(
        **_SIZES, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "olmo2": lambda: hf().Olmo2Config(**_SIZES),
    "gpt_oss": lambda: hf().GptOssConfig(
        **_SIZES, head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "gemma": lambda: hf().GemmaConfig(**_SIZES, head_dim=8),
    "ministral": lambda: hf().MinistralConfig(
        **_SIZES, head_dim=8, sliding_window=8, layer_types=_WINDOW_THEN_FULL
    ),
    "olmo3": lambda: hf().Olmo3Config(**_SIZES, sliding_window=8, layer_types=_WINDOW_THEN_FULL),
    "olmoe": lambda: hf().OlmoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2),
    "seed_oss": lambda: hf().SeedOssConfig(**_SIZES, head_dim=8, attention_out_bias=True),
    "granite": lambda: hf().GraniteConfig(**_SIZES, residual_multiplier=0.5),
    "smollm3": lambda: hf().SmolLM3Config(**_SIZES, no_rope_layers=[1, 0]),
}


def _llama(**settings: Any) -> Callable[[], Any]:
    return lambda: hf().LlamaConfig(**_SIZES, **settings)


def _llama_rope(**parameters: Any) -> Callable[[], Any]:
    return _llama(rope_parameters={"rope_theta": 1e4, "factor": 4.0, **parameters})


VARIANTS: dict[str, Callable[[], Any]] = {
    "llama_biases": _llama(attention_bias=True, mlp_bias=True, head_dim=16),
    "llama_tied": _llama(tie_word_embeddings=True, hidden_act="gelu"),
    "llama_rope_linear": _llama_rope(rope_type="linear"),
    "llama_rope_yarn": _llama_rope(rope_type="yarn", original_max_position_embeddings=16),
    "llama_rope_llama3": _llama_rope(
        rope_type="llama3",
        original_max_position_embeddings=16,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
    "llama_rope_dynamic": _llama_rope(rope_type="dynamic"),
    "mistral_without_window": lambda: hf().MistralConfig(**_SIZES, sliding_window=None),
    "qwen2_windows": lambda: hf().Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3_moe_normalised": lambda: hf().Qwen3MoeConfig(
        **_SIZES,
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "phi3_partial": lambda: hf().Phi3Config(
        **_SIZES,
        pad_token_id=0,
        sliding_window=8,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
    ),
}
"""Of some of the architectures: what a checkpoint may have otherwise."""

FLAT = frozenset(ARCHITECTURES) - {"falcon", "mamba"}
"""Those that are expected to run as one flat batch (tier A)."""

WITHOUT_SKELETON = frozenset(
    {"falcon", "gpt2", "gpt_neox", "gpt_oss", "granite", "mamba", "smollm3", "llama_rope_dynamic"}
)
"""Those, of both tables, that are not the common decoder or do not stay within it."""


def write_checkpoint(directory: Path, architecture: str = "qwen3", *, seed: int = 0) -> Path:
    """A random model of float32 weights, large enough that its answers differ from each other."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    fast = tokenizer()
    config = (ARCHITECTURES | VARIANTS)[architecture]()
    config.vocab_size = VOCAB
    config.dtype = "float32"
    config.eos_token_id = fast.eos_token_id
    config.bos_token_id = None
    config.pad_token_id = fast.pad_token_id
    torch.manual_seed(seed)
    model = hf().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "conv" not in name:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": fast.eos_token_id, "do_sample": False})
    )
    return directory
