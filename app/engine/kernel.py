"""The kernels of `csrc`: compiled once by the C compiler at hand, for the processor at hand, and kept.

    kernel() -> Kernel | None    None where there is no x86, no gcc or no OpenMP of GCC's in the process; why is logged
    Kernel.pack(weight) -> Packed; Kernel.pack_levels(levels, table, scale, middle) -> Packed
    Kernel(x, packed, ending) -> Tensor
    Kernel.norm(x, weight, eps) -> Tensor; Kernel.decode(step) -> Tensor

Knows no layer and no model.
"""

import ctypes
import hashlib
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

log = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).with_name("csrc").iterdir())
UNITS = [path for path in SOURCES if path.suffix == ".c"]
COMPILE = ("gcc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
MOST_DIM = 256  # of a head
PATIENCE_S = 120.0
THEN = {"none": 0, "swish": 1}
HOW = {"alone": 0, "mul": 1, "add": 2}


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_row", "key_row", "value_row")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("slot", "head")),
        *((name, ctypes.c_void_p) for name in ("slots", "positions")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "dim", "window")),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_void_p),
    )


class _Weights(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("middle", ctypes.c_void_p),
        ("group", ctypes.c_int),
    )


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
class Packed:
    """Weights in the kernel's order. A level stands for `table[level] * scale + middle`, the last two of groups of 2^`group` inputs."""

    inputs: int  # even: padded
    data: torch.Tensor  # bfloat16, or eight levels an int32
    table: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    middle: torch.Tensor | None = None
    group: int = 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [one for one in (self.data, self.scale, self.middle) if one is not None]


