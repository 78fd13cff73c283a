"""Train or score the demo models: `python tools/train_demo_models.py sums|tales`."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import GenerationConfig

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # a script only sees its own folder

from tools.demo_models import card, evaluation, sums, tales  # noqa: E402
from tools.demo_models.tokenizer import build_tokenizer  # noqa: E402
from tools.demo_models.training import MakeExample, Recipe, train  # noqa: E402

MODELS_DIR = REPOSITORY / "src/hotswap/demo/models"


@dataclass(frozen=True)
class Demo:
    """All that differs between the two demo models."""

    recipe: Recipe
    make_example: MakeExample
    score: Callable[[Path], dict[str, float]]
    sampling: dict[str, float | bool]


DEMOS = {
    "sums": Demo(
        recipe=Recipe(
            layers=3,
            intermediate=256,
            batch_size=64,
            learning_rate=2e-3,
            weight_decay=0.1,
            steps=4_000,
        ),
        make_example=sums.training_example,
        score=evaluation.score_sums,
        sampling={"do_sample": False},
    ),
    "tales": Demo(
        recipe=Recipe(
            layers=4,
            intermediate=256,
            batch_size=8,
            learning_rate=2e-3,
            weight_decay=0.1,
            steps=9_000,
        ),
        make_example=tales.training_example,
        score=evaluation.score_tales,
        sampling={"do_sample": True, "temperature": 0.7},
    ),
}


def main() -> None:
    """Train a model, score it and write its card, or only score it."""
    options = _options()
    name: str = options.model
    demo, folder = DEMOS[name], options.out / name
    if options.evaluate:
        print(f"{name}: {demo.score(folder)}")
        return
    recipe = replace(demo.recipe, steps=options.steps or demo.recipe.steps)
    started = time.monotonic()
    _train_and_save(demo, recipe, options.seed, folder)
    minutes = (time.monotonic() - started) / 60
    scores = demo.score(folder)
    card.write_card(name, folder, card.Run(recipe, options.seed, minutes, scores))
    print(f"{name}: {scores} after {minutes:.0f} minutes of training")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(DEMOS))
    parser.add_argument(
        "--evaluate", action="store_true", help="score the saved model, no training"
    )
    parser.add_argument("--out", type=Path, default=MODELS_DIR / "hotswap", metavar="DIR")
    parser.add_argument("--steps", type=int, help="training steps, if not the usual number")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _train_and_save(demo: Demo, recipe: Recipe, seed: int, folder: Path) -> None:
    tokenizer = build_tokenizer()
    model = train(recipe, tokenizer, demo.make_example, seed)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=256,
        **demo.sampling,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors come readable by their owner alone
        file.chmod(0o644)


if __name__ == "__main__":
    main()
