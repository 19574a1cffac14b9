"""Attention of many sequences in one call of torch's own flash kernel, whose keys and values lie in pages: on CUDA, in 16 bits.

torch 2.13 takes a table of pages. torch 2.11 does not: there the rows of decoding slots read each page as a sequence of its own, whose
results are joined by their log-sum-exps (as in flash decoding, arXiv 2311.01282), and prompts gather their pages first.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product

import torch
from torch.nn import functional as F

from app.engine import pages
from app.engine.scores import Change, Scores
from app.engine.scores import attend as attend_by_torch
from app.errors import first_line

log = logging.getLogger(__name__)

PAGE_TOKENS = 256  # the kernel reads pages of a multiple of so many tokens
DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8
MIN_CAPABILITY = (8, 0)  # Ampere
MAX_PROBE_ERROR = 2e-2  # of the probe's outputs, relative to their norm
PROBED_GROUPS, PROBED_WINDOW = 4, 300  # heads for one of keys, and a sliding window
MOST_SEQUENCES = 65_535  # of a call: they are the second dimension of the kernel's grid
SPLIT_TOKENS, MAX_SPLITS = 1024, 16  # keys that one block of a card reads for a decoding row, where the context is not too long for it

flash_kernel = torch.ops.aten._flash_attention_forward
Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass(frozen=True, slots=True)
class PagedKeys:
    """Keys and values `[pages, PAGE_TOKENS, kv_heads, dim]` of a layer. No sequence has more than `context` tokens. `splits`: into how many
    parts the keys of a decoding row are divided, by their positions, so that its sums depend on no other row.
    """

    keys: torch.Tensor
    values: torch.Tensor
    context: int
    splits: int = 1


@dataclass(frozen=True)
class Reads:
    """Which keys the rows of some sequences read. The rows of a sequence follow each other, and are the last of its positions."""

    starts: torch.Tensor  # int32 [sequences + 1]: the first row of each sequence, and the number of rows
    used: torch.Tensor  # int32 [sequences]: keys of each sequence, those of its rows included
    pages: torch.Tensor | None  # int32 [sequences, pages of the longest]; None: the keys are those of the rows themselves
    longest: int  # rows of a sequence, at most

    @cached_property
    def of_pages(self) -> "tuple[PageReads, ...]":
        """Of as many sequences each as one call may read page by page."""
        assert self.pages is not None
        most = max(1, MOST_SEQUENCES // self.pages.shape[1])
        return tuple(map(PageReads, self.used.split(most), self.pages.split(most)))


class PageReads:
    """Reads with each page of a sequence as a sequence of its own, of which one row reads: for torch without a table of pages."""

    def __init__(self, used: torch.Tensor, pages: torch.Tensor) -> None:
        """As those of `Reads`."""
        sequences, count = pages.shape
        device = pages.device
        places = torch.arange(count, dtype=torch.int32, device=device) * PAGE_TOKENS
        used = (used[:, None] - places).clamp(0, PAGE_TOKENS)  # [sequences, pages]
        self.count = count
        rows = torch.arange(sequences * count + 1, dtype=torch.int32, device=device)
        key_starts = F.pad((pages * PAGE_TOKENS).flatten(), (0, 1))  # the last one is never read
        self.sequences = Sequences(rows, key_starts, 1, PAGE_TOKENS, used.flatten())
        self.is_empty = used == 0


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the kernel is told of the sequences of a call: where their queries and keys begin, and how many there are at most of each."""

    starts: torch.Tensor  # int32 [sequences + 1]
    key_starts: torch.Tensor  # int32 [sequences + 1]; with pages it is not read
    longest: int
    most_keys: int
    used: torch.Tensor | None = None  # int32 [sequences]: keys of each; None: up to where those of the next begin
    pages: torch.Tensor | None = None  # int32 [sequences, pages]
    splits: int = 1


