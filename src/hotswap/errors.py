"""Everything that can go wrong, in one tree.

A leaf names a situation, not a wire format: it carries a stable ``code``, a message that is
safe to show to a client (no path of this machine, no stack trace) and, where waiting helps, how
long to wait. ``api/errors.py`` holds the one table from codes to HTTP statuses.

HotswapError
├── InvalidRequest             the request can never work as it stands
│   ├── InvalidJson
│   └── ContextLengthExceeded
├── RequestTooLarge
├── InvalidApiKey
├── NotPermitted
├── RouteNotFound
├── MethodNotAllowed
├── ModelNotFound
├── NotLoaded                  asked to unload something that is not loaded
├── Overloaded                 the queue is full
├── Unavailable                may work later
│   ├── ModelLoading           the wait ended before the load did
│   ├── SwapInProgress         the running answers did not end within the drain time
│   ├── ModelUnloaded
│   ├── EngineFailed
│   │   └── DeviceLost
│   ├── ShuttingDown
│   └── InsufficientMemory
└── ModelLoadFailed
    ├── CheckpointRefused      the files are unusable; trying again cannot help
    │   └── ModelUnusable      as is known without loading it; or its settings are wrong
    └── DownloadFailed
        ├── HubUnavailable     it does not answer, or only that it cannot
        ├── WrongDownload      what came is not what the Hub says it is
        └── DiskFull
"""

from __future__ import annotations


class HotswapError(Exception):
    """Base of all errors that hotswap raises on purpose."""

    code = "internal_error"
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None where waiting does not help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidRequest(HotswapError):
    """A request that can never work as it stands; ``param`` names the offending field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class RequestTooLarge(HotswapError):
    code = "request_too_large"


class InvalidApiKey(HotswapError):
    code = "invalid_api_key"


class NotPermitted(HotswapError):
    code = "not_permitted"


class RouteNotFound(HotswapError):
    code = "not_found"


class MethodNotAllowed(HotswapError):
    code = "method_not_allowed"


class ModelNotFound(HotswapError):
    """``hint`` is what there is to say beside that, such as a name that is near."""

    code = "model_not_found"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{message} {hint}".rstrip(), retry_after_s=retry_after_s)
        self.hint = hint


class NotLoaded(HotswapError):
    code = "model_not_loaded"


class Overloaded(HotswapError):
    code = "queue_full"
    retry_after_s = 2.0


class Unavailable(HotswapError):
    """Nothing is wrong with the request, but it cannot be served now."""

    retry_after_s = 5.0


class ModelLoading(Unavailable):
    code = "model_loading"


class SwapInProgress(Unavailable):
    code = "swap_in_progress"


class ModelUnloaded(Unavailable):
    code = "model_unloaded"


class EngineFailed(Unavailable):
    code = "engine_failed"
    retry_after_s = 1.0


class DeviceLost(EngineFailed):
    """The device context is gone for this process; no engine can be started in it again."""


class ShuttingDown(Unavailable):
    code = "shutting_down"


class InsufficientMemory(Unavailable):
    code = "insufficient_memory"


class ModelLoadFailed(HotswapError):
    """A model could not be brought onto the device, for a reason that may pass."""

    code = "model_load_failed"
    retry_after_s = 10.0


class CheckpointRefused(ModelLoadFailed):
    """The model's files are missing, damaged, unsafe or of a kind that we do not serve."""


class ModelUnusable(CheckpointRefused):
    """What is on the disk under a model's name is none that can be served, or its settings are
    wrong. That is seen at each look at it, so it ends as soon as it is mended."""

    def __init__(
        self, message: str, *, model: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.model = model
        """Its id."""


class DownloadFailed(ModelLoadFailed):
    """The model could not be fetched from the Hub."""


class HubUnavailable(DownloadFailed):
    """The Hub cannot be reached, does not answer in time, or answers that it has failed."""


class WrongDownload(DownloadFailed):
    """What came is not what the Hub says it is."""


class DiskFull(DownloadFailed):
    """The disk has no room for the model."""
