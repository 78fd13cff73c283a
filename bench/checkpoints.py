"""Writes random Qwen3 checkpoints to measure with: no network, no real weights.

    python -m bench.checkpoints [--models DIR] [tiny small q06 q8b]

Of each shape there are two, of different seeds, so that a server can be made to swap between
models of equal cost.

The output embedding of every token that is not a plain word is zero, and so is its logit, while
some word's is above it. Greedy decoding therefore never stops by itself and every token shows as
text: a stream has as many tokens as were asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

DEFAULT_MODELS = Path(tempfile.gettempdir()) / "hotswap-bench"
SEEDS = ("a", "b")
CONTEXT_TOKENS = 40960
TOKEN_IDS = range(1000, 20000)
"""Of plain text, in every checkpoint; to draw prompts from."""

_VOCABULARY = 32768
_TEXT_CHARACTERS = 6_000_000
_END, _START, _PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The fields of a `Qwen3Config` that set a model's size."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = True


SHAPES = {
    # 10 MB: all of it stays in the processor's cache, so what is around the matmuls counts.
    "tiny": Shape(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        vocab_size=_VOCABULARY,
    ),
    # 200 MB.
    "small": Shape(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=2048,
        vocab_size=_VOCABULARY,
    ),
    # 1.2 GB: Qwen3-0.6B.
    "q06": Shape(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
    ),
    # 16 GB: Qwen3-8B.
    "q8b": Shape(
        hidden_size=4096,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=12288,
        vocab_size=151936,
        tie_word_embeddings=False,
    ),
}


def checkpoint(models: Path, shape: str, seed: str = SEEDS[0]) -> Path:
    """The directory of a checkpoint, written first if it is not there."""
    path = models / f"{shape}-{seed}"
    if not path.exists():
        models.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=models))
        try:
            _write(partial, SHAPES[shape], seed, _tokenizer(models))
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _write(path: Path, shape: Shape, seed: str, tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab()
    end, pad = vocabulary[_END], vocabulary[_PAD]
    config = Qwen3Config(
        **asdict(shape),
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    weights = _random_weights(config, seed)
    output = "model.embed_tokens.weight" if shape.tie_word_embeddings else "lm_head.weight"
    weights[output][~_words(tokenizer, shape.vocab_size)] = 0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(path)
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=end, pad_token_id=pad, do_sample=False
    )
    greedy.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _random_weights(config: Qwen3Config, seed: str) -> dict[str, Tensor]:
    """Drawn on the GPU where there is one: 8 billion numbers take minutes otherwise."""
    with torch.device("meta"):
        skeleton = Qwen3ForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del skeleton["lm_head.weight"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    generator = torch.Generator(device).manual_seed(number)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        drawn = torch.randn(shape, generator=generator, device=device) * 0.02
        return drawn.to(torch.bfloat16).cpu()

    return {name: draw(name, tensor.shape) for name, tensor in skeleton.items()}


def _words(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Tensor:
    """[vocabulary], bool: tokens that are one plain word, with a space before it or without."""
    words = torch.zeros(vocab_size, dtype=torch.bool)
    for text, token in tokenizer.get_vocab().items():
        word = text.removeprefix("Ġ")
        words[token] = len(word) > 1 and word.isascii() and word.isalpha()
    return words


def _tokenizer(models: Path) -> PreTrainedTokenizerFast:
    """The one of a checkpoint that is there, or a new one: training takes half a minute."""
    for file in sorted(models.glob("*/tokenizer.json")):
        found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(file.parent)
        return found
    return _train_tokenizer()


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the sources of Python's standard library."""
    special = [_PAD, _START, _END]
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_standard_library(), trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_START],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def _standard_library() -> Iterator[str]:
    """Sources of modules in random order, until there is text enough."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(0).shuffle(sources)
    characters = 0
    for source in sources:
        if characters > _TEXT_CHARACTERS:
            return
        text = source.read_text("utf-8", "ignore")
        characters += len(text)
        yield text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", choices=list(SHAPES), default=["tiny", "small", "q06"])
    parser.add_argument("--models", type=Path, default=DEFAULT_MODELS, metavar="DIR")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        for seed in SEEDS:
            print(checkpoint(arguments.models, shape, seed))


if __name__ == "__main__":
    main()
