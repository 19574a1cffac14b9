"""Gives memory that a load has used and no longer needs back to the system: freed blocks that C's allocator would keep, mapped files."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from app.models.source import Source


def unmap(model: nn.Module) -> None:
    """Copy what stays as it is, embeddings and norms, out of the mapped checkpoint: a single tensor keeps the whole file in memory, also
    the layers that are then packed elsewhere. Call it before they are packed.
    """
    mapped = list(_mapped_files())
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    packed = {id(module.weight) for module in model.modules() if type(module) is nn.Linear} - {id(getattr(embedding, "weight", None))}
    for parameter in model.parameters():
        if id(parameter) not in packed and any(start <= parameter.data_ptr() < end for start, end in mapped):
            parameter.data = parameter.data.clone()


def _mapped_files() -> Iterator[tuple[int, int]]:
    """Addresses of this process where safetensors files are mapped; none where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(".safetensors"):
                start, end = line.split()[0].split("-")
                yield int(start, 16), int(end, 16)


def release_freed(*sources: Source) -> None:
    """Call it after a load: rounding a model of 135 million parameters leaves 300 to 500 MB behind. Pages of a GGUF file whose weights
    were packed are given back, too; they are read again if they are wanted.
    """
    for source in sources:
        if source.gguf is not None:
            source.gguf.release()
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; musl has none
        if trim is not None:
            trim(0)
