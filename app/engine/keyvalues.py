"""The tensors of a KV cache: keys and values of all layers, in pages. Knows no sequences and no attention.

In 8 bits (torch.int8) a token of a head is as many bytes as it has elements, and behind them a float32 by which they are to be multiplied:
only the compiled kernel writes and reads them. Laid out by tokens, as torch's flash kernel reads it, there is one page more than asked for:
rows that belong to no sequence are written there.
"""

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from app.engine.layout import Span
from app.engine.pages import PageCopy
from app.engine.varlen import PAGE_TOKENS, PagedKeys

SCALE_BYTES = 4

# Of a layer: kv_heads, key dim, value dim. Of a short convolution, which keeps its inputs: 1, channels, 0. Of one that keeps a state in
# each page: 0, the numbers of a state for each token of a page, 0.
Shape = tuple[int, int, int]


def attends(shape: Shape) -> bool:
    """Whether it is that of an attention."""
    return shape[2] > 0


def keeps_states(shapes: Iterable[Shape]) -> bool:
    """Whether some of these layers do."""
    return any(heads == 0 for heads, _, _ in shapes)


def token_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Of a token in a cache of this type."""
    heads, key, value = shape
    return heads * (elements_of(key, dtype) + elements_of(value, dtype)) * dtype.itemsize if heads else key * torch.float32.itemsize


def elements_of(dim: int, dtype: torch.dtype) -> int:
    """Elements that a head's key or value of `dim` takes in a cache of this type."""
    return dim + SCALE_BYTES if dtype == torch.int8 else dim


class KeyValues:
    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}  # layer -> [pages, kv_heads, page tokens, elements of a head], contiguous by heads
        self.values: dict[int, torch.Tensor] = {}
        self.page_tokens = 0
        self.dtype = torch.float32
        self._state_layers: frozenset[int] = frozenset()  # of which a page is a state
        self.by_tokens: dict[int, PagedKeys] = {}  # layer -> the same memory by tokens, if it is laid out so

    def allocate(self, shapes: Mapping[int, Shape], pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for the layers of `shapes`. On a CPU it takes memory only where it has been written. A head's pages lie one after the
        other: where a sequence has consecutive pages, so do its keys, and a processor foresees which are read next.
        """
        self.page_tokens, self.dtype = page_tokens, dtype
        self._state_layers = frozenset(layer for layer, shape in shapes.items() if keeps_states([shape]))
        self.by_tokens.clear()
        for layer, (heads, *dims) in shapes.items():
            for cache, dim in zip((self.keys, self.values), dims, strict=True):
                shape = (heads, pages, page_tokens, elements_of(dim, dtype)) if heads else (1, pages, page_tokens, dim)
                cache[layer] = _zeros(shape, dtype if heads else torch.float32, device).transpose(0, 1)

    def allocate_by_tokens(
        self, shapes: Mapping[int, Shape], pages: int, dtype: torch.dtype, device: torch.device, *, context: int, splits: int
    ) -> None:
        """Make room for torch's flash kernel: in pages of `varlen.PAGE_TOKENS`, all heads of a token beside each other, and one page more.
        `context` and `splits` are those of `PagedKeys`.
        """
        self.page_tokens, self.dtype = PAGE_TOKENS, dtype
        for layer, (heads, *dims) in shapes.items():
            key, value = (torch.zeros(pages + 1, PAGE_TOKENS, heads, dim, dtype=dtype, device=device) for dim in dims)
            if dims[1]:  # an attention's
                self.by_tokens[layer] = PagedKeys(key, value, context, splits)
            self.keys[layer], self.values[layer] = key.transpose(1, 2), value.transpose(1, 2)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.keys.values(), *self.values.values()]

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy the first tokens of pages, and their states, one copy after the other."""
        for independent, tokens in _batches(copies):
            sources, targets = [each.source for each in independent], [each.target for each in independent]
            for layer, cache in (*self.keys.items(), *self.values.items()):
                part = slice(None) if layer in self._state_layers else slice(tokens)
                if len(independent) == 1:
                    cache[targets[0], :, part] = cache[sources[0], :, part]
                else:
                    cache[targets, :, part] = cache[sources, :, part]

    def states_of(self, layer: int) -> torch.Tensor | None:
        """The states of a layer `[pages, numbers]`; None if there is no cache."""
        kept = self.keys.get(layer)
        return None if kept is None else kept.transpose(0, 1)[0].flatten(1)

    def write_span(self, layer: int, span: Span, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the span's keys and values `[rows, kv_heads, dim]`."""
        k, v = key.transpose(0, 1), value.transpose(0, 1)
        for page, places, part in span.pieces(self.page_tokens):
            self.keys[layer][page, :, places], self.values[layer][page, :, places] = k[:, part], v[:, part]

    def write_places(self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write keys and values `[rows, kv_heads, dim]` to a cache by tokens. `places` `[rows]`: page * page tokens + token of the page."""
        cache = self.by_tokens[layer]
        cache.keys.flatten(0, 1).index_copy_(0, places, key)
        cache.values.flatten(0, 1).index_copy_(0, places, value)

    def gather(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values `[sequences, kv_heads, tokens, dim]` in the pages `[sequences, pages]`."""
        return _gather(self.keys[layer], pages), _gather(self.values[layer], pages)


def _gather(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    count, heads, _, dim = cache.shape
    rows = pages[:, None] + count * torch.arange(heads, device=pages.device)[:, None]  # [sequences, kv_heads, pages]
    return cache.transpose(0, 1).flatten(0, 1).index_select(0, rows.flatten()).view(len(pages), heads, -1, dim)


def _batches(copies: Sequence[PageCopy]) -> Iterator[tuple[list[PageCopy], int]]:
    """The copies in batches that may be made at once, each with the most tokens that one of its copies takes: none of a batch reads or
    writes a page that another of it writes. A page is written twice where a slot finds more of its prompt before the first copy was made.
    """
    batch: list[PageCopy] = []
    written: set[int] = set()
    for each in copies:
        if each.source in written or each.target in written:
            yield batch, max(one.tokens for one in batch)
            batch, written = [], set()
        batch.append(each)
        written.add(each.target)
    if batch:
        yield batch, max(one.tokens for one in batch)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU from a mapping of its own, whose pages the system gives when they are first written; `torch.zeros` may write them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype).view(shape)
