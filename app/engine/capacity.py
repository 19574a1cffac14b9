"""How much cache a model is given, and what that and its steps take of a device's memory. Knows no weights."""

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile
from typing import Literal

import torch
from transformers import PretrainedConfig

from app.engine import varlen
from app.engine.drafts import MAX_TOKENS
from app.engine.keyvalues import Shape, token_bytes
from app.engine.ledger import MAX_DEFAULT_SLOTS, MAX_DEFAULT_SLOTS_ON_CUDA, SLOT_TOKENS, Ledger, activation_bytes, widths_of
from app.engine.pages import PAGE_TOKENS

HEAD_ROWS = 256  # rows projected to the vocabulary at a time
GRAPH_BYTES, STREAM_BYTES = 4 * 2**20, 64 * 2**20  # of the driver for a CUDA graph, and of libraries for their stream: assumptions
WIDER = 4  # without a table of pages, graphs for so many times as many pages each

Choice = Literal["changed and drawn", "drawn", "likeliest"]  # of the tokens of a recorded step; changed are the logits
CHOICES: tuple[Choice, ...] = ("changed and drawn", "drawn", "likeliest")


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The size of a model's KV cache and steps."""

    slots: int | None  # 0: the model only scores texts; None: as many as fit this process's share of the device's memory
    context: int  # tokens of a sequence at most
    step_tokens: int = 512  # most rows of a step, decoding rows aside
    sharers: int = 1  # processes that serve from the device's memory, this one included
    page_tokens: int = PAGE_TOKENS
    cache_tokens: int | None = None  # of all slots together; None: `slot_tokens` for each, and at least a context
    dtype: Literal["auto", "int8"] = "auto"  # of the slots' cache; auto: the model's
    graphs: bool = True  # as model.graphs
    text_window: int | None = None  # tokens of a text that are read in one piece; None: a context
    shrinks: bool = False  # the context is what fits, where memory does not hold a whole one

    @property
    def context_pages(self) -> int:
        return -(-self.context // self.page_tokens)

    @property
    def text_tokens(self) -> int:
        return self.context if self.text_window is None else self.text_window

    @property
    def text_pages(self) -> int:
        return -(-self.text_tokens // self.page_tokens)

    @property
    def spare_pages(self) -> int:
        """Of rows that belong to no sequence, in the two caches together."""
        return 2 if self.is_for_cuda else 0

    @property
    def slot_tokens(self) -> int:
        """What a slot adds to the cache."""
        return min(self.context, SLOT_TOKENS)

    @property
    def slot_pages(self) -> int:
        return -(-self.slot_tokens // self.page_tokens)

    @property
    def is_for_cuda(self) -> bool:
        """Whether the pages are those that torch's flash kernel reads."""
        return self.page_tokens == varlen.PAGE_TOKENS

    @property
    def most_slots(self) -> int:
        """The number of slots, or what it may be where the settings give none."""
        return self.slots or (MAX_DEFAULT_SLOTS_ON_CUDA if self.is_for_cuda else MAX_DEFAULT_SLOTS)

    def pool_pages(self, slots: int) -> int:
        """Pages that so many slots share; none for a model that only scores texts."""
        if self.cache_tokens is not None:
            return -(-self.cache_tokens // self.page_tokens)
        return max(slots * self.slot_pages, self.context_pages) if slots else 0

    def bytes_of(self, pages: int, slot: int) -> int:
        """Of so many pages, where what a slot adds has `slot` bytes."""
        return pages * slot // self.slot_pages

    def dtype_for(self, model: torch.dtype) -> torch.dtype:
        return torch.int8 if self.dtype == "int8" else model


def size_that_fits(ledger: Ledger, limits: CacheLimits, device: str) -> CacheLimits:
    """The limits with a number of slots, and a context and window that fit. Raises `SetupError` if they do not."""
    if limits.slots == 0:
        ledger.check_cache(0, device, "a model that only scores", "lower --model.text_window")
        return limits
    if limits.cache_tokens is not None:
        ledger.check_cache(limits.bytes_of(limits.pool_pages(0), ledger.slot), device)
        return replace(limits, slots=limits.most_slots)
    if limits.shrinks:
        ledger, limits = _shortened(ledger, limits)
    slots = ledger.slots(limits.slots, device, limits.most_slots)
    if not limits.shrinks:
        advice = "lower --model.context, or leave it out, which takes as much as fits"
        size = limits.bytes_of(limits.context_pages, ledger.slot)
        ledger.check_cache(size, device, f"a context of {limits.context} tokens", advice)
    return replace(limits, slots=slots)


def _shortened(ledger: Ledger, limits: CacheLimits) -> tuple[Ledger, CacheLimits]:
    """With the longest context that fits this process's share of the memory, or what a given number of slots adds to the cache, which is
    held against all of it: whoever set it has divided. As it is if not even a page fits.
    """
    pages = _longest(ledger, limits, ledger.sharers)
    if limits.slots:
        pages = max(pages, min(_longest(ledger, limits, 1), limits.slots * limits.slot_pages))
    return with_context(ledger, limits, pages) if pages else (ledger, limits)


def _longest(ledger: Ledger, limits: CacheLimits, sharers: int) -> int:
    """In pages."""

    def is_too_long(pages: int) -> bool:
        shorter, cut = with_context(ledger, limits, pages)
        return cut.bytes_of(pages, shorter.slot) > shorter.room(sharers)

    return bisect_left(range(1, limits.context_pages + 1), True, key=is_too_long)


def with_context(ledger: Ledger, limits: CacheLimits, pages: int) -> tuple[Ledger, CacheLimits]:
    """Both with a context of so many pages, at most that of `limits`."""
    context = min(limits.context, pages * limits.page_tokens)
    cut = replace(limits, context=context, text_window=min(limits.text_tokens, context))
    text = ledger.text // (limits.text_pages + limits.spare_pages) * (cut.text_pages + cut.spare_pages)
    return replace(ledger, slot=ledger.slot // limits.slot_pages * cut.slot_pages, text=text), cut


def step_bytes(config: PretrainedConfig, limits: CacheLimits) -> int:
    """Declared bytes of the activations of a step, of a model with this text config, and of what is recorded for CUDA."""
    widths = widths_of(config)
    activations = activation_bytes(limits.step_tokens, widths, max(HEAD_ROWS, limits.slots or 0))
    if limits.is_for_cuda and limits.graphs and limits.slots != 0:
        rows = limits.most_slots + MAX_TOKENS
        activations += activation_bytes(rows, widths, rows) + STREAM_BYTES
        activations += GRAPH_BYTES * len(row_counts(rows)) * len(page_counts(limits.context_pages, varlen.has_page_table())) * len(CHOICES)
    return activations


def row_counts(most: int) -> tuple[int, ...]:
    """Numbers of rows for which steps are recorded, up to the first that is at least `most`."""
    counts = list(chain((1, 2, 4), range(8, 32, 8), range(32, 64, 16), takewhile(lambda rows: rows < most + 64, count(64, 32))))
    return tuple(counts[: 1 + next(index for index, rows in enumerate(counts) if rows >= most)])


def page_counts(most: int, has_table: bool) -> tuple[int, ...]:
    """Numbers of pages of a row for which steps are recorded: one where the kernel reads a table, as it reads no more than it needs."""
    fewer = () if has_table else takewhile(lambda pages: pages < most, (WIDER**power for power in count()))
    return (*fewer, most)


def cache_bytes(shapes: Iterable[Shape], tokens: int, dtype: torch.dtype, page_tokens: int = PAGE_TOKENS) -> int:
    """Bytes of the pages that `tokens` take, with the keys and values of layers of these shapes. `dtype` is the cache's."""
    pages = -(-tokens // page_tokens)
    return pages * page_tokens * sum(token_bytes(shape, dtype) for shape in shapes)


def text_bytes(shapes: Collection[Shape], limits: CacheLimits, dtype: torch.dtype) -> int:
    """Bytes of the cache for long texts of layers of these shapes; for CUDA with the spare page of each cache."""
    return cache_bytes(shapes, (limits.text_pages + limits.spare_pages) * limits.page_tokens, dtype, limits.page_tokens)


def ledger_of(
    config: PretrainedConfig, shapes: Collection[Shape], limits: CacheLimits, dtype: torch.dtype, memory: int, weights: int
) -> Ledger:
    """Of a device with so much memory and weights that computes layers of these shapes, in `dtype`, of a model with this text config."""
    return Ledger(
        memory=memory,
        weights=weights,
        activations=step_bytes(config, limits),
        slot=cache_bytes(shapes, limits.slot_tokens, limits.dtype_for(dtype), limits.page_tokens),
        text=text_bytes(shapes, limits, dtype),
        sharers=limits.sharers,
    )
