"""The one device: its own thread for everything that computes, and readings of its memory."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import anyio
import torch

from hotswap.errors import DeviceLost, HotswapError, ModelLoadFailed

_log = logging.getLogger(__name__)
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

HUNG_S = 30.0
"""A prompt's chunk takes several seconds where a large model runs on a CPU."""
_HANGS = "The device does not answer any more."
_WORTH_SHARING_BYTES = 16 << 20
"""Below it a step is a chain of operations too small to be shared: on two busy cores a model of
10 MB ran at 75 tokens/s on both and at 149 on one."""
_SHOWN_TENSORS = 5
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Device:
    """One long-lived thread that all torch computation runs on, one job after the other.

    Kernels, workspaces and thread pools stay warm across engines because the thread stays.
    """

    def __init__(self, hung_s: float = HUNG_S) -> None:
        """
        Args:
            hung_s: Seconds after which a job that should end is given up, and the device with it.
        """
        self.hangs = False
        """It was given up."""
        self._hung_s = hung_s
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon, so that a hung step cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._work, name="hotswap-device", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run ``job`` on the device thread after the jobs submitted before."""
        future: Future[T] = Future()
        self._jobs.put(lambda: _settle(future, job))
        return future

    async def call(self, job: Callable[[], T]) -> T:
        """`submit`, and wait for the result. A job that has begun runs to its end. What is raised
        of ours has left its frames, and the tensors in them, behind."""
        return await asyncio.wrap_future(self.submit(job))

    async def ended(self, job: Future[T]) -> T:
        """Wait for a job that should be over soon.

        Raises:
            DeviceLost: it hangs, and with it the thread.
            Exception: what the job raised.
        """
        with anyio.move_on_after(self._hung_s, shield=True):
            return await asyncio.wrap_future(job)
        self.hangs = True
        _log.error("The device thread has not answered for %g s and is given up", self._hung_s)
        raise DeviceLost(_HANGS)

    def check_answering(self) -> None:
        """Raises: DeviceLost: it was given up."""
        if self.hangs:
            raise DeviceLost(_HANGS)

    def close(self) -> None:
        """Let the thread end after the jobs submitted so far."""
        self._jobs.put(None)

    def ends(self) -> bool:
        """Wait for the thread's end for as long as it may be expected. False: it hangs, and is left
        behind."""
        return self.join(0.0 if self.hangs else self._hung_s)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; False: it goes on after ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                job()
                del job  # or the last engine would live until the next job comes


def _settle(future: Future[T], job: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except HotswapError as error:
        future.set_exception(without_frames(error))
    except BaseException as error:
        future.set_exception(error)
        del future  # or it, the error and this frame would keep each other
    else:
        future.set_result(result)


def without_frames(error: E) -> E:
    """``error`` without a trace of how it came about: frames keep their tensors alive."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def torch_device(name: str) -> torch.device:
    """The device that a setting means.

    Raises:
        ModelLoadFailed: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadFailed(f"There is no device called {name[:100]!r}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadFailed("There is no CUDA device on this machine.")
    if device.type not in {"cpu", "cuda"}:
        raise ModelLoadFailed(f"Devices of type {device.type!r} are not supported.")
    return device


def used_bytes(device: torch.device) -> int:
    """What this process holds: of a CUDA device the allocator's memory, of the host its private
    memory. Mapped files are left out: weights that are mapped come and go with the page cache."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * _PAGE_BYTES


def free_bytes(device: torch.device) -> int:
    """What this process could still get."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def held_bytes(device: torch.device) -> int:
    """What the allocator holds of a device. Of the host it is nothing: mapped weights count as
    available anyway."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else 0


def total_bytes(device: torch.device) -> int:
    """The memory of a CUDA device, or what the host has free."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return free_host_bytes()


def free_host_bytes() -> int:
    """Host memory that is available, the limits of the control group included."""
    with Path("/proc/meminfo").open() as lines:
        fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_cgroup_room()])


def shown_bytes(count: int) -> str:
    """In the unit that suits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def largest_tensors(device: torch.device) -> str:
    """What holds most memory of a device, for a log."""
    # By their types: some of torch's objects warn when they are asked for their class.
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors = [tensor for tensor in alive if tensor.device.type == device.type]
    largest = sorted(tensors, key=lambda tensor: tensor.nbytes, reverse=True)[:_SHOWN_TENSORS]
    return ", ".join(f"{list(t.shape)} of {t.dtype}, {t.nbytes} bytes" for t in largest) or "none"


def wait_for(device: torch.device) -> None:
    """Until it does nothing any more."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_unused(device: torch.device) -> None:
    """Give back what the allocator keeps and nothing uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def release_cached(device: torch.device) -> None:
    """Give back what allocators keep for later."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:  # they live in the allocator's memory
            clear()
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give back the pages of what has been freed on the host; as to what is free at the end of a
    thread's own heap, of the calling thread only."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)
        _trim_end(libc)


def _trim_end(libc: Any) -> None:
    """`malloc_trim` leaves the end of a thread's heap as it is, and freeing something gives it back
    only from a size on that grows with what has been freed, up to 64 MiB: the activations of one
    text of 5,000 tokens were taken for a leak. That this size does not grow any more once it has
    been set does no harm where it is the largest."""
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes, free.argtypes = _POINTER, [ctypes.c_size_t], [_POINTER]
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES)
    libc.mallopt(_TRIM_THRESHOLD, 0)
    free(malloc(_LEAST_TRIMMING_BYTES))
    libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK_BYTES)


_POINTER = ctypes.c_void_p
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names in mallopt."""
_LARGEST_BLOCK_BYTES = 32 << 20
"""Of a heap; what is larger is mapped by itself."""
_LEAST_TRIMMING_BYTES = 128 << 10
"""Freeing less does not look at the heap's end."""


def is_out_of_memory(error: BaseException) -> bool:
    """Memory of the device or of the host is short."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _cgroup_room() -> list[int]:
    """What the control group may still take. The files that the system keeps in memory for it
    count as taken there, but go when there is need."""
    for limit, current, statistics, kept in _CGROUP_FILES:
        try:
            taken = int(Path(current).read_text()) - _files_kept(Path(statistics), kept)
            return [int(Path(limit).read_text()) - taken]
        except (OSError, ValueError):  # no such hierarchy, or "max"
            continue
    return []


def _files_kept(statistics: Path, names: tuple[str, ...]) -> int:
    """Bytes.

    Raises:
        OSError, ValueError
    """
    lines = (line.split() for line in statistics.read_text().splitlines())
    return sum(int(value) for name, value in lines if name in names)


_CGROUP_FILES = (
    (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        ("active_file", "inactive_file"),
    ),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        ("total_active_file", "total_inactive_file"),
    ),
)


def use_threads_for(weights_bytes: int) -> None:
    """Set how many threads the calling thread's computations use."""
    alone = weights_bytes < _WORTH_SHARING_BYTES
    torch.set_num_threads(1 if alone else len(os.sched_getaffinity(0)))
