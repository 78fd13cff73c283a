"""Copies of weight files in memory of this process's own.

A map is as good as its file: where that is cut, or its file system cannot be reached any more, the
next look at the map ends the process (SIGBUS). The copies are files too, without a name anywhere
(memfd_create(2)), so that whatever reads or maps files does the same with them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hotswap.errors import CheckpointRefused

_PART_BYTES = 64 << 20
"""Copied between two looks whether anybody still waits."""


@dataclass(frozen=True, slots=True)
class Copies:
    directory: Path
    """Like the model's own, with the copies in the place of its weights."""
    files: tuple[Path, ...]
    """The copies, in the order of ``originals``."""
    originals: tuple[Path, ...]

    def fill(self) -> Iterator[float]:
        """Copy the next part, each time; how much of all has been copied by then, from 0 to 1.

        Raises:
            OSError: a file cannot be read, or is shorter by now.
        """
        done, total = 0, sum(copy.stat().st_size for copy in self.files)
        for original, copy in zip(self.originals, self.files, strict=True):
            with original.open("rb") as source, copy.open("r+b") as target:
                left = os.fstat(target.fileno()).st_size
                while left:
                    yield done / total
                    count = os.sendfile(
                        target.fileno(), source.fileno(), None, min(left, _PART_BYTES)
                    )
                    if not count:
                        raise OSError(errno.EIO, "a weight file became shorter while it was read")
                    left -= count
                    done += count


@contextmanager
def copies_of(directory: Path, files: Sequence[Path]) -> Iterator[Copies]:
    """Room for copies of ``files``, to be filled. What is mapped of them inside the block stays.

    Args:
        files: Resolved; of ``directory``, or what its links lead to.

    Raises:
        CheckpointRefused: the system has no such files.
        OSError
    """
    if not hasattr(os, "memfd_create"):
        raise CheckpointRefused("no_mmap works on Linux only.")
    copies: dict[Path, int] = {}
    try:
        for file in files:
            copies[file] = os.memfd_create("hotswap-weights")
            os.truncate(copies[file], file.stat().st_size)
        paths = {file: Path(f"/proc/self/fd/{copy}") for file, copy in copies.items()}
        with TemporaryDirectory(prefix="hotswap-") as folder:
            links = Path(folder, directory.name)  # code of a model's own is named after this
            _link(links, directory, paths)
            yield Copies(links, tuple(paths.values()), tuple(files))
    finally:
        for copy in copies.values():
            os.close(copy)


def _link(links: Path, directory: Path, paths: Mapping[Path, Path]) -> None:
    links.mkdir()
    for entry in directory.iterdir():
        target = entry.resolve()
        (links / entry.name).symlink_to(paths.get(target, target))
