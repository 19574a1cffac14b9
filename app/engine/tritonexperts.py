"""The product of sorted rows by the experts' weights in 4-bit groups, as a kernel in Triton. Import it only where Triton is installed.

A program computes a tile of rows of one expert for some outputs. It dequantizes what it multiplies, to the dtype of the rows, and sums in
float32. Which expert a tile belongs to is worked out on the device, so that the host need not wait for the routes: the grid has as many
tiles as there can be, and those that are too many do nothing.
"""

from typing import Any

import torch
import triton
from triton import language as tl

from app.engine.cudaexperts import PackedProjection
from app.engine.tritonkernels import FAILURES

__all__ = ["FAILURES", "multiply"]

FEW, MANY = (16, 64), (64, 128)  # rows and outputs of a program, where an expert has few rows, and otherwise


@triton.jit
def _weights(levels, scale, minimum, IS_EVEN: tl.constexpr):
    """`[inputs, outputs]` in float32. MXFP4's levels are a sign, two bits of an exponent and one of a fraction."""
    if IS_EVEN:
        return levels.to(tl.float32) * scale + minimum
    level = levels.to(tl.int32)
    exponent, fraction = (level >> 1) & 3, level & 1
    doubled = tl.where(exponent == 0, fraction, (2 + fraction) << (tl.maximum(exponent, 1) - 1))
    return tl.where(level > 7, -doubled, doubled).to(tl.float32) * scale


@triton.jit
def _multiply(
    x,
    ends,
    levels,
    scales,
    minima,
    bias,
    out,
    factor,
    EXPERTS: tl.constexpr,
    ALL: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    tile = tl.program_id(0)
    number = tl.arange(0, ALL)
    end = tl.load(ends + number, mask=number < EXPERTS, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < EXPERTS), other=0)
    tiles = tl.where(number < EXPERTS, (end - start + ROWS - 1) // ROWS, 0)
    last_tile = tl.cumsum(tiles, 0)
    expert = tl.sum(((last_tile <= tile) & (number < EXPERTS)).to(tl.int32), 0)
    if expert < EXPERTS:
        is_own = number == expert
        own_start = tl.sum(tl.where(is_own, start, 0), 0)
        own_end = tl.sum(tl.where(is_own, end, 0), 0)
        own_tile = tile - tl.sum(tl.where(is_own, last_tile - tiles, 0), 0)
        row = own_start + own_tile * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        of_row, of_column = row < own_end, column < OUTPUTS
        input = tl.arange(0, 32)
        output = expert.to(tl.int64) * OUTPUTS + column
        x_at = x + row.to(tl.int64)[:, None] * INPUTS + input[None, :]
        level_at = levels + output[None, :] * (BLOCKS * 32) + input[:, None]
        scale_at = expert.to(tl.int64) * (BLOCKS * 2 * OUTPUTS) + column
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for block in range(BLOCKS):
            packed = tl.load(level_at + block * 32, mask=of_column[None, :], other=0)
            low_scale = tl.load(scales + scale_at + block * 2 * OUTPUTS, mask=of_column, other=0.0).to(tl.float32)[None, :]
            high_scale = tl.load(scales + scale_at + (block * 2 + 1) * OUTPUTS, mask=of_column, other=0.0).to(tl.float32)[None, :]
            low_minimum, high_minimum = low_scale, high_scale
            if IS_EVEN:
                low_minimum = tl.load(minima + scale_at + block * 2 * OUTPUTS, mask=of_column, other=0.0).to(tl.float32)[None, :]
                high_minimum = tl.load(minima + scale_at + (block * 2 + 1) * OUTPUTS, mask=of_column, other=0.0).to(tl.float32)[None, :]
            first = block * 64 + input
            low_x = tl.load(x_at + block * 64, mask=of_row[:, None] & (first < INPUTS)[None, :], other=0.0)
            high_x = tl.load(x_at + block * 64 + 32, mask=of_row[:, None] & (first + 32 < INPUTS)[None, :], other=0.0)
            low = (_weights(packed & 15, low_scale, low_minimum, IS_EVEN) * factor).to(low_x.dtype)
            high = (_weights(packed >> 4, high_scale, high_minimum, IS_EVEN) * factor).to(low_x.dtype)
            sums = tl.dot(low_x, low, sums)
            sums = tl.dot(high_x, high, sums)
        if HAS_BIAS:
            sums += tl.load(bias + output, mask=of_column, other=0.0).to(tl.float32)[None, :]
        at = out + row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
        tl.store(at, sums.to(out.dtype.element_ty), mask=of_row[:, None] & of_column[None, :])


def multiply(projection: PackedProjection, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """As `PackedProjection.forward`."""
    x = x.contiguous()
    out, experts = x.new_empty(len(x), projection.outputs), len(ends)
    if not len(x):
        return out
    rows, columns = FEW if len(x) <= FEW[0] * experts else MANY
    tiles = min(len(x), triton.cdiv(len(x), rows) + experts)  # each expert may have one that is not full
    minima = projection.scales if projection.minima is None else projection.minima  # not read for MXFP4
    bias = x if projection.bias is None else projection.bias
    sizes: dict[str, Any] = {"EXPERTS": experts, "ALL": triton.next_power_of_2(experts), "INPUTS": projection.inputs}
    sizes |= {"BLOCKS": projection.levels.shape[2] // 32, "OUTPUTS": projection.outputs, "ROWS": rows, "COLUMNS": columns}
    has: dict[str, Any] = {"IS_EVEN": projection.is_even, "HAS_BIAS": projection.bias is not None}
    grid = (tiles, triton.cdiv(projection.outputs, columns))
    with torch.cuda.device_of(x):
        _multiply[grid](x, ends, projection.levels, projection.scales, minima, bias, out, projection.factor, **sizes, **has)
    return out
