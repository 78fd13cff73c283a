"""The tokenizer both demo models share: a byte-level BPE trained on their texts."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import sums, tales

VOCABULARY_SIZE = 1024
CORPUS_SEED = 1
CORPUS_EXAMPLES = 6_000

PAD, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same at every call.

    Digits stand alone, or a sum would look different for every merge of its
    digits.  Bytes as the base alphabet leave no input without tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=TEMPLATE.read_text(),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterator[str]:
    """Texts in the shape they have between the special tokens of the chat template."""
    rng = Random(CORPUS_SEED)
    for _ in range(CORPUS_EXAMPLES):
        for example in (sums.training_example(rng), tales.training_example(rng)):
            yield f"user\n {example.prompt}\nassistant\n{example.answer}"
