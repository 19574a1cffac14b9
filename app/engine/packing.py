"""Weights in the orders of `csrc`, packed once.

    pairs(weight, columns) -> Packed                            bfloat16 as it is
    levels(levels, table, scale, middle, columns) -> Packed     4 bits, any sixteen levels
    steps(levels, scale, middle, columns) -> Packed             4 bits, levels that lie evenly; inputs are rounded to bytes
    padded(bias, columns) -> Tensor

`columns` outputs make a block of the kernel. Knows no layer and no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

GROUP = 32  # weights of a row that share a scale and a zero, and inputs that share a scale: in the kernel 5 bits a weight


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights in a kernel's order. With `table` a level stands for `table[level] * scale + middle`, the last two of groups of
    2^`group` inputs; where `rounds`, the steps lie among the levels, and inputs are rounded.
    """

    inputs: int  # even: padded
    data: torch.Tensor  # bfloat16, or eight levels an int32
    table: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    middle: torch.Tensor | None = None
    group: int = 0
    rounds: bool = False

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.data, self.scale, self.middle) if one is not None)


def pairs(weight: torch.Tensor, columns: int) -> Packed:
    """`[outputs, inputs]` bfloat16 of any size to `[blocks, inputs / 2, columns, 2]`, both padded with zeros."""
    outputs, inputs = weight.shape
    wide = F.pad(weight, (0, inputs % 2, 0, -outputs % columns))
    data = wide.view(-1, columns, wide.shape[1] // 2, 2).transpose(1, 2).contiguous()
    return Packed(wide.shape[1], data)


def levels(levels: torch.Tensor, table: Sequence[float], scale: torch.Tensor, middle: torch.Tensor, columns: int) -> Packed:
    """`levels` 0..15 `[outputs, inputs]`, `scale` and `middle` `[outputs, groups]`; the inputs of a group are a power of 2."""
    inputs = levels.shape[1]
    size = inputs // scale.shape[1]
    assert size * scale.shape[1] == inputs and size & (size - 1) == 0 and size >= 8
    eights = _blocks(levels.to(torch.int32), columns).view(-1, columns, inputs // 8, 8).transpose(1, 2)
    words = (eights << torch.arange(0, 32, 4, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    of_scale, of_middle = (_blocks(part.float(), columns).transpose(1, 2).contiguous() for part in (scale, middle))
    return Packed(inputs, words, torch.tensor(table, dtype=torch.float32), of_scale, of_middle, size.bit_length() - 1)


def steps(levels: torch.Tensor, scale: torch.Tensor, middle: torch.Tensor, columns: int) -> Packed:
    """As for `levels`, in groups of 32; a level stands for `(level - 8) * scale + middle`, the last two as bfloat16 holds them. To
    `[blocks, groups, 5, columns]` words: four of eight levels, one of scale and middle.
    """
    inputs, groups = levels.shape[1], scale.shape[1]
    assert groups * GROUP == inputs
    eights = _blocks(levels.to(torch.int32), columns).view(-1, columns, groups, GROUP // 8, 2, 4)
    words = (eights << torch.tensor([[0, 8, 16, 24], [4, 12, 20, 28]], dtype=torch.int32)).sum((-1, -2), dtype=torch.int32)
    of_group = torch.stack([scale, middle], -1).bfloat16().view(torch.int32)
    whole = torch.cat([words, _blocks(of_group[..., 0], columns)[..., None]], -1)
    return Packed(inputs, whole.permute(0, 2, 3, 1).contiguous(), rounds=True)


def padded(bias: torch.Tensor, columns: int) -> torch.Tensor:
    """`[outputs, padded]` float32."""
    return F.pad(bias.float(), (0, -len(bias) % columns))


def _blocks(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """`[outputs, n]` to `[blocks, columns, n]`, padded with zeros."""
    return F.pad(rows, (0, 0, 0, -len(rows) % columns)).view(-1, columns, rows.shape[1])
