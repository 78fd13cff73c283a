"""The two demo models bundled with hotswap, `hotswap/sums` and `hotswap/tales`.

They are complete Hugging Face model directories made by
`tools/train_demo_models.py`.  Each lies at `MODELS_DIR / <model name>`, so the
folder can be scanned like any other folder of models.
"""

from pathlib import Path

MODELS_DIR: Path = Path(__file__).parent / "models"
NAMES = ("hotswap/sums", "hotswap/tales")

__all__ = ["MODELS_DIR", "NAMES"]
