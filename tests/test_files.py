from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hotswap.files import beginning, content, inside, opened


def test_a_regular_file_is_read_whole_or_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"0123456789")
    assert content(file, 10) == b"0123456789"
    assert beginning(file, 4) == b"0123"
    assert beginning(file, 40) == b"0123456789"
    with pytest.raises(ValueError, match=r"^f is too large$"):
        content(file, 9)


def test_a_link_to_a_regular_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "link").symlink_to("f")
    assert content(tmp_path / "link", 1) == b"x"


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "/dev/zero", "/dev/tty"])
def test_nothing_else_is_and_leaves_no_descriptor_open(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "f"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(file))
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to(kind)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"^'f' is not a regular file$"):
        opened(file)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_that_somebody_writes_to_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "f"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    try:
        os.write(writer, b"{}")
        with pytest.raises(ValueError, match="not a regular file"):
            content(pipe, 10)
        assert os.read(reader, 10) == b"{}"
    finally:
        os.close(writer)
        os.close(reader)


def test_what_the_kernel_makes_up_as_it_is_read_is_empty() -> None:
    assert content(Path("/proc/self/maps"), 10) == beginning(Path("/proc/self/maps"), 10) == b""


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with opened(tmp_path / "f") as stream:
        assert not os.get_inheritable(stream.fileno())


def test_what_is_inside_is_told_by_where_links_lead(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "own").touch()
    (model / "link").symlink_to("own")
    (model / "out").symlink_to("../other")
    (model / "loop").symlink_to("loop")
    (tmp_path / "other").touch()
    assert inside(model, "link") == (model / "own").resolve()
    with pytest.raises(ValueError, match=r"^'out' lies outside the model's directory$"):
        inside(model, "out")
    for name, reason in (("loop", "symbolic links"), ("none", "No such file")):
        with pytest.raises(OSError, match=reason):
            inside(model, name)
