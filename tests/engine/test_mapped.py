from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotswap.engine import mapped
from hotswap.engine.mapped import drop_file_pages

PAGE = mmap.PAGESIZE
PAGES = 16
SIZE = PAGES * PAGE
CONTENT = random.Random(0).randbytes(SIZE)

linux = pytest.mark.skipif(not mapped._SMAPS.exists(), reason="the kernel does not tell")


class Mapping:
    """Memory that has been read, or written, once."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        assert len(memory[:]) == SIZE
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    @property
    def content(self) -> bytes:
        return self._memory[:]

    def write(self, content: bytes, position: int = 0) -> None:
        self._memory[position : position + len(content)] = content

    @property
    def resident_bytes(self) -> int:
        smaps = mapped._SMAPS.read_text(errors="replace")
        found = re.search(rf"^{self.address:x}-.*?^Rss: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def mapping_of(path: Path, access: int = mmap.ACCESS_COPY) -> Iterator[Mapping]:
    """Of a file of `CONTENT`; private, as checkpoints are mapped."""
    path.write_bytes(CONTENT)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE, access=access) as memory:
        yield Mapping(memory)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Mapping]:
    with mapping_of(tmp_path / "model.safetensors") as mapping:
        assert mapping.content == CONTENT
        yield mapping


@linux
def test_pages_of_a_mapped_file_are_let_go_of_and_read_again_when_needed(
    checkpoint: Mapping,
) -> None:
    assert checkpoint.resident_bytes == SIZE
    drop_file_pages([(checkpoint.address, SIZE)])
    assert checkpoint.resident_bytes == 0
    assert checkpoint.content == CONTENT
    assert checkpoint.resident_bytes == SIZE


@linux
@pytest.mark.parametrize(
    ("first", "size", "dropped"),
    [
        (0, PAGE, 1),
        (1, 4 * PAGE, 3),
        (PAGE - 1, 4 * PAGE, 3),
        (PAGE, 4 * PAGE - 1, 3),
        (1, PAGE, 0),
        (0, PAGE - 1, 0),
        (PAGE // 2, PAGE + PAGE // 4, 0),
        (0, 0, 0),
        (PAGE, SIZE, 0),  # beyond the end: it is not this mapping that is meant
    ],
)
def test_only_pages_that_lie_wholly_within_a_place(
    checkpoint: Mapping, first: int, size: int, dropped: int
) -> None:
    drop_file_pages([(checkpoint.address + first, size)])
    assert checkpoint.resident_bytes == SIZE - dropped * PAGE
    assert checkpoint.content == CONTENT


@linux
def test_several_places_at_once(checkpoint: Mapping) -> None:
    places = [(checkpoint.address, PAGE), (checkpoint.address + 4 * PAGE, 2 * PAGE)]
    drop_file_pages(iter(places))
    assert checkpoint.resident_bytes == SIZE - 3 * PAGE
    assert checkpoint.content == CONTENT


@linux
def test_a_mapping_that_was_written_to_is_left_alone(checkpoint: Mapping) -> None:
    checkpoint.write(b"changed", 5 * PAGE)
    changed = checkpoint.content
    assert changed != CONTENT
    drop_file_pages([(checkpoint.address, SIZE), (checkpoint.address, PAGE)])
    assert checkpoint.resident_bytes == SIZE
    assert checkpoint.content == changed


@linux
def test_memory_without_a_file_is_left_alone() -> None:
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        mapping = Mapping(memory)
        mapping.write(CONTENT)
        drop_file_pages([(mapping.address, SIZE)])
        assert mapping.content == CONTENT


@linux
def test_what_was_written_through_a_shared_mapping_is_in_the_file(tmp_path: Path) -> None:
    with mapping_of(tmp_path / "shared", mmap.ACCESS_WRITE) as mapping:
        mapping.write(b"changed")
        drop_file_pages([(mapping.address, SIZE)])
        assert mapping.resident_bytes == 0
        assert mapping.content == b"changed" + CONTENT[7:]


@linux
def test_a_file_that_is_not_in_its_folder_any_more_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with mapping_of(path) as mapping:
        path.unlink()
        drop_file_pages([(mapping.address, SIZE)])
        assert mapping.resident_bytes == 0
        assert mapping.content == CONTENT


@linux
def test_names_of_files_are_bytes(tmp_path: Path) -> None:
    with mapping_of(tmp_path / os.fsdecode(b"caf\xe9.safetensors")) as mapping:
        drop_file_pages([(mapping.address, SIZE)])
        assert mapping.resident_bytes == 0
        assert mapping.content == CONTENT


@linux
def test_where_the_kernel_does_not_tell_nothing_is_dropped(
    checkpoint: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_SMAPS", tmp_path / "missing")
        drop_file_pages([(checkpoint.address, SIZE)])
    assert checkpoint.resident_bytes == SIZE


# -- what the kernel tells -------------------------------------------------------------------

FILE = "7f0000000000-7f0000010000 rw-p 00001000 fe:00 260386                     /m/a b.safetensors"
CLEAN = [(0x7F0000000000, 0x7F0000010000)]
UNKNOWN_TO_FILES = [
    "7f0000000000-7f0000010000 rw-p 00000000 00:00 0 ",
    "7f0000000000-7f0000010000 rw-p 00000000 00:00 0                          [heap]",
    "7f0000000000-7f0000010000 rw-p 00000000 00:00 0                          [anon:weights]",
    "7f0000000000-7f0000010000 rw-s 00000000 00:01 1024                       [anon_shmem:weights]",
    "7f0000000000-7f0000010000 r-xp 00000000 00:00 0                          [vdso]",
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
    "7f0000000000-7f0000010000 rw-p 00000000 00:0e 1041                      anon_inode:[io_uring]",
]


def entry(header: str, **kilobytes: int) -> str:
    """One mapping, as Linux 6 tells about it."""
    counters = {
        "Size": 64,
        "KernelPageSize": 4,
        "MMUPageSize": 4,
        "Rss": 64,
        "Pss": 64,
        "Pss_Dirty": 0,
        "Shared_Clean": 0,
        "Shared_Dirty": 0,
        "Private_Clean": 64,
        "Private_Dirty": 0,
        "Referenced": 64,
        "Anonymous": 0,
        "KSM": 0,
        "LazyFree": 0,
        "AnonHugePages": 0,
        "ShmemPmdMapped": 0,
        "FilePmdMapped": 0,
        "Shared_Hugetlb": 0,
        "Private_Hugetlb": 0,
        "Swap": 0,
        "SwapPss": 0,
        "Locked": 0,
    }
    assert kilobytes.keys() <= counters.keys()
    lines = [f"{name + ':':<16}{count:>8} kB" for name, count in (counters | kilobytes).items()]
    return "\n".join([header, *lines, "THPeligible:           0", "VmFlags: rd wr mr mw me ac\n"])


@pytest.mark.parametrize(
    "header",
    [
        FILE,
        FILE.replace("/m/a b", "/m/7f0-7f1 "),
        FILE + " (deleted)",
        FILE.replace("rw-p", "r--s"),
    ],
)
def test_files_are_mappings_of_which_nothing_is_lost(header: str) -> None:
    assert mapped._clean_mappings(entry(header)) == CLEAN


def test_a_file_that_is_not_on_its_disk_yet_has_not_been_changed_here() -> None:
    assert mapped._clean_mappings(entry(FILE, Private_Clean=0, Private_Dirty=64)) == CLEAN


@pytest.mark.parametrize(
    "changed",
    [
        {"Private_Clean": 60, "Private_Dirty": 4, "Anonymous": 4},
        {"Private_Clean": 60, "Shared_Dirty": 4, "Anonymous": 4},  # shared with a fork
        {"Private_Clean": 60, "Rss": 60, "Swap": 4},
        {"Rss": 0, "Private_Clean": 0, "Private_Hugetlb": 2048},
        {"Rss": 0, "Private_Clean": 0, "Shared_Hugetlb": 2048},
    ],
)
def test_changed_pages_make_a_mapping_unclean(changed: dict[str, int]) -> None:
    assert mapped._clean_mappings(entry(FILE, **changed)) == []


@pytest.mark.parametrize("header", UNKNOWN_TO_FILES)
def test_what_is_no_file_is_not_there(header: str) -> None:
    assert mapped._clean_mappings(entry(header)) == []


def test_mappings_do_not_answer_for_their_neighbours() -> None:
    others = [FILE.replace("7f0", f"7f{number}") for number in range(1, 4)]
    smaps = "".join(
        [
            entry(UNKNOWN_TO_FILES[1], Private_Dirty=64, Anonymous=64),
            entry(FILE),
            entry(UNKNOWN_TO_FILES[0]),
            entry(others[0], Private_Dirty=4, Anonymous=4),
            entry(others[1]),
            entry(UNKNOWN_TO_FILES[-2]),
            entry(others[2], Swap=4),
        ]
    )
    assert mapped._clean_mappings(smaps) == [*CLEAN, (0x7F2000000000, 0x7F2000010000)]
    assert mapped._clean_mappings("") == []
