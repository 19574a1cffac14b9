"""Copies of models in memory: `model.cache: ram` reads a model's files once from its disk and from then on from a tmpfs.

A copy belongs to one state of its files, by size and time of change, and outlives the server, so that the next start finds it. It is
written beside its place and renamed when it is complete; a lock lets one process write while others wait. `make clean` removes all copies.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.ledger import device_memory, gib
from app.errors import SetupError
from app.models.progress import Transfer

ROOT = Path("/dev/shm")  # a tmpfs on every Linux
COPY_BYTES = 8 << 20
MANIFEST = "litmus.json"


@dataclass(frozen=True, slots=True)
class Staged:
    name: str
    folder: Path
    size: int


def home() -> Path:
    """This user's folder of copies."""
    return ROOT / f"litmus-{os.getuid()}"


def stage(name: str, files: Sequence[Path]) -> Path:
    """The folder in memory that holds copies of `files`, copied now unless they are there. Raises `SetupError` if they do not fit."""
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = home() / hashlib.sha256(json.dumps([name, state]).encode()).hexdigest()[:16]
    try:
        _make_home(name)
        with _locked(folder):
            _remove_unfinished(folder)
            if not _is_whole(folder, state):
                shutil.rmtree(folder, ignore_errors=True)
                _copy(name, files, folder, state)
    except OSError as error:
        raise SetupError(f"model.cache: {name} cannot be copied to {home()}: {error.strerror}; set model.cache to disk") from error
    return folder


def _make_home(name: str) -> None:
    """Raises `SetupError` if the folder is another user's, who could then change what this one loads."""
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    about = home().lstat()
    if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o022:
        raise SetupError(f"model.cache: {home()} is not a folder that this user alone can write to, so {name} is not copied there")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock that ends with the process, so that a killed one leaves none behind."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unfinished(folder: Path) -> None:
    """What a process left that was killed: nobody else writes while the lock is held."""
    for leftover in folder.parent.glob(f"{folder.name}.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _is_whole(folder: Path, state: Sequence[tuple[str, int, int]]) -> bool:
    copies = [folder / name for name, _, _ in state]
    return all(
        copy.is_file() and (copy.stat().st_size, copy.stat().st_mtime_ns) == (size, changed)
        for copy, (_, size, changed) in zip(copies, state, strict=True)
    )


def _copy(name: str, files: Sequence[Path], folder: Path, state: Sequence[tuple[str, int, int]]) -> None:
    size = sum(length for _, length, _ in state)
    _check_memory(name, size)
    part, transfer = folder.with_suffix(".part"), Transfer("staging", f"{name} into memory", size)
    part.mkdir(mode=0o700)
    try:
        for file, (_, _, changed) in zip(files, state, strict=True):
            copy = part / file.name
            with file.open("rb") as source, copy.open("wb") as target:
                while block := source.read(COPY_BYTES):
                    target.write(block)
                    transfer.advance(len(block))
            os.utime(copy, ns=(changed, changed))
        (part / MANIFEST).write_text(json.dumps({"name": name, "size": size}))
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    transfer.finish()


def _check_memory(name: str, size: int) -> None:
    """Raises `SetupError` with the numbers. The copy takes memory beside the weights, which the ledger checks later."""
    memory, tmpfs = device_memory(torch.device("cpu"), 0), shutil.disk_usage(home()).free
    free, where = (memory, "the free memory") if memory < tmpfs else (tmpfs, f"the free space of {ROOT}")
    if size > free:
        raise SetupError(f"model.cache: a copy of {name} takes {gib(size)}, more than {where}, {gib(free)}; set model.cache to disk")


def staged() -> list[Staged]:
    """The copies of this user, whole ones only."""
    copies = []
    for manifest in sorted(home().glob(f"*/{MANIFEST}")):
        about = json.loads(manifest.read_text())
        if manifest.parent.suffix != ".part":
            copies.append(Staged(str(about["name"]), manifest.parent, int(about["size"])))
    return copies


def unstage(name: str) -> int:
    """Remove a model's copies; returns their bytes. A server that reads from them goes on: the system keeps what is open."""
    found = [copy for copy in staged() if copy.name == name]
    for copy in found:
        with _locked(copy.folder):
            shutil.rmtree(copy.folder, ignore_errors=True)
    return sum(copy.size for copy in found)
