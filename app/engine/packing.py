"""Packs weights once into the orders that the kernels of `csrc` read: blocks of `columns` outputs, padded with zeros.

Knows no layer and no library.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from app.engine.grouped import GroupedWeights

HALF_EXPONENT = (
    14  # the largest scale or minimum lies just below 2^14: far from float16's overflow, and 28 powers of two above its underflow
)


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A layer's weights in a kernel's order: bfloat16, or groups of levels."""

    inputs: int  # padded to an even number
    data: torch.Tensor  # bfloat16; or int32 words of levels, of groups with their scales and minima
    table: torch.Tensor | None = None  # uint8 [16]: what a level of 4 bits stands for; None: itself
    log2_group: int = 0  # of groups of 2^log2_group inputs
    bits: int = 0  # of the levels of a group; 0: not in groups
    weight_scale: float = 1.0  # of groups: what scales and minima are multiplied by
    input_bits: int = 16  # what the inputs of weights in groups are rounded to: 8 or 16; others stay bfloat16

    @property
    def is_grouped(self) -> bool:
        return self.bits > 0

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def pack_bfloat16(weight: torch.Tensor, columns: int) -> PackedWeights:
    """Pack `[outputs, inputs]` bfloat16 of any size to `[blocks, inputs / 2, columns, 2]`."""
    outputs, inputs = weight.shape
    padded = F.pad(weight, (0, inputs % 2, 0, -outputs % columns))
    pairs = padded.contiguous().view(torch.int32).view(-1, columns, padded.shape[1] // 2)
    return PackedWeights(padded.shape[1], pairs.transpose(1, 2).contiguous().view(torch.bfloat16).unflatten(-1, (columns, 2)))


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
    weight_scale = factor_of_halves(weights.scale, weights.minimum)
    halves = [_blocks(part / weight_scale, columns).half().transpose(1, 2) for part in (weights.scale, weights.minimum)]
    data[:, :, -1] = torch.stack(halves, 2).view(len(data), groups, 2 * columns).view(torch.int32)
    table = None if weights.table is None else torch.tensor(weights.table, dtype=torch.uint8)
    input_bits = 16 if weights.bits == 8 else 8
    return PackedWeights(
        inputs, data, table, log2_group=size.bit_length() - 1, bits=weights.bits, weight_scale=weight_scale, input_bits=input_bits
    )


def factor_of_halves(scale: torch.Tensor, minimum: torch.Tensor) -> float:
    """The power of two by which scales and minima are divided, so that they lie in the middle of what a float16 can hold."""
    largest = max(float(scale.abs().max()), float(minimum.abs().max()))
    return 2.0 ** (math.frexp(largest)[1] - HALF_EXPONENT)


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