def attend(query: torch.Tensor, cached: PagedKeys, own: Pair, reads: Reads, scores: Scores) -> torch.Tensor:
    """Attend `query` `[rows, heads, dim]`, causally, to the keys `cached` or, if the reads have no pages, to the rows' `own`
    `[rows, kv_heads, dim]`. Returns `[rows, heads, dim]`. The `scores` have no cap: the kernel knows none.

    Only rows without a window, of several heads for one of keys, are divided into parts: of others the kernel would write one row alone
    (Dao-AILab/flash-attention issue 1217).
    """
    out, lse = _attend(query, cached, own, reads, scores)
    if scores.sinks is None:
        return out
    shares = torch.sigmoid(lse.transpose(0, 1) - scores.sinks.float())  # of the keys: exp(lse) / (exp(lse) + exp(sink))
    return (out * shares[..., None]).to(query.dtype)


def _attend(query: torch.Tensor, cached: PagedKeys, own: Pair, reads: Reads, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend`, without sinks; and the log-sum-exps of the scores `[heads, rows]`."""
    starts, table, window = reads.starts, reads.pages, scores.window
    if table is None:
        return _flash(query, own, Sequences(starts, starts, reads.longest, reads.longest), scores)
    if has_page_table():
        splits = cached.splits if reads.longest == 1 and window is None and query.shape[1] > cached.keys.shape[2] else 1
        sequences = Sequences(starts, starts, reads.longest, cached.context, reads.used, table, splits)
        return _flash(query, (cached.keys, cached.values), sequences, scores)
    if reads.longest == 1 and (window is None or table.shape[1] * PAGE_TOKENS <= window):
        queries = query.split(len(reads.of_pages[0].is_empty))
        parts = [_attend_pages(*each, cached, scores) for each in zip(queries, reads.of_pages, strict=True)]
        return parts[0] if len(parts) == 1 else (torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts], 1))
    size = table.shape[1] * PAGE_TOKENS
    gathered = [part.index_select(0, table.flatten()).flatten(0, 1) for part in (cached.keys, cached.values)]
    key_starts = torch.arange(len(table) + 1, dtype=torch.int32, device=query.device) * size
    return _flash(query, (gathered[0], gathered[1]), Sequences(starts, key_starts, reads.longest, size, reads.used), scores)


def _attend_pages(query: torch.Tensor, reads: PageReads, cached: PagedKeys, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """All keys of a sequence lie within the window, if there is one."""
    rows, heads, dim = query.shape
    repeated = query[:, None].expand(rows, reads.count, heads, dim).flatten(0, 1)
    out, lse = _flash(repeated, (cached.keys.flatten(0, 1), cached.values.flatten(0, 1)), reads.sequences, replace(scores, window=None))
    if reads.count == 1:
        return out, lse
    of_pages = lse.view(heads, rows, reads.count).masked_fill(reads.is_empty, -torch.inf)
    shares = of_pages.softmax(-1).permute(1, 2, 0)  # [rows, pages, heads]
    return (out.view(rows, reads.count, heads, dim) * shares[..., None]).sum(1).to(query.dtype), of_pages.logsumexp(-1)


def _flash(query: torch.Tensor, keys_and_values: Pair, sequences: Sequences, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the log-sum-exps `[heads, rows]`. The mask is causal from the last key backwards: the last row of a sequence sees all
    of its keys. A single row needs no mask, and without one the kernel reads the keys of a group of heads once.
    """
    window = scores.window
    is_masked = sequences.longest > 1 or window is not None
    of_pages = {} if sequences.pages is None else {"block_table": sequences.pages, "num_splits": sequences.splits}
    out, lse, *_ = flash_kernel(
        query,
        *keys_and_values,
        sequences.starts,
        sequences.key_starts,
        sequences.longest,
        sequences.most_keys,
        0.0,
        is_masked and window is None,
        False,
        scale=scores.scale,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=0 if is_masked else -1,
        seqused_k=sequences.used,
        **of_pages,
    )
    return out, lse


@cache
def has_page_table() -> bool:
    """Whether torch's kernel reads pages by a table (since 2.12)."""
    return any(argument.name == "block_table" for argument in flash_kernel.default._schema.arguments)


def page_tokens(kind: str) -> int:
    """Tokens of a page of the KV cache of a model on a device of this kind, such as cuda."""
    return PAGE_TOKENS if kind == "cuda" else pages.PAGE_TOKENS


def usable_splits(
    device: torch.device, dtype: torch.dtype, shapes: Collection[tuple[int, int, int]], context: int, changes: Collection[Change]
) -> int:
    """Into how many parts the kernel may divide the keys of a decoding row, for layers of these shapes (kv_heads, key dim, value dim),
    sequences of `context` tokens and these `changes` of scores; 0 if it does not compute them, or not right: what it makes of random
    numbers is compared.
    """
    if device.type != "cuda" or dtype not in DTYPES or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return 0
    if "cap" in changes or any(key != value or key > MAX_HEAD_DIM or key % HEAD_DIM_MULTIPLE for _, key, value in shapes):
        return 0
    wanted = max(1, min(MAX_SPLITS, context // SPLIT_TOKENS)) if has_page_table() else 1
    for splits in sorted({wanted, 1}, reverse=True):
        what = f"torch's flash attention, with the keys of a row in {splits} parts," if splits > 1 else "torch's flash attention"
        try:
            error = max(probe(device, dtype, heads, dim, splits, "sinks" in changes) for heads, dim, _ in set(shapes))
        except RuntimeError as problem:
            log.warning("%s does not run here, and is not used: %s", what, first_line(problem))
            continue
        if error <= MAX_PROBE_ERROR:
            return splits
        log.warning("%s is wrong by %.1f%% here, and is not used", what, 100 * error)
    return 0


@torch.inference_mode()
def probe(device: torch.device, dtype: torch.dtype, kv_heads: int, dim: int, splits: int = 1, has_sinks: bool = False) -> float:
    """How wrong attention is, relative to the outputs' norm, for three sequences, whose keys lie on up to four pages: as decoding rows and
    as prompts that go on, with one head and with several for one of keys, with a window and without; if they have sinks, with these.
    """
    lengths, context = (3 * PAGE_TOKENS + 9, 5, PAGE_TOKENS + 1), max(4, splits) * PAGE_TOKENS
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(8, PAGE_TOKENS, kv_heads, dim, generator=generator).to(device, dtype) for _ in range(2))
    table = torch.tensor([[2, 0, 5, 3], [1, 1, 1, 1], [4, 6, 4, 4]], dtype=torch.int32, device=device)
    used = torch.tensor(lengths, dtype=torch.int32, device=device)
    cached, errors = PagedKeys(keys, values, context, splits), []
    for rows, groups, window in product((1, 4), (1, PROBED_GROUPS), (None, PROBED_WINDOW)):
        query = torch.randn(len(lengths) * rows, groups * kv_heads, dim, generator=generator).to(device, dtype)
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device) * rows
        sinks = torch.randn(groups * kv_heads, generator=generator).to(device, dtype) + math.log(PAGE_TOKENS) if has_sinks else None
        scores = Scores(None, window, None, sinks)
        found = attend(query, cached, (keys[0], values[0]), Reads(starts, used, table, rows), scores)
        parts = []
        for part, own, length in zip(query.float().split(rows), table.long(), lengths, strict=True):
            k, v = (each[own].flatten(0, 1)[:length].transpose(0, 1) for each in (keys, values))  # [kv_heads, tokens, dim]
            parts.append(attend_by_torch(part, k, v, length - rows, scores))
        expected = torch.cat(parts)
        errors.append(float((found.float() - expected).norm() / expected.norm()))
    return max(errors)
