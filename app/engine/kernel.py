"""The bfloat16 product of `kernel.c`: compiled once by the C compiler at hand, for the processor at hand, and kept.

    product() -> Product | None    None where there is no x86, no gcc or no OpenMP of GCC's in the process; why is logged
    Product.pack(weight) -> Tensor
    Product(x, packed, ending) -> Tensor

Knows no layer and no model.
"""

import ctypes
import hashlib
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernel.c")
COMPILE = ("gcc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PATIENCE_S = 120.0
THEN = {"none": 0, "swish": 1}
HOW = {"alone": 0, "mul": 1, "add": 2}


class _Ending(ctypes.Structure):
    _fields_ = (
        ("bias", ctypes.c_void_p),
        ("then", ctypes.c_int),
        ("how", ctypes.c_int),
        ("other", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a sum: the `bias` `[outputs, padded]` float32 is added, `then` is done to it, and `other` is added or multiplied."""

    outputs: int
    bias: torch.Tensor | None = None
    then: str = "none"
    how: str = "alone"
    other: torch.Tensor | None = None


class Product:
    """x W^T in bfloat16, summed in float32. A row's result does not depend on the rows beside it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.columns.restype = ctypes.c_int64
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        library.linear.argtypes = [pointer, whole, whole, pointer, ctypes.POINTER(_Ending), ctypes.c_int]
        self.columns = int(library.columns())
        self._linear = library.linear

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """`[outputs, inputs]` to `[blocks, inputs / 2, columns, 2]`, both padded with zeros."""
        outputs, inputs = weight.shape
        padded = F.pad(weight, (0, inputs % 2, 0, -outputs % self.columns))
        return padded.view(-1, self.columns, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()

    def pad(self, bias: torch.Tensor) -> torch.Tensor:
        return F.pad(bias.float(), (0, -len(bias) % self.columns))

    def __call__(self, x: torch.Tensor, packed: torch.Tensor, ending: Ending) -> torch.Tensor:
        """`x` `[..., inputs]` bfloat16 to `[..., outputs]`. Raises `MemoryError`."""
        inputs = 2 * packed.shape[1]
        if x.shape[-1] < inputs:
            x = F.pad(x, (0, 1))
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], ending.outputs, dtype=torch.bfloat16)
        other = None if ending.other is None else ending.other.contiguous()
        bias = None if ending.bias is None else ending.bias.data_ptr()
        beside = None if other is None else other.data_ptr()
        end = _Ending(bias, THEN[ending.then], HOW[ending.how], beside, out.data_ptr(), ending.outputs)
        if self._linear(x.data_ptr(), x.numel() // inputs, inputs, packed.data_ptr(), end, torch.get_num_threads()):
            raise MemoryError("no memory for the activations of a layer")
        return out


@cache
def product() -> Product | None:
    """One for the process."""
    try:
        made = Product(ctypes.CDLL(str(_library())))
    except (OSError, subprocess.SubprocessError, _Unable) as error:
        log.warning("bfloat16 layers are left to oneDNN, about half as fast: %s", error)
        return None
    return made if _right(made) else None


class _Unable(Exception):
    """Says why."""


def _library() -> Path:
    if platform.machine() not in {"x86_64", "AMD64"} or sys.platform != "linux":
        raise _Unable(f"the kernel is for x86-64 on Linux, this is {platform.machine()} on {sys.platform}")
    if "libgomp" not in Path("/proc/self/maps").read_text():
        raise _Unable("torch brings another OpenMP than GCC's, and two of them would keep each other from the processor")
    name = f"litmus-{_digest()}.so"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _compiled(folder / name)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            reason = error
    raise _Unable(f"{reason.strerror}: {reason.filename}")


def _folders() -> Iterator[Path]:
    """Where only its user (or root) can have put a library."""
    if sys.prefix != sys.base_prefix:
        yield Path(sys.prefix) / "lib" / "litmus"
    yield Path.home() / ".cache" / "litmus"


def _digest() -> str:
    """Of the source, the compiler and the processor: another machine that shares the folder compiles for itself."""
    version = subprocess.run([COMPILE[0], "--version"], capture_output=True, check=True, timeout=PATIENCE_S).stdout
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, flags.encode(), " ".join(COMPILE).encode()])).hexdigest()[:16]


def _compiled(path: Path) -> Path:
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all, whoever else compiles at the same time
            part = Path(folder) / path.name
            done = subprocess.run([*COMPILE, "-o", part, SOURCE], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            if done.returncode:
                raise _Unable(f"gcc: {next(iter(done.stderr.splitlines()), f'exit code {done.returncode}')}")
            part.replace(path)
    return path


def _right(made: Product) -> bool:
    """Whether it agrees with torch on this machine."""
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=draw).bfloat16() for size in ((2 * made.columns + 3, 70), (17, 70)))
    found = made(x, made.pack(weight), Ending(len(weight)))
    right = torch.allclose(found.float(), x.float() @ weight.float().T, atol=0.2, rtol=0.01)
    if not right:
        log.error("the compiled kernel is wrong on this machine: bfloat16 layers are left to oneDNN")
    return right
