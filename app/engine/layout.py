"""Which slot and position each row of a step belongs to, and which keys it may attend to. A mask is made once a step, for all layers.

Knows no cache and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

KEY_MULTIPLE = 64  # slots that decode together read a number of cached keys that is a multiple of this
SHORT_TOKENS = 256  # slots decode together when their lengths, in units of this, have the same number of binary digits


@dataclass(slots=True)
class Span:
    """Rows `[row_start, row_end)` of the step are positions `[start, end)` of one sequence. `slot` is None for a text that is scored in
    one piece: its keys and values are not cached.
    """

    row_start: int
    row_end: int
    start: int
    slot: int | None
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def end(self) -> int:
        return self.start + self.row_end - self.row_start

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Mask `[rows, end]` to add to the attention scores; None when a plain causal mask is enough. `window` is the sliding window."""
        if self.start == 0 and (window is None or self.end <= window):
            return None
        if window not in self._masks:
            keys = torch.arange(self.end, device=device)
            queries = keys[self.start :, None]
            visible = (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)
            self._masks[window] = _additive_mask(visible, dtype)
        return self._masks[window]


@dataclass(slots=True)
class DecodeGroup:
    """Decoding rows of similar length, attended together. `rows` and `slots` are slices if possible: slicing the cache copies nothing."""

    rows: slice | torch.Tensor
    slots: slice | torch.Tensor
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


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a step: first one row for each decoding slot, then the spans."""

    decodes: int  # number of decoding rows
    slots: torch.Tensor  # [decodes]
    positions: torch.Tensor  # [decodes]
    first_decode: tuple[int, int]  # slot and position of the first decoding row
    groups: tuple[DecodeGroup, ...]
    spans: tuple[Span, ...]


def layout_of(decodes: Sequence[tuple[int, int]], spans: Sequence[Span], context: int, device: torch.device) -> Layout:
    """`decodes` are (slot, position) of the decoding rows, which come first in the step; `context` is the length of a cache row."""
    both = torch.tensor(decodes or [(0, 0)], dtype=torch.long).t().to(device)  # [2, decodes]
    slots, positions = (row[: len(decodes)].contiguous() for row in both)
    similar: dict[int, list[int]] = {}
    for row, (_, position) in enumerate(decodes):
        similar.setdefault((position // SHORT_TOKENS).bit_length(), []).append(row)
    groups = tuple(_group(rows, decodes, slots, positions, context) for rows in similar.values())
    return Layout(len(decodes), slots, positions, decodes[0] if decodes else (0, 0), groups, tuple(spans))


def _group(rows: list[int], decodes: Sequence[tuple[int, int]], slots: torch.Tensor, positions: torch.Tensor, context: int) -> DecodeGroup:
    longest = max(decodes[row][1] for row in rows) + 1
    row_slice = _as_slice(rows)
    group_slots = slots[rows] if row_slice is None else slots[row_slice]
    slot_slice = _as_slice([decodes[row][0] for row in rows])
    return DecodeGroup(
        rows=torch.tensor(rows, device=slots.device) if row_slice is None else row_slice,
        slots=group_slots if slot_slice is None else slot_slice,
        positions=positions[rows] if row_slice is None else positions[row_slice],
        key_count=longest if len(rows) == 1 else min(context, -(-longest // KEY_MULTIPLE) * KEY_MULTIPLE),
        is_single=len(rows) == 1,
    )


def _as_slice(numbers: list[int]) -> slice | None:
    """The numbers as a slice; None unless they are consecutive."""
    first = numbers[0]
    return slice(first, first + len(numbers)) if numbers == list(range(first, first + len(numbers))) else None


def _additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `visible`, else -inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
