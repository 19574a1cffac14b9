"""Brings files into a known state (dropped from memory, in the page cache, or on a tmpfs) and checks the state. Linux only.

`python -m loadtest.cache.storage FOLDER` reads every file once with plain reads and prints bytes and seconds: no model loads faster than
that. The module knows nothing of models.
"""

import ctypes
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

CHUNK_BYTES = 8 << 20  # of one read
PAGE_BYTES = mmap.PAGESIZE
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
RESERVE_BYTES = 1 << 30  # memory to leave free beside a copy on a tmpfs


class CannotMeasure(Exception):
    """The comparison cannot run as asked; the message is for the person who ran the command."""


@dataclass(frozen=True, slots=True)
class Pages:
    """How many pages of some files are in memory, and how many they have."""

    resident: int
    total: int

    @property
    def share(self) -> float:
        return self.resident / self.total

    @property
    def bytes(self) -> int:
        return self.resident * PAGE_BYTES


def files_of(folder: Path) -> list[Path]:
    """The files of a model's folder that are not empty. Links are followed, as the hub's cache consists of links."""
    return sorted(path.resolve() for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def count_pages(paths: Sequence[Path]) -> Pages:
    """Counts the pages that are in memory, by mincore(2).

    The kernel reports every page of a file that the user may not write as resident.
    """
    counts = [_count_pages_of(path) for path in paths]
    return Pages(sum(count.resident for count in counts), sum(count.total for count in counts))


def _count_pages_of(path: Path) -> Pages:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:  # mapping reads nothing
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        resident = np.zeros(-(-len(mapped) // PAGE_BYTES), np.uint8)  # [pages], bit 0: the page is in memory
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), resident.ctypes.data_as(ctypes.c_void_p)):
            raise OSError(ctypes.get_errno(), f"mincore: {os.strerror(ctypes.get_errno())}", str(path))
        return Pages(int((resident & 1).sum()), len(resident))


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Writes unsaved pages to the disk, then asks the kernel to drop every page. Pages that another process has mapped stay."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(paths: Sequence[Path]) -> int:
    """Reads the files from end to end with plain reads; returns the number of bytes."""
    buffer, total = bytearray(CHUNK_BYTES), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def file_system_of(folder: Path) -> str:
    """Returns the type of the file system that holds the folder, such as ext4 or tmpfs."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    absolute = folder.resolve()
    return next(mounts[path] for path in [absolute, *absolute.parents] if path in mounts)


def read_ahead_kb(folder: Path) -> int | None:
    """Returns the disk's read-ahead setting, which applies to mapped pages too; None if the folder is on no block device."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    candidates = (path / "queue/read_ahead_kb" for path in (device, device.parent))  # a partition has the setting of its disk
    return next((int(path.read_text()) for path in candidates if path.is_file()), None)


def copy_to_memory(folder: Path, tmpfs: Path, target: Path) -> Path:
    """Copies the folder to `target` on `tmpfs`, replacing it. Raises `CannotMeasure` if that is no tmpfs or has too little room."""
    if not tmpfs.is_dir() or file_system_of(tmpfs) not in MEMORY_FILE_SYSTEMS:
        raise CannotMeasure(f"{tmpfs} is no tmpfs: mount one and name it with --tmpfs, or leave tmpfs out of --storage")
    shutil.rmtree(target, ignore_errors=True)
    size = sum(path.stat().st_size for path in files_of(folder))
    room = min(shutil.disk_usage(tmpfs).free, psutil.virtual_memory().available // 2 - RESERVE_BYTES)
    if size > room:
        raise CannotMeasure(
            f"{folder} has {size / 1e9:.1f} GB, but {tmpfs} has room for {max(0, room) / 1e9:.1f} GB: memory must hold the loaded model too"
        )
    shutil.copytree(folder, target)
    return target


def check_disk(folder: Path) -> None:
    """Raises `CannotMeasure` for a folder in memory, whose files can never be cold."""
    if file_system_of(folder) in MEMORY_FILE_SYSTEMS:
        raise CannotMeasure(
            f"{folder} is on a {file_system_of(folder)}, so its files are always in memory: give a folder on a disk; "
            "the benchmark itself copies it to a tmpfs"
        )


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or not files_of(Path(argv[0])):
        sys.stderr.write("usage: python -m loadtest.cache.storage FOLDER\n")
        return 2
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    if not sys.stdin.readline():
        return 2
    start_s = time.perf_counter()
    count = read_all(files_of(Path(argv[0])))
    sys.stdout.write(json.dumps({"read_bytes": count, "load_s": time.perf_counter() - start_s}) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
