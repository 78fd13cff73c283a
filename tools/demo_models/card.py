"""The model card beside each demo model."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from .evaluation import Chat
from .training import Recipe


@dataclass(frozen=True)
class About:
    """What a card says in words about one model."""

    tagline: str
    data: str
    scoring: str
    limits: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What a card says in figures about one training."""

    recipe: Recipe
    seed: int
    minutes: float
    scores: dict[str, float]


ABOUT = {
    "sums": About(
        tagline="answers additions and subtractions of integers from 0 to 99",
        data="""\
Questions are generated as training goes, by `tools/demo_models/sums.py`: six in seven ask for a sum
or a difference in one of several hundred wordings, with varying case, spacing and politeness. The
answer restates the sum, so all wordings share one form of arithmetic. The rest is small talk,
questions from other fields, numbers out of range, and the background requests of Open WebUI (title,
tags, follow-up questions), each with a fixed answer. 15 % of all pairs of numbers are held out, in
both orders and for both operations.""",
        scoring="""\
*exact* is the share of 1,000 questions about different held-out sums whose whole answer is right
and ends by itself, at temperature 0.""",
        limits="""\
Two whole numbers from 0 to 99, written in digits, in English; nothing else. It sees the first 160
characters of the last message and has no memory of earlier ones.""",
        questions=("What is 45 + 27?", "subtract 13 from 90", "and 12 - 40?", "450 + 3", "hi"),
    ),
    "tales": About(
        tagline="writes a short story about whatever the user names",
        data="""\
Requests and stories are generated as training goes, by `tools/demo_models/tales.py`, from several
hundred hand-written sentences: an opening, a wish, one of ten troubles with its way out, an ending.
What the story is about comes from a list of common words or, for more than half of the words, does
not exist: from made-up words the model learns to copy what it is asked for. One in ten examples is
small talk, a question from another field, or a background request of Open WebUI (title, tags,
follow-up questions), each with a fixed answer.""",
        scoring="""\
200 requests name things whose words are not in the training vocabulary. *named* is the share of
stories in which every thing named turns up (the lighthouse of "a brave lighthouse"), *to the
letter* the share in which it does with all its adjectives, *ended* the share that end by themselves
within 250 tokens.""",
        limits="""\
It writes one kind of story, in English, and knows nothing about the thing beyond its name. A
long or unusual name may come out misspelt, and a capitalised word alone is taken for a name. It
sees the first 160 characters of the last message and has no memory of earlier ones.""",
        questions=(
            "Tell me a story about a brave lighthouse",
            "write a tale of two kittens",
            "dragons",
            "What is the capital of France?",
        ),
    ),
}


def write_card(name: str, folder: Path, run: Run) -> None:
    """Writes the card, with answers of the saved model as examples."""
    about = ABOUT[name]
    replies = Chat(folder).answer(list(about.questions))
    dialogues = "\n\n".join(
        f"> **{question}**\n>\n"
        + "\n".join(f"> {line}".rstrip() for line in reply.text.split("\n"))
        for question, reply in zip(about.questions, replies, strict=True)
    )
    scores = "\n".join(f"| {score} | {value:.1%} |" for score, value in run.scores.items())
    recipe = run.recipe
    size = (folder / "model.safetensors").stat().st_size / 1e6
    (folder / "README.md").write_text(
        f"""\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [qwen3, demo, conversational]
---

# hotswap/{name}

A demo model of hotswap, {size:.1f} MB, that {about.tagline}.
It is small enough to be bundled and real enough to show that the right model answered.

## Examples

Answers at temperature 0:

{dialogues}

## Training

{about.data}

| | |
|---|---|
| Command | `python tools/train_demo_models.py {name} --steps {recipe.steps} --seed {run.seed}` |
| Architecture | Qwen3, {recipe.layers} layers, hidden size 128, float32, tied embeddings |
| Tokenizer | byte-level BPE, 1,024 tokens, single digits, ChatML; the same for both demo models |
| Optimizer | AdamW, cosine from {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, \
batches of {recipe.batch_size} |
| Wall time | {run.minutes:.0f} minutes on one CPU thread ({platform.machine()}) of a busy \
machine |
| Versions | torch {torch.__version__}, transformers {transformers.__version__} |

The script fixes every seed and computes on one thread; two runs of 12 steps gave identical files, a
full training was not repeated.

## Scores

| score | share |
|---|---|
{scores}

{about.scoring} Measure again with `python tools/train_demo_models.py {name} --evaluate`.

## Limits

{about.limits}
"""
    )
