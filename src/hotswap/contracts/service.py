"""The door of the swap floor, as the API sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from hotswap.contracts.answers import Embeddings, Generation, Tokenized
from hotswap.contracts.listing import ModelDescription, ModelListing
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import LoadForecast, LoadReport, UnloadReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.contracts.snapshot import SwapSnapshot

UnloadMode = Literal["drain", "abort"]


class ModelService(Protocol):
    """The door of the swap floor."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[Generation]:
        """Entering: the request is valid, its model is resident and it is running. May wait for
        a swap. Leaving: the answer is aborted if unfinished.

        Raises:
            HotswapError: on entering, any leaf; nothing has been sent to a client by then.
        """

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `generate`: may wait for a swap; given up when cancelled.

        Raises:
            HotswapError: any leaf.
        """

    async def tokenize(self, request: GenerationRequest, *, texts: bool = False) -> Tokenized:
        """What the request would be answered for. Neither loads a model nor waits for one.

        Args:
            texts: say what each token stands for, too.

        Raises:
            HotswapError: as `generate` would, before it waits.
        """

    async def detokenize(self, model: str | None, ids: Sequence[int]) -> tuple[str, str]:
        """The id of the model of that name, and the text that tokens stand for there.

        Raises:
            InvalidRequest, ModelNotFound, ModelLoadFailed
        """

    def snapshot(self) -> SwapSnapshot: ...

    async def changed(self, since: int) -> SwapSnapshot:
        """Wait until the snapshot's version is above ``since``."""

    async def models(self) -> tuple[ModelListing, ...]:
        """What a request may name now. Never waits for a load."""

    def unusable(self) -> Mapping[str, str]:
        """See `ModelCatalog.unusable`."""

    async def model(self, name: str) -> ModelListing:
        """Raises: ModelNotFound; ModelUnusable: there is such a directory, and no model in it."""

    async def describe(self, name: str) -> ModelDescription:
        """More about a model than its listing, read from its files.

        Raises:
            ModelNotFound, ModelLoadFailed
        """

    async def shows_loading(self, name: str | None) -> bool:
        """Whether the settings of the model that a request means have streams that wait for it
        tell how far it is; not so of one that cannot be had, as `generate` says."""

    async def warm(self, name: str | None, *, keep_alive_s: float | None = None) -> str:
        """Wait until a model is resident, as a request for it would; returns its id.

        Raises:
            HotswapError: as `generate`.
        """

    async def let_go(self, name: str | None) -> str:
        """Have a model leave the device as soon as no answer of it runs, and wait for that where
        none runs. What is kept in host memory of one that was named, and is not on the device nor
        on its way there, is let go of, unless it is pinned. Returns the model's id.

        Raises:
            NotPermitted: requests may not swap models here, so they may not let go of one either.
            ModelNotFound, ModelLoadFailed
        """

    async def pull(self, name: str, report: Report) -> str:
        """Bring a model to this machine's disk, if it is not there; stops when cancelled. Returns
        its id.

        Raises:
            NotPermitted: it is not here, and requests may not download it.
            ModelNotFound, DownloadFailed, ModelLoadFailed, ShuttingDown
        """

    async def load(self, name: str | None, overrides: Mapping[str, Any], source: str) -> LoadReport:
        """Put a model on the device and wait for it. ``name`` None: the start-up model.

        Raises:
            InvalidRequest: an override is unknown, of the wrong type or out of range.
            ModelNotFound, ModelLoadFailed, InsufficientMemory, SwapInProgress, ShuttingDown
        """

    async def forecast(
        self, name: str | None, overrides: Mapping[str, Any], source: str
    ) -> LoadForecast:
        """What `load` with the same arguments would do. Changes nothing.

        Raises:
            InvalidRequest, ModelNotFound, ModelLoadFailed: as `load`.
        """

    async def request_load(self, name: str) -> None:
        """Like `load`, but returns once the wish is accepted."""

    async def unload(
        self,
        name: str | None = None,
        *,
        drain_timeout_s: float | None = None,
        mode: UnloadMode = "drain",
        park: bool = True,
    ) -> UnloadReport:
        """Take the resident model off the device; with a name that is loading, cancel that load;
        with one that sleeps, let go of what is kept of it.

        Args:
            park: keep it in host memory, where there is room.

        Raises:
            ModelNotFound: no such model.
            NotLoaded: ``name`` is neither resident nor loading, nor does it sleep.
            SwapInProgress: the running answers did not end in time; the model still serves.
        """

    async def sleep(self, *, park: bool, mode: UnloadMode = "drain") -> UnloadReport:
        """Leave the device empty, whatever goes on: the resident model is unloaded, and every load
        that is under way or wanted by now is called off, its waiters refused with `ModelUnloaded`.

        Afterwards `wake_up`, and where requests may load models also a request for whichever model
        is loaded, brings back the model that was on the device last, with the settings that it
        had; where none had been, the one that was on its way. A request that names another model
        brings that one. What is asked for after `sleep` was called is not called off: with
        `wake_up` right behind it, the model leaves and comes back.

        Returns:
            Once nothing is on the device, of the model that sleeps; where it had left already for
            another one, with the time that calling off that one took. Where nothing was there or
            on its way, at once.

        Raises:
            SwapInProgress: the running answers did not end in time; the resident model is awake
                still, but the loads have been called off.
            DeviceLost: what was on the device could not be taken off.
        """

    async def wake_up(self) -> LoadReport:
        """Put the model on the device that was put to sleep or was there last, else the start-up
        model, and wait for it. Nothing is done where one is on the device; where one is on its way
        there, that one is waited for.

        Raises:
            ModelNotFound: there was none, and the server was started without one.
            ModelUnloaded: somebody put it to sleep again, or unloaded it, before it was ready.
            ModelLoadFailed, InsufficientMemory, SwapInProgress, ShuttingDown
        """
