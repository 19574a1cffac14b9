"""The C sources of `csrc` as a library: compiled once by the compiler at hand, for the processor at hand, and kept.

Knows nothing of what is in it.
"""

import ctypes
import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = sorted(Path(__file__).with_name("csrc").iterdir())
UNITS = [path for path in SOURCES if path.suffix == ".c"]
COMPILE = ("gcc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PATIENCE_S = 120.0


class Unable(Exception):
    """There is no library; says why."""


def library() -> ctypes.CDLL:
    """Raises `Unable`, `OSError` and `subprocess.SubprocessError`."""
    if platform.machine() not in {"x86_64", "AMD64"} or sys.platform != "linux":
        raise Unable(f"the kernel is for x86-64 on Linux, this is {platform.machine()} on {sys.platform}")
    if "libgomp" not in Path("/proc/self/maps").read_text():
        raise Unable("torch brings another OpenMP than GCC's, and two of them would keep each other from the processor")
    name = f"litmus-{_digest()}.so"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return ctypes.CDLL(str(_compiled(folder / name)))
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            reason = error
    raise Unable(f"{reason.strerror}: {reason.filename}")


def _folders() -> Iterator[Path]:
    """Where only its user (or root) can have put a library."""
    if sys.prefix != sys.base_prefix:
        yield Path(sys.prefix) / "lib" / "litmus"
    yield Path.home() / ".cache" / "litmus"


def _digest() -> str:
    """Of the source, the compiler and the processor: another machine that shares the folder compiles for itself."""
    version = subprocess.run([COMPILE[0], "--version"], capture_output=True, check=True, timeout=PATIENCE_S).stdout
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return hashlib.sha256(
        b"\0".join([*(path.read_bytes() for path in SOURCES), version, flags.encode(), " ".join(COMPILE).encode()])
    ).hexdigest()[:16]


def _compiled(path: Path) -> Path:
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all, whoever else compiles at the same time
            part = Path(folder) / path.name
            done = subprocess.run([*COMPILE, "-o", part, *UNITS], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            if done.returncode:
                raise Unable(f"gcc: {next(iter(done.stderr.splitlines()), f'exit code {done.returncode}')}")
            part.replace(path)
    return path
