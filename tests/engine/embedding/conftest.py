from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Encoders = Callable[..., Path]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    """The directory of a tiny embedding model, written once for the same arguments."""
    from tests.engine.embedding.encoders import write_encoder  # torch: not in the fast run

    written: dict[str, Path] = {}

    def directory(architecture: str = "bert", **options: Any) -> Path:
        name = f"{architecture} {sorted(options.items())}"
        if name not in written:
            path = tmp_path_factory.mktemp("encoders") / architecture
            written[name] = write_encoder(path, architecture, **options)
        return written[name]

    return directory
