"""Tiny random embedding models, as sentence-transformers lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.engine.checkpoints import hf
from tests.engine.checkpoints import tokenizer as chat_tokenizer

WORDS = ("the", "a", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "cat", "##s", "!")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH = 32
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def word_tokenizer(padding_side: str = "right") -> Any:
    """Word pieces between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {token: number for number, token in enumerate((*_SPECIAL, *WORDS))}
    pieces = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=False)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    # As many files on the Hub: every text would be padded and cut to this length.
    pieces.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    pieces.enable_truncation(128)
    return hf().PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side=padding_side,
    )


def ending_tokenizer() -> Any:
    """The chat models' one, that also marks the end of a text, and pads before it."""
    from tokenizers import processors

    fast = chat_tokenizer()
    end = fast.pad_token
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B {end}",
        special_tokens=[(end, fast.convert_tokens_to_ids(end))],
    )
    return hf().PreTrainedTokenizerFast(
        tokenizer_object=fast.backend_tokenizer,
        eos_token=fast.eos_token,
        pad_token=end,
        padding_side="left",
    )


ARCHITECTURES: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "bert": (lambda: hf().BertConfig(**_SIZES, max_position_embeddings=64), word_tokenizer),
    "xlm_roberta": (
        lambda: hf().XLMRobertaConfig(**_SIZES, max_position_embeddings=66, pad_token_id=0),
        word_tokenizer,
    ),
    "mpnet": (
        lambda: hf().MPNetConfig(**_SIZES, max_position_embeddings=66, pad_token_id=0),
        word_tokenizer,
    ),
    "modernbert": (
        lambda: hf().ModernBertConfig(
            **_SIZES,
            max_position_embeddings=256,
            local_attention=8,
            global_attn_every_n_layers=2,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
        ),
        word_tokenizer,
    ),
    "nomic_bert": (
        lambda: hf().NomicBertConfig(**_SIZES, max_position_embeddings=64),
        word_tokenizer,
    ),
    "qwen3": (
        lambda: hf().Qwen3Config(
            **_SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=256
        ),
        ending_tokenizer,
    ),
}


def write_encoder(
    directory: Path,
    architecture: str = "bert",
    *,
    pooling: Mapping[str, Any] | None = None,
    modules: Sequence[str] = ("Normalize",),
    longest: int | None = None,
    seed: int = 0,
    causal_head: bool = False,
) -> Path:
    """A random model of float32 weights.

    Args:
        pooling: content of the pooling's configuration; None: no files of sentence-transformers.
        modules: what comes after the pooling.
        longest: tokens of a text, as sentence-transformers has it.
    """
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    make_config, make_tokenizer = ARCHITECTURES[architecture]
    fast, config = make_tokenizer(), make_config()
    config.vocab_size = 384 if architecture == "qwen3" else len(fast)
    config.dtype = "float32"
    torch.manual_seed(seed)
    auto = hf().AutoModelForCausalLM if causal_head else hf().AutoModel
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    if pooling is not None:
        write_modules(directory, pooling, modules, longest)
    return directory


def write_modules(
    directory: Path, pooling: Mapping[str, Any], modules: Sequence[str], longest: int | None
) -> None:
    import torch
    from safetensors.torch import save_file

    listed = [("Transformer", ""), ("Pooling", "1_Pooling")]
    listed += [(kind, f"{number}_{kind}") for number, kind in enumerate(modules, 2)]
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(listed)
    ]
    _write(directory / "modules.json", content)
    _write(directory / "1_Pooling" / "config.json", dict(pooling))
    _write(directory / "config_sentence_transformers.json", {"prompts": {}})
    if longest is not None:
        _write(directory / "sentence_bert_config.json", {"max_seq_length": longest})
    for kind, path in listed:
        if kind == "Dense":
            config = {"in_features": WIDTH, "out_features": 16, "bias": True}
            activation = "torch.nn.modules.activation.Tanh"
            _write(directory / path / "config.json", config | {"activation_function": activation})
            torch.manual_seed(1)
            tensors = {"linear.weight": torch.randn(16, WIDTH), "linear.bias": torch.randn(16)}
            save_file(tensors, directory / path / "model.safetensors")


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def plain_vectors(directory: Path, texts: Sequence[Sequence[int]], pooling: str) -> Any:
    """float32 [texts, WIDTH], of length 1: one text after the other through transformers."""
    import torch

    model = hf().AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for ids in texts:
            hidden = model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
            pooled = {
                "cls": hidden[0],
                "mean": hidden.mean(0),
                "max": hidden.amax(0),
                "lasttoken": hidden[-1],
            }
            vectors.append(pooled[pooling] / pooled[pooling].norm())
    return torch.stack(vectors)
