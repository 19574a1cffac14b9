"""Compiles the C sources of `csrc` once for this machine's processor and keeps the library on disk.

Knows nothing of what the library contains.
"""

import fcntl
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).with_name("csrc").iterdir())
C_FILES = [path for path in SOURCES if path.suffix == ".c"]
COMPILE_COMMAND = ("gcc", "-O3", "-march=native", "-fopenmp", "-fPIC")
COMPILE_TIMEOUT_S = 120.0
MACHINES = ("x86_64", "aarch64")
FEATURES = ("flags", "Features")  # the lines of /proc/cpuinfo that name an x86 and an ARM processor's instructions


class CompileError(Exception):
    """The library cannot be had on this machine; the message says why."""


def library_path() -> Path:
    """Return the library's path, compiling it first if needed. Raises `CompileError`, `OSError` and `subprocess.SubprocessError`."""
    if platform.machine() not in MACHINES or sys.platform != "linux":
        raise CompileError(f"the kernel is for x86-64 and 64-bit ARM on Linux, this is {platform.machine()} on {sys.platform}")
    if "libgomp" not in Path("/proc/self/maps").read_text():
        raise CompileError("torch does not use GCC's OpenMP here, and the threads of two OpenMP libraries would block each other")
    name = f"litmus-{_digest()}.so"
    for folder in _cache_folders():
        try:
            _make(folder)
            return _compile(folder / name)
        except OSError as error:  # no such folder, no right to write, a file system that is full or only for reading
            reason = error
    raise CompileError(f"{reason.strerror}: {reason.filename}")


def _cache_folders() -> Iterator[Path]:
    """Folders to keep the library in, best first. Only this user (or root) can write there: a library runs as whoever loads it."""
    if sys.prefix != sys.base_prefix:
        yield Path(sys.prefix) / "lib" / "litmus"
    yield Path.home() / ".cache" / "litmus"


def kept_folder() -> Path | None:
    """Where small records of this machine may be kept, too; None if none of the folders can be made."""
    for folder in _cache_folders():
        with suppress(OSError):
            _make(folder)
            if os.access(folder, os.W_OK):
                return folder
    return None


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _digest() -> str:
    """Identify sources, compiler, flags and processor, so that a machine which shares the folder compiles for itself."""
    version = subprocess.run([COMPILE_COMMAND[0], "--version"], capture_output=True, check=True, timeout=COMPILE_TIMEOUT_S).stdout
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(FEATURES)), "")
    return hashlib.sha256(
        b"\0".join([*(path.read_bytes() for path in SOURCES), version, flags.encode(), " ".join(COMPILE_COMMAND).encode()])
    ).hexdigest()[:16]


def _compile(path: Path) -> Path:
    """Compile to `path` unless it exists, and return it. Of processes that need it at the same time one compiles, and the others wait."""
    if path.exists():
        return path
    with path.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            log.info("compiling the kernel for this processor: about ten seconds, once")
            # Renamed into place when complete, so that half a library of a process that was killed is never loaded.
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                build(COMPILE_COMMAND, Path(folder) / path.name).replace(path)
    return path


def build(command: Sequence[str], path: Path) -> Path:
    """Compile the sources side by side with `command`, link them to `path`, and return it. Raises as `library_path`."""
    objects = [path.with_name(f"{source.stem}.o") for source in C_FILES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source, target: _run([*command, "-c", "-o", target, source]), C_FILES, objects))
    _run([*command, "-shared", "-o", path, *objects])
    return path


def _run(command: Sequence[str | Path]) -> None:
    gcc = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
    if gcc.returncode:
        lines = gcc.stderr.splitlines()
        errors = [line for line in lines if "error:" in line]
        raise CompileError(f"gcc: {next(iter([*errors, *lines]), f'exit code {gcc.returncode}')}")
