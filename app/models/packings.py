"""How checkpoints that others rounded store a layer's weights: GPTQ, AWQ, compressed-tensors, FP8 and MXFP4. Knows no file and no model.

Levels stay what they are: a weight is (level - zero) * scale, with a scale and a zero for each group along a row. Layouts as in AutoGPTQ's
`QuantLinear` (checkpoint formats gptq and gptq_v2), AutoAWQ's `WQLinear_GEMM`, and the formats pack-quantized, int-quantized and
float-quantized of compressed-tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from app.engine.grouped import FLOAT_4, GroupedWeights, GroupFormat
from app.models.blocks import float4_scales

WORD_BITS = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in its word of each of eight neighbouring outputs
SIZES = {4: (32, 16), 8: (32, 16)}  # by the bits of a level: weights of a group, as the engine keeps them

Tensors = Mapping[str, torch.Tensor]  # of one layer, by the last part of their names
Shape = tuple[int, int]  # outputs and inputs of a layer


@dataclass(frozen=True, slots=True)
class Levels:
    levels: torch.Tensor  # uint8 [out, in]
    scale: torch.Tensor  # float32 [out, groups]
    zero: torch.Tensor  # float32 [out, groups]
    bits: int  # 4 or 8

    def grouped(self) -> GroupedWeights:
        """In the engine's groups: a larger one becomes several with the same scale. They fit if `format_of` says so."""
        inputs, groups = self.levels.shape[1], self.scale.shape[1]
        kept = format_of(inputs, groups, self.bits)
        assert kept is not None
        scale, minimum = (part.repeat_interleave(inputs // groups // kept.size, 1) for part in (self.scale, -self.zero * self.scale))
        return GroupedWeights(self.levels, scale, minimum, self.bits)


def format_of(inputs: int, groups: int, bits: int) -> GroupFormat | None:
    """How the engine keeps a row of `inputs` weights in so many groups; None if it cannot."""
    whole = inputs // groups if groups and inputs % groups == 0 else 0
    size = next((size for size in SIZES.get(bits, ()) if whole and whole % size == 0), None)
    return None if size is None else GroupFormat(bits, size)


def unpack_gptq(tensors: Tensors, bits: int, is_v2: bool) -> Levels:
    """`qweight` `[in / per word, out]`, `qzeros` `[groups, out / per word]`, one less than the zero unless `is_v2`, `scales`
    `[groups, out]`. The groups follow each other: see `has_ordered_groups`.
    """
    zeros = _unpacked(tensors["qzeros"], bits, 1)
    zeros = zeros if is_v2 else (zeros + 1) & ((1 << bits) - 1)
    return Levels(_unpacked(tensors["qweight"], bits, 0).T.contiguous(), tensors["scales"].float().T, zeros.float().T, bits)


def has_ordered_groups(group_of: torch.Tensor, groups: int) -> bool:
    """Whether `g_idx` `[in]` of a GPTQ layer is what it is without `desc_act`."""
    size = len(group_of) // groups
    return size > 0 and torch.equal(group_of.long(), torch.arange(len(group_of)) // size)


def unpack_awq(tensors: Tensors) -> Levels:
    """`qweight` `[in, out / 8]`, `qzeros` `[groups, out / 8]`, `scales` `[groups, out]`."""
    levels, zeros = (_unpacked(tensors[name], 4, 1).unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1) for name in ("qweight", "qzeros"))
    return Levels(levels.T.contiguous(), tensors["scales"].float().T, zeros.float().T, 4)


def unpack_compressed(tensors: Tensors, shape: Shape, bits: int) -> Levels:
    """`weight_packed` `[out, in / per word]` or, in bytes, `weight` `[out, in]`; `weight_scale` `[out, groups]`, or one for all; and
    perhaps `weight_zero_point`, packed along the outputs, or in bytes. `shape` is `[out, in]`.
    """
    middle = 1 << bits - 1
    zero = tensors.get("weight_zero_point")
    if "weight_packed" in tensors:
        levels = _unpacked(tensors["weight_packed"], bits, 1)[:, : shape[1]]
        zeros = None
        if zero is not None and zero.dtype == torch.int8:  # as older versions stored them
            zeros = _by_output(zero, shape) + middle
        elif zero is not None:
            zeros = _unpacked(zero, bits, 0)[: shape[0]].float()
    else:
        levels = (tensors["weight"].int() + middle).to(torch.uint8)
        zeros = None if zero is None else _by_output(zero, shape) + middle
    scale = _by_output(tensors["weight_scale"], shape)
    return Levels(levels.contiguous(), scale, torch.full_like(scale, middle) if zeros is None else zeros.expand_as(scale), bits)


def unpack_float8(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """The values, float32 `[out, in]`, of `weight` in 8-bit floats; one scale for all, for each output, or for each `block` of outputs and
    inputs, the last of which may be smaller.
    """
    if block is None:
        return weight.float() * _by_output(scale, (weight.shape[0], weight.shape[1]))
    for dim, size in enumerate(block):
        scale = scale.repeat_interleave(size, dim).narrow(dim, 0, weight.shape[dim])
    return weight.float() * scale.float()


def unpack_float4(blocks: torch.Tensor, scales: torch.Tensor) -> GroupedWeights:
    """MXFP4 as GPT-OSS's checkpoints have it: `blocks` `[out, groups, 16]`, of each byte the low half first; `scales` `[out, groups]`,
    exponents of 2 and 127 (OCP MX, version 1.0).
    """
    scale, minimum = float4_scales(scales)
    return GroupedWeights(torch.stack([blocks & 15, blocks >> 4], -1).flatten(1), scale, minimum, FLOAT_4.bits, FLOAT_4.table)


def _by_output(part: torch.Tensor, shape: Shape) -> torch.Tensor:
    """float32 `[out, groups]` of what may be one number for all."""
    return part.float().reshape(-1, part.shape[-1] if part.dim() == 2 else 1).expand(shape[0], -1)


def _unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Levels uint8 of int32 words that were packed along `dim`, the first in the lowest bits."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    shifts = shifts if dim == 1 else shifts[:, None]
    return (words.unsqueeze(dim + 1) >> shifts & (1 << bits) - 1).to(torch.uint8).flatten(dim, dim + 1)
