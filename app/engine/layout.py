"""Where the rows of a step stand: which slot and position each belongs to, and what it may see. Masks are made once a step.

Knows no cache and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

ROUND = 64  # cached keys of several slots are read up to a multiple of this
NEAR = 256  # slots whose lengths have the same number of binary digits above this are attended together


@dataclass(slots=True)
class Span:
    """Rows `[first, last)` of the step are positions `[start, end)` of one sequence; `slot` is None for a text that is only read."""

    first: int
    last: int
    start: int
    slot: int | None
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def end(self) -> int:
        return self.start + self.last - self.first

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What is added to the scores, `[rows, end]`; None when plain causality says it all."""
        if self.start == 0 and (window is None or self.end <= window):
            return None
        if window not in self._masks:
            at = torch.arange(self.end, device=device)
            own = at[self.start :, None]
            self._masks[window] = _added((at <= own) if window is None else (at <= own) & (at > own - window), dtype)
        return self._masks[window]


@dataclass(slots=True)
class Decodes:
    """Decoding rows of similar length. `rows` and `slots` are slices where they can be: a slice of the cache needs no copy."""

    rows: slice | torch.Tensor
    slots: slice | torch.Tensor
    positions: torch.Tensor  # [rows]
    longest: int  # keys that are read
    alone: bool  # one row, which sees all of them
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores, `[rows, 1, 1, longest]`; None when every key is seen."""
        if self.alone and (window is None or self.longest <= window):
            return None
        if window not in self._masks:
            at = torch.arange(self.longest, device=self.positions.device)
            last = self.positions[:, None]
            seen = at <= last if window is None else (at <= last) & (at > last - window)
            self._masks[window] = _added(seen, dtype)[:, None, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class Layout:
    """The step's rows in order: one row a decoding slot, then spans."""

    decodes: int
    slots: torch.Tensor  # [decodes]
    positions: torch.Tensor  # [decodes]
    single: tuple[int, int]  # slot and position of the first of them
    groups: tuple[Decodes, ...]
    spans: tuple[Span, ...]


def layout_of(decodes: Sequence[tuple[int, int]], spans: Sequence[Span], context: int, device: torch.device) -> Layout:
    """`decodes` are (slot, position) of the first rows of the step; `spans` follow."""
    both = torch.tensor(decodes or [(0, 0)], dtype=torch.long).t().to(device)  # [2, decodes]
    slots, positions = (row[: len(decodes)].contiguous() for row in both)
    near: dict[int, list[int]] = {}
    for row, (_, position) in enumerate(decodes):
        near.setdefault((position // NEAR).bit_length(), []).append(row)
    groups = tuple(_group(rows, decodes, slots, positions, context) for rows in near.values())
    return Layout(len(decodes), slots, positions, decodes[0] if decodes else (0, 0), groups, tuple(spans))


def _group(rows: list[int], decodes: Sequence[tuple[int, int]], slots: torch.Tensor, positions: torch.Tensor, context: int) -> Decodes:
    most = max(decodes[row][1] for row in rows) + 1
    longest = most if len(rows) == 1 else min(context, -(-most // ROUND) * ROUND)
    chosen = _slice(rows)
    where = slots[rows] if chosen is None else slots[chosen]
    held = _slice([decodes[row][0] for row in rows])
    return Decodes(
        rows=torch.tensor(rows, device=slots.device) if chosen is None else chosen,
        slots=where if held is None else held,
        positions=positions[rows] if chosen is None else positions[chosen],
        longest=longest,
        alone=len(rows) == 1,
    )


def _slice(numbers: list[int]) -> slice | None:
    """The numbers as a slice if they are consecutive."""
    first = numbers[0]
    return slice(first, first + len(numbers)) if numbers == list(range(first, first + len(numbers))) else None


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