class Ending(NamedTuple):
    """What becomes of a sum: the `bias` `[outputs, padded]` float32 is added, `then` is done to it, and `other` is added or multiplied."""

    outputs: int
    bias: torch.Tensor | None = None
    then: str = "none"
    how: str = "alone"
    other: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Decoding rows in a layer, all in bfloat16. `fits` says whether a kernel with so many columns takes them."""

    query: torch.Tensor  # [rows, heads, dim]
    key: torch.Tensor  # [rows, kv_heads, dim]
    value: torch.Tensor
    keys: torch.Tensor  # [slots, kv_heads, context, dim], contiguous
    values: torch.Tensor
    slots: torch.Tensor  # [rows], contiguous, as positions
    positions: torch.Tensor
    scale: float | None = None  # 1 / sqrt(dim) when None
    window: int | None = None  # tokens that a row sees; all when None

    def fits(self, columns: int) -> bool:
        dense = all(part.stride()[1:] == (part.shape[2], 1) for part in (self.query, self.key, self.value))
        alike = self.key.shape[2] == self.value.shape[2] and self.key.shape[2] <= MOST_DIM and self.key.shape[2] % (columns // 2) == 0
        return dense and alike and self.query.dtype == self.keys.dtype == torch.bfloat16


class Kernel:
    """x W^T in bfloat16, summed in float32. A row's result does not depend on the rows beside it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.columns.restype = ctypes.c_int64
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        library.linear.argtypes = [pointer, whole, whole, ctypes.POINTER(_Weights), ctypes.POINTER(_Ending), ctypes.c_int]
        self.columns = int(library.columns())
        self._linear = library.linear
        library.norm.argtypes = [pointer, whole, whole, pointer, ctypes.c_float, pointer, ctypes.c_int]
        library.norm.restype = None
        self._norm = library.norm
        library.step.argtypes = [ctypes.POINTER(_Step), ctypes.c_int]
        self._step = library.step

    def pack(self, weight: torch.Tensor) -> Packed:
        """`[outputs, inputs]` bfloat16 of any size."""
        pairs = self._pairs(weight)
        return Packed(2 * pairs.shape[1], pairs)

    def pack_levels(self, levels: torch.Tensor, table: Sequence[float], scale: torch.Tensor, middle: torch.Tensor) -> Packed:
        """`levels` 0..15 `[outputs, inputs]`, `scale` and `middle` `[outputs, groups]`; the inputs of a group are a power of 2."""
        outputs, inputs = levels.shape
        padded = F.pad(levels.to(torch.int32), (0, 0, 0, -outputs % self.columns))
        eights = padded.view(-1, self.columns, inputs // 8, 8).transpose(1, 2) << torch.arange(0, 32, 4, dtype=torch.int32)
        size = levels.shape[1] // scale.shape[1]
        assert size * scale.shape[1] == levels.shape[1] and size & (size - 1) == 0 and size >= 8
        return Packed(
            levels.shape[1],
            eights.sum(-1, dtype=torch.int32),
            torch.tensor(table, dtype=torch.float32),
            self._columns(scale),
            self._columns(middle),
            size.bit_length() - 1,
        )

    def _pairs(self, weight: torch.Tensor) -> torch.Tensor:
        """`[outputs, inputs]` to `[blocks, inputs / 2, columns, 2]`, both padded with zeros."""
        outputs, inputs = weight.shape
        padded = F.pad(weight, (0, inputs % 2, 0, -outputs % self.columns))
        return padded.view(-1, self.columns, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()

    def _columns(self, groups: torch.Tensor) -> torch.Tensor:
        """`[outputs, groups]` to `[blocks, groups, columns]` float32."""
        padded = F.pad(groups.float(), (0, 0, 0, -len(groups) % self.columns))
        return padded.view(-1, self.columns, groups.shape[1]).transpose(1, 2).contiguous()

    def pad(self, bias: torch.Tensor) -> torch.Tensor:
        return F.pad(bias.float(), (0, -len(bias) % self.columns))

    def __call__(self, x: torch.Tensor, packed: Packed, ending: Ending) -> torch.Tensor:
        """`x` `[..., inputs]` bfloat16 to `[..., outputs]`. Raises `MemoryError`."""
        inputs = packed.inputs
        if x.shape[-1] < inputs:
            x = F.pad(x, (0, 1))
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], ending.outputs, dtype=torch.bfloat16)
        other = None if ending.other is None else ending.other.contiguous()
        weights = _Weights(packed.data.data_ptr(), _at(packed.table), _at(packed.scale), _at(packed.middle), packed.group)
        end = _Ending(_at(ending.bias), THEN[ending.then], HOW[ending.how], _at(other), out.data_ptr(), ending.outputs)
        if self._linear(x.data_ptr(), x.numel() // inputs, inputs, weights, end, torch.get_num_threads()):
            raise MemoryError("no memory for the activations of a layer")
        return out

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm of `x` `[..., inputs]` in bfloat16."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self._norm(x.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], weight.data_ptr(), eps, out.data_ptr(), torch.get_num_threads())
        return out

    def decode(self, step: Step) -> torch.Tensor:
        """The rows' keys and values are written where they belong; what each row attends to, `[rows, heads, dim]`. Raises `MemoryError`."""
        rows, heads, dim = step.query.shape
        kv_heads = step.key.shape[1]
        out = torch.empty(rows, heads, dim, dtype=torch.bfloat16)
        given = _Step(
            *(part.data_ptr() for part in (step.query, step.key, step.value)),
            *(part.stride(0) for part in (step.query, step.key, step.value)),
            step.keys.data_ptr(),
            step.values.data_ptr(),
            *step.keys.stride()[:2],
            step.slots.data_ptr(),
            step.positions.data_ptr(),
            *(rows, heads, kv_heads, dim, step.window or 0),
            dim**-0.5 if step.scale is None else step.scale,
            out.data_ptr(),
        )
        if self._step(given, torch.get_num_threads()):
            raise MemoryError("no memory for the scores of a step")
        return out


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def kernel() -> Kernel | None:
    """One for the process."""
    try:
        made = Kernel(ctypes.CDLL(str(_library())))
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
    return hashlib.sha256(
        b"\0".join([*(path.read_bytes() for path in SOURCES), version, flags.encode(), " ".join(COMPILE).encode()])
    ).hexdigest()[:16]


def _compiled(path: Path) -> Path:
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all, whoever else compiles at the same time
            part = Path(folder) / path.name
            done = subprocess.run([*COMPILE, "-o", part, *UNITS], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            if done.returncode:
                raise _Unable(f"gcc: {next(iter(done.stderr.splitlines()), f'exit code {done.returncode}')}")
            part.replace(path)
    return path


def _right(made: Kernel) -> bool:
    """Whether it agrees with torch on this machine."""
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=draw).bfloat16() for size in ((2 * made.columns + 3, 70), (17, 70)))
    found = made(x, made.pack(weight), Ending(len(weight)))
    right = torch.allclose(found.float(), x.float() @ weight.float().T, atol=0.2, rtol=0.01)
    if not right:
        log.error("the compiled kernel is wrong on this machine: bfloat16 layers are left to oneDNN")
    return right
