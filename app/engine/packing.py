"""Packs weights once into the orders that the kernels of `csrc` read: blocks of `columns` outputs, padded with zeros.

Knows no layer and no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Weights of a row that share a scale and an offset, and inputs that share a scale. In the kernel's layout: 5 bits a weight.
GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A layer's weights in a kernel's order: bfloat16, or 4-bit levels with what they stand for."""

    inputs: int  # padded to an even number
    data: torch.Tensor  # bfloat16; or int32 words of eight levels, and with `rounds_inputs` also words of scale and offset
    table: torch.Tensor | None = None  # [16]: a level stands for table[level] * scale + offset
    scale: torch.Tensor | None = None  # of groups of 2^log2_group inputs
    offset: torch.Tensor | None = None
    log2_group: int = 0
    rounds_inputs: bool = False  # the kernel rounds a layer's inputs to 8 bits

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.data, self.scale, self.offset) if part is not None)


def pack_bfloat16(weight: torch.Tensor, columns: int) -> PackedWeights:
    """Pack `[outputs, inputs]` bfloat16 of any size to `[blocks, inputs / 2, columns, 2]`."""
    outputs, inputs = weight.shape
    padded = F.pad(weight, (0, inputs % 2, 0, -outputs % columns))
    data = padded.view(-1, columns, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()
    return PackedWeights(padded.shape[1], data)


def pack_levels(levels: torch.Tensor, table: Sequence[float], scale: torch.Tensor, offset: torch.Tensor, columns: int) -> PackedWeights:
    """Pack 4-bit weights whose sixteen levels stand for any values, such as nf4's.

    `levels` 0..15 `[outputs, inputs]`, `scale` and `offset` `[outputs, groups]`. A group has 2^n inputs, at least 8.
    """
    inputs = levels.shape[1]
    size = inputs // scale.shape[1]
    assert size * scale.shape[1] == inputs and size & (size - 1) == 0 and size >= 8
    eights = _blocks(levels.to(torch.int32), columns).view(-1, columns, inputs // 8, 8).transpose(1, 2)
    words = (eights << torch.arange(0, 32, 4, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    scales, offsets = (_blocks(part.float(), columns).transpose(1, 2).contiguous() for part in (scale, offset))
    return PackedWeights(inputs, words, torch.tensor(table, dtype=torch.float32), scales, offsets, size.bit_length() - 1)


def pack_uniform_levels(levels: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, columns: int) -> PackedWeights:
    """Pack 4-bit weights whose levels are evenly spaced, for the kernel that rounds inputs to 8 bits.

    Arguments are those of `pack_levels`, in groups of 32. A level stands for `(level - 8) * scale + offset`, with scale and offset
    rounded to bfloat16. The result is `[blocks, groups, 5, columns]` words: four of eight levels each, one of scale and offset.
    """
    inputs, groups = levels.shape[1], scale.shape[1]
    assert groups * GROUP_SIZE == inputs
    eights = _blocks(levels.to(torch.int32), columns).view(-1, columns, groups, GROUP_SIZE // 8, 2, 4)
    level_words = (eights << torch.tensor([[0, 8, 16, 24], [4, 12, 20, 28]], dtype=torch.int32)).sum((-1, -2), dtype=torch.int32)
    group_words = torch.stack([scale, offset], -1).bfloat16().view(torch.int32)
    words = torch.cat([level_words, _blocks(group_words[..., 0], columns)[..., None]], -1)
    return PackedWeights(inputs, words.permute(0, 2, 3, 1).contiguous(), rounds_inputs=True)


def pad_bias(bias: torch.Tensor, columns: int) -> torch.Tensor:
    """Convert a bias `[outputs]` to float32, padded to whole blocks."""
    return F.pad(bias.float(), (0, -len(bias) % columns))


def _blocks(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """`[outputs, n]` to `[blocks, columns, n]`."""
    return F.pad(rows, (0, 0, 0, -len(rows) % columns)).view(-1, columns, rows.shape[1])
