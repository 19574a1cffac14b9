"""Which sequence and position each row of a step belongs to, where its keys lie, and which of them it may attend to. What is needed for all
layers is made once a step.

A sequence's keys and values lie in pages of the cache: token t of it in its page t // page_tokens. Knows no cache and no model.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch

from app.engine.transfer import to_device
from app.engine.varlen import Reads

SHORT_TOKENS = 256  # sequences decode together when their lengths, in units of this, have the same number of binary digits


@dataclass(slots=True)
class Span:
    """Rows `[row_start, row_end)` of the step are positions `[start, end)` of one sequence, whose pages are `pages`. None for a text that
    is scored in one piece: its keys and values are not cached. `is_text`: the pages are those of the cache for texts.
    """

    row_start: int
    row_end: int
    start: int
    pages: Sequence[int] | None
    is_text: bool = False
    _masks: dict[tuple[int | None, torch.device], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def end(self) -> int:
        return self.start + self.row_end - self.row_start

    def pieces(self, page_tokens: int) -> Iterator[tuple[int, slice, slice]]:
        """The page, the tokens of the page and the rows of the span, for each page that these rows are written to."""
        assert self.pages is not None
        at = self.start
        while at < self.end:
            first = at % page_tokens
            count = min(page_tokens - first, self.end - at)
            yield self.pages[at // page_tokens], slice(first, first + count), slice(at - self.start, at - self.start + count)
            at += count

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Mask `[rows, end]` to add to the attention scores; None when a plain causal mask is enough. `window` is the sliding window."""
        if self.start == 0 and (window is None or self.end <= window):
            return None
        if (window, device) not in self._masks:
            keys = torch.arange(self.end, device=device)
            queries = keys[self.start :, None]
            visible = (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)
            self._masks[window, device] = _additive_mask(visible, dtype)
        return self._masks[window, device]


@dataclass(slots=True)
class DecodeGroup:
    """Decoding rows of similar length, attended together. `rows` is a slice if possible: slicing copies nothing."""

    rows: slice | torch.Tensor
    pages: torch.Tensor  # [rows, pages of the longest]; those of a shorter sequence are filled up with its first
    positions: torch.Tensor  # [rows]
    key_count: int  # cached keys that are read, for every row
    is_single: bool  # only one row, which attends to all of these keys
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Mask `[rows, 1, 1, key_count]` to add to the attention scores; None when every row attends to every key."""
        if self.is_single and (window is None or self.key_count <= window):
            return None
        if window not in self._masks:
            keys = torch.arange(self.key_count, device=self.positions.device)
            queries = self.positions[:, None]
            visible = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
            self._masks[window] = _additive_mask(visible, dtype)[:, None, None]
        return self._masks[window]


Keys = Literal["slots", "texts", "own"]  # of which cache; own: those of the rows themselves, which are not cached


@dataclass(frozen=True, slots=True)
class Call:
    """Rows of a step, one after the other, that attend in one call of torch's flash kernel."""

    rows: slice
    keys: Keys
    reads: Reads
    places: torch.Tensor | None  # int64 [rows]: where their own keys and values are written, see `KeyValues.write_places`


CallNumbers = tuple[list[tuple[Keys, list[Span]]], torch.Tensor, list[int]]  # spans by call; their numbers on the CPU, and in what parts


