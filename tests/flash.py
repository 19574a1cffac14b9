"""What torch's flash attention computes, in slow and plain steps, and what kernels in Triton do: for tests of what calls them on CUDA. It
refuses what the kernel refuses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from app.engine import flat, graphs, varlen
from app.engine.cudadecoder import CudaDecoder, PlainKernels
from app.engine.keyvalues import Shape
from app.engine.scores import Change


class FlashKernel:
    """Stands for `torch.ops.aten._flash_attention_forward`. `calls` counts them."""

    def __init__(self, has_page_table: bool) -> None:
        self.has_page_table, self.calls = has_page_table, 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        key_starts: torch.Tensor,
        longest: int,
        most_keys: int,
        dropout: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float | None,
        window_size_left: int,
        window_size_right: int,
        seqused_k: torch.Tensor | None,
        block_table: torch.Tensor | None = None,
        num_splits: int | None = None,
    ) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        assert dropout == 0.0 and not return_debug_mask and is_causal == (window_size_right == 0 and window_size_left == -1)
        assert window_size_right in (-1, 0)
        tables = [table for table in (starts, key_starts, seqused_k, block_table) if table is not None]
        assert all(table.dtype == torch.int32 for table in tables)
        count, heads = len(starts) - 1, query.shape[1]
        assert 0 < count <= varlen.MOST_SEQUENCES and starts.is_contiguous() and key_starts.is_contiguous() and len(key_starts) == count + 1
        assert heads % key.shape[-2] == 0 and query.dtype == key.dtype == value.dtype and query.stride(-1) == key.stride(-1) == 1
        assert seqused_k is None or (len(seqused_k) == count and seqused_k.is_contiguous())
        if block_table is not None:
            assert (
                self.has_page_table
                and len(block_table) == count
                and block_table.stride(-1) == 1
                and key.shape[1] % 256 == 0
                and seqused_k is not None
            )
        is_divided = num_splits not in (None, 1)  # the kernel does so only where it reads the keys of a group of heads once
        assert not is_divided or (longest == 1 and heads > key.shape[-2] and window_size_left == window_size_right == -1)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        out, lse = torch.zeros_like(query), torch.full((heads, len(query)), torch.inf)
        for at, (rows, k, v) in enumerate(_sequences(key, value, starts, key_starts, seqused_k, block_table)):
            assert rows.stop - rows.start <= longest and len(k) <= most_keys, f"sequence {at} is longer than was said"
            if rows.stop == rows.start or not len(k):
                continue
            scores = torch.einsum("qhd,khd->hqk", query[rows].float(), k.float().repeat_interleave(heads // k.shape[1], 1)) * scale
            behind = torch.arange(len(k)) - (len(k) - (rows.stop - rows.start) + torch.arange(rows.stop - rows.start))[:, None]
            if window_size_right == 0:
                scores = scores.masked_fill(behind > 0, -torch.inf)
            if window_size_left != -1:
                scores = scores.masked_fill(behind < -window_size_left, -torch.inf)
            weighted = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.float().repeat_interleave(heads // k.shape[1], 1))
            out[rows], lse[:, rows] = weighted.to(query.dtype), scores.logsumexp(-1)
        return out, lse, torch.empty(0), torch.empty(0), torch.empty(0)


def _sequences(
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    used: torch.Tensor | None,
    pages: torch.Tensor | None,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """The rows, keys and values of each."""
    for at in range(len(starts) - 1):
        rows = slice(int(starts[at]), int(starts[at + 1]))
        if pages is not None and used is not None:
            parts = [part[pages[at].long()].flatten(0, 1)[: int(used[at])] for part in (key, value)]
        else:
            first = int(key_starts[at])
            last = int(key_starts[at + 1]) if used is None else first + int(used[at])
            parts = [part[first:last] for part in (key, value)]
        yield rows, parts[0], parts[1]


def use_flash(monkeypatch: pytest.MonkeyPatch, has_page_table: bool = True) -> FlashKernel:
    """Let models on a CPU attend as those on CUDA do, if their caches have pages of `varlen.PAGE_TOKENS`."""
    kernel = FlashKernel(has_page_table)

    def usable_splits(device: torch.device, dtype: torch.dtype, shapes: list[Shape], context: int, changes: frozenset[Change]) -> int:
        return 0 if "cap" in changes else 4 if has_page_table else 1

    monkeypatch.setattr(varlen, "flash_kernel", kernel)
    monkeypatch.setattr(varlen, "has_page_table", lambda: has_page_table)
    monkeypatch.setattr(varlen, "usable_splits", usable_splits)
    monkeypatch.setattr(flat, "create_cuda_decoder", lambda decoder: CudaDecoder(decoder, PlainKernels()))
    return kernel


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Models that are loaded while this is open attend and record steps as on CUDA. Before, `use_flash`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(varlen, "page_tokens", lambda device: varlen.PAGE_TOKENS)
        monkeypatch.setattr(graphs, "CudaRecorder", lambda: lambda work: work)
        yield
