"""GGUF's quantized block types as groups of levels with a scale and a minimum, without another rounding of the levels.

The layouts are those of ggml (ggml-common.h): Q4_0, Q4_1 and Q4_K become 4-bit groups of 32, IQ4_NL, IQ4_XS and MXFP4 the same with a
table of what levels stand for; Q2_K and Q3_K 4-bit groups of 16; Q5_0, Q5_1, Q5_K, Q8_0 8-bit groups of 32; Q6_K 8-bit groups of 16.
Knows no file and no layer.
"""

from collections.abc import Callable

import torch

from app.engine.grouped import FLOAT_4, GroupedWeights, GroupFormat

Blocks = torch.Tensor  # uint8 [rows, blocks of a row, bytes of a block]
LOW_HALVES = 0x0F0F0F0F
EVEN_4, EVEN_4_OF_16, EVEN_8, EVEN_8_OF_16 = GroupFormat(4, 32), GroupFormat(4, 16), GroupFormat(8, 32), GroupFormat(8, 16)
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of ggml's kvalues_iq4nl
UNEVEN_4 = GroupFormat(4, 32, tuple(value + 128 for value in IQ4_VALUES))
Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # levels [rows, blocks, elements], scale and minimum [rows, blocks, groups]


def _float16(blocks: Blocks, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block, as float32 `[rows, blocks, 1]`."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Blocks) -> torch.Tensor:
    """Low halves, then high halves, of each run of bytes."""
    words = packed.contiguous().view(torch.int32)  # four bytes at a time: torch shifts single bytes one by one
    return torch.cat([words & LOW_HALVES, words >> 4 & LOW_HALVES], -1).view(torch.uint8)


def _bits(packed: Blocks, count: int) -> torch.Tensor:
    """`[..., n]` bytes as `[..., 8 / count, n]` levels of `count` bits, those in the lowest bits first."""
    shifts = torch.arange(0, 8, count, dtype=torch.uint8, device=packed.device)[:, None]
    return packed.unsqueeze(-2) >> shifts & (1 << count) - 1


def _fifth_bits(packed: Blocks) -> torch.Tensor:
    """Bit j of a 32-bit word, as 16 * bit, for element j."""
    return _bits(packed, 1).transpose(-1, -2).flatten(-2) << 4


def _q4_0(blocks: Blocks) -> Groups:
    scale = _float16(blocks, 0)
    return _nibbles(blocks[..., 2:]), scale, -8 * scale


def _q4_1(blocks: Blocks) -> Groups:
    return _nibbles(blocks[..., 4:]), _float16(blocks, 0), _float16(blocks, 2)


def _q5_0(blocks: Blocks) -> Groups:
    scale = _float16(blocks, 0)
    return _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), scale, -16 * scale


def _q5_1(blocks: Blocks) -> Groups:
    return _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8]), _float16(blocks, 0), _float16(blocks, 2)


def _q8_0(blocks: Blocks) -> Groups:
    scale = _float16(blocks, 0)
    return blocks[..., 2:] ^ 128, scale, -128 * scale  # a signed byte plus 128


def _six_bit_scales(packed: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima of the eight sub-blocks of Q4_K and Q5_K, from 12 bytes: 6 bits each."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], -1)
    minima = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], -1)
    return scales.float(), minima.float()


