"""The kernels of `csrc` for bfloat16 on a CPU.

    kernel() -> Kernel | None    None where there is no x86, no gcc or no OpenMP of GCC's in the process; why is logged
    Kernel(x, packed, ending) -> Tensor    packed by `app.engine.packing` in blocks of Kernel.columns
    Kernel.norm(x, weight, eps) -> Tensor; Kernel.decode(step) -> Tensor; Kernel.read(reading) -> Tensor

Knows no layer and no model.
"""

import ctypes
import logging
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

from app.engine import packing
from app.engine.compiler import Unable, library
from app.engine.packing import Packed

log = logging.getLogger(__name__)

MOST_DIM = 256  # of a head
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


class _Reading(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_row", "key_row", "key_head", "value_row", "value_head")),
        *((name, ctypes.c_int64) for name in ("rows", "start", "heads", "kv_heads", "dim", "window")),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_void_p),
    )


class _Sums(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "seen")),
        *((name, ctypes.c_int64) for name in ("logits_row", "seen_row", "rows", "width")),
        *((name, ctypes.c_void_p) for name in ("targets", "out")),
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
        return dense and _takes(self.query, self.key, self.value, columns) and self.keys.dtype == torch.bfloat16


@dataclass(frozen=True, slots=True)
class Reading:
    """The last `rows` of a sequence, all of whose keys and values are given; all in bfloat16."""

    query: torch.Tensor  # [rows, heads, dim]
    key: torch.Tensor  # [length, kv_heads, dim]
    value: torch.Tensor
    scale: float | None = None  # as a step's
    window: int | None = None

    def fits(self, columns: int) -> bool:
        dense = self.query.stride()[1:] == (self.query.shape[2], 1) and self.key.stride(2) == self.value.stride(2) == 1
        return dense and _takes(self.query, self.key, self.value, columns)


def _takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, columns: int) -> bool:
    """Whether heads are of a size that a kernel with so many columns knows."""
    dim = key.shape[2]
    return dim == value.shape[2] <= MOST_DIM and dim % (columns // 2) == 0 and query.dtype == key.dtype == torch.bfloat16


class Kernel:
    """x W^T in bfloat16, summed in float32. A row's result does not depend on the rows beside it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.columns.restype = ctypes.c_int64
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        library.linear.argtypes = [pointer, whole, whole, ctypes.POINTER(_Weights), ctypes.POINTER(_Ending), ctypes.c_int]
        self.columns = int(library.columns())
        self._linear = library.linear
        library.rounded.argtypes = [pointer, whole, whole, pointer, ctypes.POINTER(_Ending), ctypes.c_int]
        self._rounded = library.rounded
        library.norm.argtypes = [pointer, whole, whole, pointer, ctypes.c_float, pointer, ctypes.c_int]
        library.norm.restype = None
        self._norm = library.norm
        library.step.argtypes = [ctypes.POINTER(_Step), ctypes.c_int]
        self._step = library.step
        library.span.argtypes = [ctypes.POINTER(_Reading), ctypes.c_int]
        self._span = library.span
        library.sums.argtypes = [ctypes.POINTER(_Sums), ctypes.c_int]
        library.sums.restype = None
        self._sums = library.sums

    def __call__(self, x: torch.Tensor, packed: Packed, ending: Ending) -> torch.Tensor:
        """`x` `[..., inputs]` bfloat16 to `[..., outputs]`. Raises `MemoryError`."""
        inputs = packed.inputs
        if x.shape[-1] < inputs:
            x = F.pad(x, (0, 1))
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], ending.outputs, dtype=torch.bfloat16)
        other = None if ending.other is None else ending.other.contiguous()
        end = _Ending(_at(ending.bias), THEN[ending.then], HOW[ending.how], _at(other), out.data_ptr(), ending.outputs)
        given = (x.data_ptr(), x.numel() // inputs, inputs)
        if packed.rounds:
            lacking = self._rounded(*given, packed.data.data_ptr(), end, torch.get_num_threads())
        else:
            weights = _Weights(packed.data.data_ptr(), _at(packed.table), _at(packed.scale), _at(packed.middle), packed.group)
            lacking = self._linear(*given, weights, end, torch.get_num_threads())
        if lacking:
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

    def read(self, reading: Reading) -> torch.Tensor:
        """What each row attends to, itself and what is before it, `[rows, heads, dim]`. Raises `MemoryError`."""
        query, key, value = reading.query, reading.key, reading.value
        rows, heads, dim = query.shape
        out = torch.empty(rows, heads, dim, dtype=torch.bfloat16)
        given = _Reading(
            *(part.data_ptr() for part in (query, key, value)),
            query.stride(0),
            *key.stride()[:2],
            *value.stride()[:2],
            *(rows, len(key) - rows, heads, key.shape[1], dim, reading.window or 0),
            dim**-0.5 if reading.scale is None else reading.scale,
            out.data_ptr(),
        )
        if self._span(given, torch.get_num_threads()):
            raise MemoryError("no memory for the scores of a prompt")
        return out

    def sums(self, logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Of `logits` `[rows, vocab]`, `targets` `[rows]` and an observer's `seen`: `[rows, 6]` in float64, each target's log-probability
        and rank, the mean and the variance of log p under p, and, 0 without `seen`, cross-entropy and the observer's log-probability.
        """
        out = torch.empty(len(logits), 6, dtype=torch.float64)
        width = logits.shape[1] if seen is None else min(logits.shape[1], seen.shape[1])
        rows = (logits.stride(0), 0 if seen is None else seen.stride(0), len(logits), width)
        self._sums(_Sums(logits.data_ptr(), _at(seen), *rows, targets.data_ptr(), out.data_ptr()), torch.get_num_threads())
        return out


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def kernel() -> Kernel | None:
    """One for the process."""
    try:
        made = Kernel(library())
    except (OSError, subprocess.SubprocessError, Unable) as error:
        log.warning("bfloat16 layers are left to oneDNN, about half as fast: %s", error)
        return None
    return made if _right(made) else None


def _right(made: Kernel) -> bool:
    """Whether its products agree with torch on this machine."""
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=draw).bfloat16() for size in ((2 * made.columns + 3, 96), (17, 96)))
    levels = torch.randint(16, weight.shape, generator=draw)
    ones = torch.ones(len(weight), 3)
    pairs = (packing.pairs(weight, made.columns), weight), (packing.steps(levels, ones, 0 * ones, made.columns), levels - 8)
    found = [(made(x, packed, Ending(len(weight))).float(), x.float() @ plain.float().T) for packed, plain in pairs]
    right = all(torch.allclose(mine, wanted, atol=0.01 * wanted.abs().max().item(), rtol=0.01) for mine, wanted in found)
    if not right:
        log.error("the compiled kernel is wrong on this machine: bfloat16 layers are left to oneDNN")
    return right
