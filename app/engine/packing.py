"""Packs weights once into the orders that the kernels of `csrc` read: blocks of `columns` outputs, padded with zeros.

Knows no layer and no library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from app.engine.grouped import GroupedWeights

HALF_EXPONENT = (
    14  # the largest scale or minimum lies just below 2^14: far from float16's overflow, and 28 powers of two above its underflow
)


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A layer's weights in a kernel's order: bfloat16, 4-bit levels of any values, or groups of evenly spaced levels."""

    inputs: int  # padded to an even number
    data: torch.Tensor  # bfloat16; or int32 words of levels, of groups with their scales and minima
    table: torch.Tensor | None = None  # [16]: a level stands for table[level] * scale + offset; uint8 where weights are in groups
    scale: torch.Tensor | None = None  # of groups of 2^log2_group inputs
    offset: torch.Tensor | None = None
    log2_group: int = 0
    bits: int = 0  # of the levels of a group; 0: not in groups
    weight_scale: float = 1.0  # of groups: what scales and minima are multiplied by
    input_bits: int = 16  # what the inputs of weights in groups are rounded to: 8 or 16; others stay bfloat16

    @property
    def is_grouped(self) -> bool:
        return self.bits > 0

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


def pack_grouped(weights: GroupedWeights, columns: int) -> PackedWeights:
    """Pack weights in groups for the kernel that rounds inputs, here to 8 bits for levels of 4 and to 16 for levels of 8. Levels of 8 in
    groups of 16 always need 16.

    Scales and minima become float16.

    The result is `[blocks, groups, words + 1, columns]` words of 32 bits: eight levels of 4 bits a word, or four of 8 bits; then the
    group's scales and minima, divided by a power of two so that they lie in the middle of what a float16 can hold.
    """
    inputs, groups, size = weights.levels.shape[1], weights.scale.shape[1], weights.group_size
    fours = _blocks(weights.levels, columns).view(torch.int32).view(-1, columns, groups, size // 4)  # four levels of 8 bits each
    if weights.bits == 4:
        pairs = fours.unflatten(-1, (-1, 2))
        fours = pairs[..., 0] | pairs[..., 1] << 4
    data = torch.empty(len(fours), groups, fours.shape[-1] + 1, columns, dtype=torch.int32)
    data[:, :, :-1] = fours.permute(0, 2, 3, 1)
    largest = max(float(weights.scale.abs().max()), float(weights.minimum.abs().max()))
    weight_scale = 2.0 ** (math.frexp(largest)[1] - HALF_EXPONENT)
    halves = [_blocks(part / weight_scale, columns).half().transpose(1, 2) for part in (weights.scale, weights.minimum)]
    data[:, :, -1] = torch.stack(halves, 2).view(len(data), groups, 2 * columns).view(torch.int32)
    table = None if weights.table is None else torch.tensor(weights.table, dtype=torch.uint8)
    input_bits = 16 if weights.bits == 8 else 8
    return PackedWeights(
        inputs, data, table, log2_group=size.bit_length() - 1, bits=weights.bits, weight_scale=weight_scale, input_bits=input_bits
    )


def unpack_rows(packed: PackedWeights, rows: torch.Tensor) -> torch.Tensor:
    """Return the weights of some outputs, float32 `[rows, inputs]`, from what `pack_grouped` made of 8-bit levels."""
    columns = packed.data.shape[3]
    block, column = rows // columns, rows % columns
    words = packed.data[block, :, :, column]  # [rows, groups, words + 1]
    levels = words[..., :-1].contiguous().view(torch.uint8).view(*words.shape[:2], -1).float()
    halves = packed.data[block, :, -1].view(torch.float16)  # [rows, groups, 2 * columns]
    index = column[:, None, None].expand(-1, halves.shape[1], 1)
    scale, minimum = (halves.gather(2, index + first).float() * packed.weight_scale for first in (0, columns))
    return (levels * scale + minimum).view(len(rows), packed.inputs)


def pad_bias(bias: torch.Tensor, columns: int) -> torch.Tensor:
    """Convert a bias `[outputs]` to float32, padded to whole blocks."""
    return F.pad(bias.float(), (0, -len(bias) % columns))


def _blocks(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """`[outputs, n]` to `[blocks, columns, n]`."""
    missing = -len(rows) % columns
    return (F.pad(rows, (0, 0, 0, missing)) if missing else rows).view(-1, columns, rows.shape[1])
