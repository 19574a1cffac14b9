"""Reads the front of a GGUF file, its metadata and its table of tensors, in one pass over a memory map.

The `gguf` package reads the same, but makes several numpy objects of each token of the vocabulary, which takes seconds. Every length in the
file is checked before it is used. The layout is that of GGUF versions 2 and 3, little-endian:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

import gguf
import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
BIG_ENDIAN_VERSIONS = tuple(version << 24 for version in (1, *VERSIONS))
STRING, ARRAY, BOOL = 8, 9, 7
# type number of a value -> its letter for `struct`
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
U32, U64, TWO_U64, U32_U64 = Struct("<I"), Struct("<Q"), Struct("<QQ"), Struct("<IQ")
MAX_DIMENSIONS = 4
MAX_BYTES = 1 << 26  # of metadata and table; a vocabulary of 262,144 tokens takes less than a quarter of it
MAX_LIST = 1 << 22
DEFAULT_ALIGNMENT = 32
LEAST_ENTRY, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes that an entry of the metadata, or of the table, takes at least


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `raw` is mapped from it, uint8 `[rows, bytes of a row]`, or `[bytes]` for one dimension."""

    name: str
    type: str  # as GGML names it: Q4_1, F16 ...
    shape: tuple[int, ...]  # as torch has it: [out, in]
    raw: np.ndarray


class Header:
    """Metadata and tensors of a file. Raises `ValueError` that says what is wrong with it, and `OSError` if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at, self._end = 0, min(len(self._data), MAX_BYTES)
        tensors, entries = self._counts()
        self.metadata = self._metadata(entries)
        self.tensors = self._tensors(tensors)

    def release(self) -> None:
        """Let the system take back the pages of the file that were read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def _take(self, size: int) -> int:
        """Where the next `size` bytes start."""
        at, self._at = self._at, self._at + size
        if self._at > self._end:
            raise ValueError(f"it is cut short or damaged: its metadata and table of tensors do not end within {self._end} bytes")
        return at

    def _unpack(self, layout: Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self._data, self._take(layout.size))

    def _string(self) -> str:
        (length,) = self._unpack(U64)
        at = self._take(length)
        return self._data[at : at + length].decode()

    def _strings(self, count: int) -> list[str]:
        """The loop in which the time goes: a vocabulary has 50,000 to 250,000 tokens, and as many merges."""
        data, unpack, at, last, strings = self._data, U64.unpack_from, self._at, self._end - U64.size, []
        for _ in range(count):
            if at > last:
                break
            start = at + U64.size
            at = start + unpack(data, at)[0]
            if at > self._end:
                break
            strings.append(data[start:at].decode())
        self._take(at - self._at if len(strings) == count else self._end)
        return strings

    def _counts(self) -> tuple[int, int]:
        """Numbers of tensors and of metadata entries."""
        if self._data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._take(4)
        (version,) = self._unpack(U32)
        if version in BIG_ENDIAN_VERSIONS:
            raise ValueError("it is big-endian; gguf-convert-endian of the gguf package makes a little-endian file of it")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, only {' and '.join(map(str, VERSIONS))} are read")
        tensors, entries = self._unpack(TWO_U64)
        if tensors * LEAST_TENSOR + entries * LEAST_ENTRY > self._end - self._at:
            raise ValueError(
                f"it is cut short or damaged: {tensors} tensors and {entries} metadata entries need more than {self._end} bytes"
            )
        return tensors, entries

    def _metadata(self, entries: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                raise ValueError(f"its metadata has {key} twice")
            (kind,) = self._unpack(U32)
            metadata[key] = self._value(key, kind)
        return metadata

    def _value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._unpack(U32_U64)
            if count > MAX_LIST:
                raise ValueError(f"its metadata {key} is a list of {count} values, more than {MAX_LIST}")
            if element == STRING:
                return self._strings(count)
            return list(self._scalars(key, element, count))
        return self._scalars(key, kind, 1)[0]

    def _scalars(self, key: str, kind: int, count: int) -> tuple[Any, ...]:
        if kind not in SCALARS:
            raise ValueError(f"its metadata {key} has values of type {kind}, which cannot be read")
        return self._unpack(Struct(f"<{count}{SCALARS[kind]}"))

    def _tensors(self, count: int) -> dict[str, Tensor]:
        table = [(self._string(), self._shape(), *self._unpack(U32_U64)) for _ in range(count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its metadata general.alignment is {alignment!r}, not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, shape, kind, start + offset) for name, shape, kind, offset in table}
        if len(tensors) < count:
            names = [name for name, *_ in table]
            raise ValueError(f"it has the tensor {next(name for name in names if names.count(name) > 1)} twice")
        return tensors

    def _shape(self) -> tuple[int, ...]:
        (dimensions,) = self._unpack(U32)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        return tuple(reversed(self._unpack(Struct(f"<{dimensions}Q"))))  # the file has the fastest dimension first

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(f"tensor {name} has the type {kind}, which the installed gguf package does not know") from None
        elements, size = gguf.GGML_QUANT_SIZES[known]  # of a block
        if shape[-1] % elements:
            raise ValueError(f"tensor {name} has rows of {shape[-1]}, which are no whole blocks of {known.name}")
        row = shape[-1] // elements * size
        end = start + prod(shape[:-1]) * row
        if end > len(self._data):
            raise ValueError(f"it is cut short: tensor {name} ends at byte {end}, the file at {len(self._data)}")
        raw = np.frombuffer(self._data, np.uint8, end - start, start)
        return Tensor(name, known.name, shape, raw.reshape(*shape[:-1], row))
