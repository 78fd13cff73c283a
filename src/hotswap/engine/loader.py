"""How the weights of a model come to host memory: their files are mapped or copied, and made into
weights. That can be given up until transformers reads them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import from_thread, to_thread

from hotswap.contracts.progress import Report
from hotswap.engine import device as devices
from hotswap.engine.blueprint import (
    Arena,
    file_ids,
    fill_page_cache,
    map_files,
    read_in,
    stretches,
)
from hotswap.engine.copies import copies_of
from hotswap.engine.front import local_path
from hotswap.engine.planning import Candidate
from hotswap.engine.prepared import load_key
from hotswap.engine.weights import HostWeights, Known, LoadAbandoned, read_weights
from hotswap.errors import CheckpointRefused, InsufficientMemory

_log = logging.getLogger(__name__)


async def load_weights(candidate: Candidate, known: Known | None, report: Report) -> HostWeights:
    """Cancelling returns at once; what goes on behind it is told in `read_weights`.

    Args:
        known: what was found out about them, if they have been on a device.

    Raises:
        CheckpointRefused: also where the files changed meanwhile.
        InsufficientMemory
    """
    spec = candidate.spec
    abandoned = threading.Event()
    bring = _copied if spec.engine.no_mmap else _mapped
    try:
        weights = await bring(_Reading(candidate, known, abandoned), report)
        stamped = partial(load_key, spec, candidate.device, local_path(spec), candidate.files)
        now = await to_thread.run_sync(stamped, abandon_on_cancel=True)
    except OSError as error:  # also that a file is gone
        if devices.is_out_of_memory(error):
            raise InsufficientMemory("The model does not fit into host memory.") from None
        _log.warning("The files of %r cannot be read", spec.id, exc_info=True)
        now = None
    finally:
        abandoned.set()
    if now != candidate.key:
        raise CheckpointRefused("The files of the model changed while they were read.")
    weights.known = known
    return weights


@dataclass(frozen=True, slots=True)
class _Reading:
    """Of a model that is not in host memory."""

    candidate: Candidate
    known: Known | None
    abandoned: threading.Event

    @property
    def is_known(self) -> bool:
        """Where its tensors lie in its files."""
        return self.known is not None and self.known.blueprint is not None

    def read(self, directory: Path, files: Sequence[Path], arenas: Sequence[Arena]) -> HostWeights:
        """
        Args:
            arenas: ``files``, mapped.

        Raises:
            CheckpointRefused, InsufficientMemory, LoadAbandoned, OSError
        """
        spec, front = self.candidate.spec, self.candidate.front
        if self.known is not None and self.is_known:
            weights = self.known.rebuilt(arenas)
        else:
            weights = read_weights(directory, front, spec.engine, self.abandoned)
        weights.files = file_ids(files)
        return weights


async def _mapped(reading: _Reading, report: Report) -> HostWeights:
    """First into the page cache, which can be given up at any time; then what is made of it."""
    path, files = local_path(reading.candidate.spec), reading.candidate.files.files
    arenas = await to_thread.run_sync(map_files, files, abandon_on_cancel=True)
    done, total = 0, sum(map(len, arenas))
    for stretch in stretches(arenas):
        report("reading", done / total)
        bring = read_in if reading.is_known else fill_page_cache
        await to_thread.run_sync(bring, stretch, abandon_on_cancel=True)
        done += len(stretch)
    return await to_thread.run_sync(reading.read, path, files, arenas, abandon_on_cancel=True)


async def _copied(reading: _Reading, report: Report) -> HostWeights:
    """First into memory of our own, which can be given up from part to part."""

    def copy() -> HostWeights:
        directory = local_path(reading.candidate.spec)
        with copies_of(directory, reading.candidate.files.files) as copies:
            for share in copies.fill():
                if reading.abandoned.is_set():
                    raise LoadAbandoned
                from_thread.run_sync(report, "reading", share)
            arenas = map_files(copies.files)
            weights = reading.read(copies.directory, copies.files, arenas)
        weights.are_copied = True
        return weights

    return await to_thread.run_sync(copy, abandon_on_cancel=True)