def _k_scales(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    scales, minima = _six_bit_scales(blocks[..., 4:16])
    return _float16(blocks, 0) * scales, -_float16(blocks, 2) * minima


def _k_nibbles(packed: Blocks) -> torch.Tensor:
    """256 levels from 128 bytes: of each 32 bytes the low halves, then the high halves."""
    return _nibbles(packed.unflatten(-1, (4, 32))).flatten(-2)


def _q4_k(blocks: Blocks) -> Groups:
    return _k_nibbles(blocks[..., 16:144]), *_k_scales(blocks)


def _q5_k(blocks: Blocks) -> Groups:
    high = _bits(blocks[..., 16:48], 1) << 4  # [..., sub-block, 32]
    return _k_nibbles(blocks[..., 48:176]) | high.flatten(-2), *_k_scales(blocks)


def _two_bits(packed: Blocks) -> torch.Tensor:
    """256 levels from 64 bytes: of each 32 bytes the lowest two bits, then the next two, and so on."""
    return _bits(packed.unflatten(-1, (2, 32)), 2).flatten(-3)


def _q2_k(blocks: Blocks) -> Groups:
    scales = blocks[..., :16]
    return _two_bits(blocks[..., 16:80]), _float16(blocks, 80) * (scales & 15), -_float16(blocks, 82) * (scales >> 4)


def _q3_k(blocks: Blocks) -> Groups:
    high = _bits(blocks[..., :32], 1) << 2  # [..., sub-block of 32, 32]
    six = _bits(blocks[..., 96:104], 4).flatten(-2) | _bits(blocks[..., 104:108], 2).flatten(-2) << 4  # 16 scales of 6 bits
    scale = _float16(blocks, 108) * (six.float() - 32)
    return _two_bits(blocks[..., 32:96]) | high.flatten(-2), scale, -4 * scale


def _iq4_nl(blocks: Blocks) -> Groups:
    scale = _float16(blocks, 0)
    return _nibbles(blocks[..., 2:]), scale, -128 * scale


def float4_scales(exponents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of groups in `FLOAT_4`, by their exponents uint8 of 2 and 127: half of the power, as the values are doubled."""
    scale = torch.exp2(exponents.float() - 128)
    return scale, -12 * scale


def _mxfp4(blocks: Blocks) -> Groups:
    return _nibbles(blocks[..., 1:]), *float4_scales(blocks[..., :1])


def _iq4_xs(blocks: Blocks) -> Groups:
    low, high = (_bits(part, bits).transpose(-1, -2).flatten(-2) for part, bits in ((blocks[..., 4:8], 4), (blocks[..., 2:4], 2)))
    six = low | high << 4  # 8 scales of 6 bits
    scale = _float16(blocks, 0) * (six.float() - 32)
    return _nibbles(blocks[..., 8:].unflatten(-1, (8, 16))).flatten(-2), scale, -128 * scale


def _q6_k(blocks: Blocks) -> Groups:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64)))  # [..., half, 128]: elements l, l + 32, then l + 64, l + 96
    high = _bits(blocks[..., 128:192].unflatten(-1, (2, 32)), 2) << 4  # [..., half, 4, 32]
    scale = _float16(blocks, 208) * blocks[..., 192:208].contiguous().view(torch.int8).float()
    return (low | high.flatten(-2)).flatten(-2), scale, -32 * scale


# type name -> bytes of a block, how Litmus keeps it, how it is unpacked
TYPES: dict[str, tuple[int, GroupFormat, Callable[[Blocks], Groups]]] = {
    "IQ4_NL": (18, UNEVEN_4, _iq4_nl),
    "IQ4_XS": (136, UNEVEN_4, _iq4_xs),
    "MXFP4": (17, FLOAT_4, _mxfp4),
    "Q2_K": (84, EVEN_4_OF_16, _q2_k),
    "Q3_K": (110, EVEN_4_OF_16, _q3_k),
    "Q4_0": (18, EVEN_4, _q4_0),
    "Q4_1": (20, EVEN_4, _q4_1),
    "Q4_K": (144, EVEN_4, _q4_k),
    "Q5_0": (22, EVEN_8, _q5_0),
    "Q5_1": (24, EVEN_8, _q5_1),
    "Q5_K": (176, EVEN_8, _q5_k),
    "Q6_K": (210, EVEN_8_OF_16, _q6_k),
    "Q8_0": (34, EVEN_8, _q8_0),
}


def group_format(type_name: str) -> GroupFormat:
    """As `unpack` gives the weights."""
    return TYPES[type_name][1]


def unpack(rows: torch.Tensor, type_name: str) -> GroupedWeights:
    """Unpack rows of blocks, uint8 `[out, bytes of a row]`, of one of `TYPES`."""
    size, kept, function = TYPES[type_name]
    levels, scale, minimum = function(rows.unflatten(1, (-1, size)))
    return GroupedWeights(levels.flatten(1), scale.flatten(1), minimum.flatten(1), kept.bits, kept.table)
