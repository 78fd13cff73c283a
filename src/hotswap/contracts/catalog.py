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

    async def models(self) -> tuple[ModelSpec, ...]:
        """What is listed, those included whose settings are wrong."""

    def unusable(self) -> Mapping[str, str]:
        """Why what an operator put here cannot be loaded, by name: of models that are listed, and
        of directories that hold none. As it is known already: the disk is not asked."""

    async def resolve(self, name: str) -> ModelSpec:
        """No network.

        Raises:
            ModelNotFound
            ModelUnusable: there is something of that name, but it cannot be loaded.
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
