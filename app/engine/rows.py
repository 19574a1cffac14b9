"""What the compiled attention is asked: the decoding rows of a layer, or consecutive rows of one sequence, with the layer's cache.

Whether it can be computed is decided here; `kernel.py` computes it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from app.engine.keyvalues import Shape, attends
from app.engine.scores import Scores
from app.errors import SetupError

MAX_HEAD_DIM = 512  # as in csrc/cache.h
ROW_DTYPES = (torch.bfloat16, torch.float32)
PLAIN = Scores()


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The decoding rows of one layer, in bfloat16 or float32, with the layer's KV cache in the same type or in 8 bits."""

    query: torch.Tensor  # [rows, heads, dim]
    key: torch.Tensor  # [rows, kv_heads, dim]
    value: torch.Tensor  # [rows, kv_heads, dim]
    key_cache: torch.Tensor  # [pages, kv_heads, page, elements of a head], contiguous pages
    value_cache: torch.Tensor  # the same, with the same strides
    pages: torch.Tensor  # of all rows' sequences, one after the other; contiguous
    firsts: torch.Tensor  # [rows], contiguous: where in `pages` those of each row begin
    positions: torch.Tensor  # [rows], contiguous
    scores: Scores = PLAIN

    def is_supported(self, columns: int) -> bool:
        """Whether a kernel with blocks of `columns` outputs can compute these rows."""
        dtype, cache = self.query.dtype, self.key_cache.dtype
        return (
            all(dense(part) is part for part in (self.query, self.key, self.value))
            and has_supported_heads(self.key.shape[2], self.value.shape[2], columns)
            and self.key.dtype == dtype
            and dtype in ROW_DTYPES
            and cache in (dtype, torch.int8)
        )


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Consecutive positions of one sequence, with the keys and values of all up to them or, with a cache, their own, which are written to
    it first. All in bfloat16, or the cache in 8 bits and the rows in bfloat16 or float32.
    """

    query: torch.Tensor  # [rows, heads, dim]
    key: torch.Tensor  # [start + rows, kv_heads, dim]; with a cache [rows, kv_heads, dim]
    value: torch.Tensor  # the same
    start: int  # position of the first row
    scores: Scores = PLAIN
    pages: torch.Tensor | None = None  # of the sequence; contiguous
    cache: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values [pages, kv_heads, page, elements of a head], as in DecodeRows

    def is_supported(self, columns: int) -> bool:
        """Whether a kernel with blocks of `columns` outputs can compute these rows."""
        cached = self.key if self.cache is None else self.cache[0]
        fits = self.cache is None or cached.shape[2] % columns == 0  # so that a block of keys lies on one page
        dtypes = (self.query.dtype, cached.dtype)
        return (
            dense(self.query) is self.query
            and self.key.stride(-1) == self.value.stride(-1) == 1
            and fits
            and has_supported_heads(self.key.shape[2], self.value.shape[2], columns)
            and (dtypes == (torch.bfloat16, torch.bfloat16) or (dtypes[0] in ROW_DTYPES and dtypes[1] == torch.int8))
        )


def dense(part: torch.Tensor) -> torch.Tensor:
    """`part` `[rows, heads, dim]` with each row in one piece; itself where that is so."""
    return part if part.stride()[1:] == (part.shape[2], 1) else part.contiguous()


def has_supported_heads(key_dim: int, value_dim: int, columns: int) -> bool:
    """Whether the heads' dim is a whole number of vectors (half a block) and not too large."""
    return key_dim == value_dim <= MAX_HEAD_DIM and key_dim % (columns // 2) == 0


def check_bytes(model: str, dtype: torch.dtype, shapes: Collection[Shape], page_tokens: int, columns: int | None) -> None:
    """Raises `SetupError` unless a kernel with blocks of `columns` outputs (None: there is none) can keep a cache in 8 bits for a model's
    layers, whose rows are in `dtype`, whatever the step.
    """
    if columns is None:
        raise SetupError("model.cache_dtype: int8 needs a CPU and the compiled kernel, which is not there (the log says why); use auto")
    if not all(map(attends, shapes)):
        raise SetupError(f"model.cache_dtype: int8 is for models of attention alone, and {model} has layers of other kinds; use auto")
    for _, key, value in set(shapes):
        if dtype not in ROW_DTYPES or not has_supported_heads(key, value, columns) or page_tokens % columns:
            raise SetupError(
                f"model.cache_dtype: int8 is for models in bfloat16 or float32 whose heads have a multiple of {columns // 2} values, at "
                f"most {MAX_HEAD_DIM}; {model} is in {str(dtype).removeprefix('torch.')} with keys of {key} and values of {value}; use auto"
            )
