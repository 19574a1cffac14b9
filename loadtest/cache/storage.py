"""Files in a known state: out of memory, in the page cache, or on a tmpfs, and the proof of it. Linux.

`python -m loadtest.cache.storage FOLDER` reads every file once with plain reads, the floor under any load, and prints bytes and seconds.
Knows no model.
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

CHUNK = 8 << 20  # bytes a read
PAGE = mmap.PAGESIZE
MEMORY = frozenset({"tmpfs", "ramfs"})
KEEP = 1 << 30  # bytes of memory to leave free beside a copy on a tmpfs


class NotThere(Exception):
    """Storage that was asked for and cannot be had; the message is for the person who ran the command."""


@dataclass(frozen=True, slots=True)
class Pages:
    resident: int
    total: int

    @property
    def share(self) -> float:
        return self.resident / self.total

    @property
    def bytes(self) -> int:
        return self.resident * PAGE


def files(folder: Path) -> list[Path]:
    """What a model's folder holds, links followed (a hub's cache is made of them)."""
    return sorted(path.resolve() for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def pages(paths: Sequence[Path]) -> Pages:
    """Those of the files that are in memory, by mincore(2). Of a file that the user may not write, the kernel calls all pages resident."""
    found = [_pages(path) for path in paths]
    return Pages(sum(one.resident for one in found), sum(one.total for one in found))


def _pages(path: Path) -> Pages:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:  # mapping reads nothing
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        marks = np.zeros(-(-len(mapped) // PAGE), np.uint8)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), marks.ctypes.data_as(ctypes.c_void_p)):
            raise OSError(ctypes.get_errno(), f"mincore: {os.strerror(ctypes.get_errno())}", str(path))
        return Pages(int((marks & 1).sum()), len(marks))


def cool(paths: Sequence[Path]) -> None:
    """Write out what is not yet on the disk, then ask for every page to be dropped. What another process has mapped stays."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(paths: Sequence[Path]) -> int:
    """Bytes read."""
    buffer, total = bytearray(CHUNK), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def kind(folder: Path) -> str:
    """Name of the file system that holds the folder."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    home = folder.resolve()
    return next(mounts[place] for place in [home, *home.parents] if place in mounts)


def read_ahead_kb(folder: Path) -> int | None:
    """What the disk reads ahead of a mapped page; None where no block device says so."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    found = (place / "queue/read_ahead_kb" for place in (device, device.parent))  # a partition's is its disk's
    return next((int(path.read_text()) for path in found if path.is_file()), None)


def copy_to_memory(folder: Path, tmpfs: Path, target: Path) -> Path:
    """A copy in `target` on `tmpfs`, made anew. Raises `NotThere` where that is no tmpfs, or memory would become scarce."""
    if not tmpfs.is_dir() or kind(tmpfs) not in MEMORY:
        raise NotThere(f"{tmpfs} is no tmpfs: mount one and name it with --tmpfs, or leave tmpfs out of --storage")
    shutil.rmtree(target, ignore_errors=True)
    size = sum(path.stat().st_size for path in files(folder))
    room = min(shutil.disk_usage(tmpfs).free, psutil.virtual_memory().available // 2 - KEEP)
    if size > room:
        raise NotThere(f"{folder} has {size / 1e9:.1f} GB; {tmpfs} has room for {max(0, room) / 1e9:.1f} GB beside a load of it")
    shutil.copytree(folder, target)
    return target


def check_disk(folder: Path) -> None:
    """Raises `NotThere` where nothing can be cold."""
    if kind(folder) in MEMORY:
        raise NotThere(f"{folder} is on a {kind(folder)}, in memory for good: give a folder on a disk; the copy on a tmpfs is made of it")


def main(words: Sequence[str]) -> int:
    if len(words) != 1 or not files(Path(words[0])):
        sys.stderr.write("usage: python -m loadtest.cache.storage FOLDER\n")
        return 2
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    if not sys.stdin.readline():
        return 2
    start_s = time.perf_counter()
    count = read(files(Path(words[0])))
    sys.stdout.write(json.dumps({"read_bytes": count, "load_s": time.perf_counter() - start_s}) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
