"""Which models exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report


class ModelCatalog(Protocol):
    """Which models exist and which names mean them. Never waits for a load."""

    @property
    def startup(self) -> str | None:
        """Id of the model that ``--model`` names."""

    async def models(self) -> tuple[ModelSpec, ...]: ...

    async def resolve(self, name: str) -> ModelSpec:
        """No network.

        Raises:
            ModelNotFound
        """

    def override(self, spec: ModelSpec, overrides: Mapping[str, Any], source: str) -> ModelSpec:
        """``spec`` with a load request's settings on top.

        Raises:
            InvalidRequest: naming the key.
        """

    async def fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        """Download what ``spec`` names; stops when cancelled.

        Raises:
            ModelNotFound, NotPermitted, DownloadFailed
        """