@dataclass(frozen=True)
class Layout:
    """The rows of a step: first the decoding rows, each of its own sequence, then the spans."""

    sequences: Sequence[tuple[Sequence[int], int]]  # of the decoding rows: pages and position
    spans: Sequence[Span]
    page_tokens: int
    pages: torch.Tensor  # those up to the last position, of the decoding rows' sequences and of the cached spans', one after the other
    firsts: torch.Tensor  # [decodes]: where in `pages` those of each decoding row begin
    positions: torch.Tensor  # [decodes]
    span_firsts: Sequence[int | None]  # the same of each span; None if it is not cached
    _numbers: list[CallNumbers] = field(default_factory=list, repr=False)  # one, of `calls`; copies on other devices share it
    _copies: dict[torch.device, "Layout"] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> "Layout":
        """The same layout for layers on `device`, copied there once a step."""
        if device == self.pages.device:
            return self
        if device not in self._copies:
            moved = [part.to(device, non_blocking=True) for part in (self.pages, self.firsts, self.positions)]
            self._copies[device] = replace(self, pages=moved[0], firsts=moved[1], positions=moved[2])
        return self._copies[device]

    @property
    def decodes(self) -> int:
        """Number of decoding rows."""
        return len(self.sequences)

    def span_pages(self, index: int) -> torch.Tensor:
        """The pages of a cached span, those of the positions before it included."""
        first = self.span_firsts[index]
        assert first is not None
        return self.pages[first : first + -(-self.spans[index].end // self.page_tokens)]

    @cached_property
    def written(self) -> tuple[int | torch.Tensor, int | torch.Tensor]:
        """The page of each decoding row's position, and its place there; numbers for a single row, with which indexing is faster."""
        if self.decodes == 1:
            pages, position = self.sequences[0]
            return pages[position // self.page_tokens], position % self.page_tokens
        return self.pages[self.firsts + self.positions // self.page_tokens], self.positions % self.page_tokens

    @cached_property
    def groups(self) -> tuple[DecodeGroup, ...]:
        similar: dict[int, list[int]] = {}
        for row, (_, position) in enumerate(self.sequences):
            similar.setdefault((position // SHORT_TOKENS).bit_length(), []).append(row)
        return tuple(map(self._group, similar.values()))

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The step for torch's flash kernel: the decoding rows are one call, and so are spans that follow each other and read the same
        cache. How a decoding row is computed does not depend on whether prompts are read beside it. Texts have the same pages, each
        after the one before.
        """
        if not self._numbers:
            self._numbers.append(self._count_calls())
        groups, numbers, sizes = self._numbers[0]
        parts = iter(to_device(numbers, self.pages.device).split(sizes))
        return tuple(_call(keys, spans, (next(parts), next(parts), next(parts), next(parts))) for keys, spans in groups)

    def _count_calls(self) -> CallNumbers:
        decoding = [Span(row, row + 1, position, pages) for row, (pages, position) in enumerate(self.sequences)]
        groups: list[tuple[Keys, list[Span]]] = [("slots", decoding)] if decoding else []
        for span in self.spans:
            keys = _keys_of(span)
            if groups and groups[-1][0] == keys != "texts" and groups[-1][1] is not decoding:
                groups[-1][1].append(span)
            else:
                groups.append((keys, [span]))
        numbers, sizes = array("i"), list[int]()
        for keys, spans in groups:
            parts = _call_numbers(keys, spans, self.page_tokens)
            sizes += map(len, parts)
            for part in parts:
                numbers.extend(part)
        return groups, torch.frombuffer(numbers, dtype=torch.int32), sizes

    def _group(self, rows: list[int]) -> DecodeGroup:
        longest = max(self.sequences[row][1] for row in rows) + 1
        count = -(-longest // self.page_tokens)
        tables = [list(self.sequences[row][0][: self.sequences[row][1] // self.page_tokens + 1]) for row in rows]
        row_slice = _as_slice(rows)
        return DecodeGroup(
            rows=torch.tensor(rows, device=self.pages.device) if row_slice is None else row_slice,
            pages=torch.tensor([table + table[:1] * (count - len(table)) for table in tables], device=self.pages.device),
            positions=self.positions[rows] if row_slice is None else self.positions[row_slice],
            key_count=longest if len(rows) == 1 else count * self.page_tokens,
            is_single=len(rows) == 1,
        )


def layout_of(decodes: Sequence[tuple[Sequence[int], int]], spans: Sequence[Span], page_tokens: int, device: torch.device) -> Layout:
    """`decodes` are the pages and the position of each decoding row; they come first in the step."""
    pages, firsts, span_firsts = array("q"), [], []
    for own, position in decodes:
        firsts.append(len(pages))
        pages.extend(own[: position // page_tokens + 1])
    for span in spans:
        span_firsts.append(None if span.pages is None else len(pages))
        pages.extend([] if span.pages is None else span.pages[: -(-span.end // page_tokens)])
    count = len(decodes)
    whole = array("q", firsts) + array("q", (position for _, position in decodes)) + pages + array("q", [0])
    numbers = to_device(torch.frombuffer(whole, dtype=torch.long), device)
    return Layout(decodes, spans, page_tokens, numbers[2 * count : -1], numbers[:count], numbers[count : 2 * count], span_firsts)


def _keys_of(span: Span) -> Keys:
    if span.pages is None:
        return "own"
    return "texts" if span.is_text else "slots"


def _call_numbers(keys: Keys, spans: Sequence[Span], page_tokens: int) -> tuple[array, array, array, array]:
    """The starts, lengths, pages and places of a `Call`; without pages the last two are empty."""
    first = spans[0].row_start
    starts = array("i", [span.row_start - first for span in spans] + [spans[-1].row_end - first])
    used, table, places = array("i", [span.end for span in spans]), array("i"), array("i")
    if keys == "own":
        return starts, used, table, places
    longest = -(-max(used) // page_tokens)
    for span in spans:
        assert span.pages is not None
        own = span.pages[: -(-span.end // page_tokens)]
        table.extend(own)
        table.extend([own[0]] * (longest - len(own)))
        for page, within, _ in span.pieces(page_tokens):
            places.extend(range(page * page_tokens + within.start, page * page_tokens + within.stop))
    return starts, used, table, places


def _call(keys: Keys, spans: Sequence[Span], numbers: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> Call:
    starts, used, table, places = numbers
    is_paged = keys != "own"
    longest = max(span.row_end - span.row_start for span in spans)
    reads = Reads(starts, used, table.view(len(spans), -1) if is_paged else None, longest)
    return Call(slice(spans[0].row_start, spans[-1].row_end), keys, reads, places.long() if is_paged else None)


def _as_slice(numbers: list[int]) -> slice | None:
    """The numbers as a slice; None unless they are consecutive."""
    first = numbers[0]
    return slice(first, first + len(numbers)) if numbers == list(range(first, first + len(numbers))) else None


def _additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `visible`, else -inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
