"""Files that anybody may have put there: read without waiting for what may never come, and bounded.

No message names a path of this machine: files go by their base names.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(file: Path) -> BinaryIO:
    """A regular file, to be read. A pipe is not waited for.

    Raises:
        OSError
        ValueError: it is a pipe, a socket, a device or a directory.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise _irregular(file) from None  # a socket
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(file)
    return os.fdopen(descriptor, "rb")


def content(file: Path, at_most_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError
        ValueError: it is no regular file, or longer than that.
    """
    with opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > at_most_bytes:
            raise ValueError(f"{file.name[:80]} is too large")
        return stream.read(size)


def beginning(file: Path, at_most_bytes: int) -> bytes:
    """So much of a regular file, or all of it if it is shorter.

    Raises:
        OSError
        ValueError: it is no regular file.
    """
    with opened(file) as stream:
        # Some that the kernel makes up have no size, and are waited for.
        return stream.read(min(at_most_bytes, os.fstat(stream.fileno()).st_size))


def inside(directory: Path, name: str) -> Path:
    """What ``name`` in a model's directory leads to, without links.

    A snapshot of the Hub cache is made of links into ``models--*/blobs``; those are its own.

    Raises:
        OSError: it is not there, or a link that leads to itself.
        ValueError: it lies outside.
    """
    root = Path(os.path.realpath(directory, strict=True))
    file = Path(os.path.realpath(directory / name, strict=True))
    if not any(file.is_relative_to(allowed) for allowed in (root, _repository(root))):
        raise ValueError(f"{Path(name).name[:100]!r} lies outside the model's directory")
    return file


def _repository(root: Path) -> Path:
    """The Hub cache's folder of the repository that ``root`` is a snapshot of, else ``root``."""
    for parent in root.parents:
        if parent.name.startswith("models--"):
            return parent
    return root


def _irregular(file: Path) -> ValueError:
    return ValueError(f"{file.name[:80]!r} is not a regular file")
