"""bitsandbytes' 4-bit layers on a CPU as layers in groups, for the compiled kernel, which multiplies whole numbers.

The sixteen values of nf4 and fp4 become whole numbers from 0 to 255: of the largest weight of a block the error is at most 1/300, a tenth
of what nf4's own rounding leaves. The levels stay as they are stored. Knows no architecture.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from app.engine.grouped import GROUP_SIZE, GroupedLinear, GroupedWeights, GroupFormat, Table, is_four_bit_layer, layers_of
from app.engine.kernel import kernel

BNB_BLOCK_OUTPUTS = 32  # in bitsandbytes' weight layout for a CPU
LARGEST = 255  # of a table's whole numbers
TRIED_STEPS, TRIED_SHIFTS = 512, 32


def group_layers(model: nn.Module) -> None:
    """Replace bitsandbytes' 4-bit layers in bfloat16 by `GroupedLinear`s, where the kernel runs and no block of weights spans two rows.
    Their inputs that were kept stay with them.
    """
    for parent, name, layer in layers_of(model):
        if not is_four_bit_layer(layer) or not _fits(layer) or kernel() is None:
            continue
        made = _grouped(layer)
        made.check_inputs = getattr(layer, "check_inputs", None)
        setattr(parent, name, made)


def _fits(layer: Any) -> bool:
    state = layer.weight.quant_state
    is_on_cpu = layer.compute_dtype == torch.bfloat16 and layer.weight.device.type == "cpu"
    return is_on_cpu and state.shape[1] % state.blocksize == 0 and state.blocksize % GROUP_SIZE == 0


def _grouped(layer: Any) -> GroupedLinear:
    weight, state = layer.weight, layer.weight.quant_state
    table, step, first = whole_numbers(tuple(state.code.tolist()))

    def unpack() -> GroupedWeights:
        levels, scale = stored_levels(weight)
        scale = scale.repeat_interleave(state.blocksize // GROUP_SIZE, 1)
        return GroupedWeights(levels, step * scale, first * scale, 4, table)

    shape = (int(state.shape[0]), int(state.shape[1]))
    return GroupedLinear(unpack, shape, GroupFormat(4, GROUP_SIZE, table), torch.bfloat16, layer.bias)


@cache
def whole_numbers(values: Sequence[float]) -> tuple[Table, float, float]:
    """Sixteen values as whole numbers, a step and a first value: a value is about number * step + first. Of the steps and first values
    that were tried those whose squared error is least.
    """
    exact = torch.tensor(values, dtype=torch.float64)
    low, span = float(exact.min()), float(exact.max() - exact.min())
    steps = span / torch.linspace(LARGEST - 40, LARGEST - 1, TRIED_STEPS, dtype=torch.float64)[:, None, None]
    firsts = low - steps * torch.linspace(0, 1, TRIED_SHIFTS, dtype=torch.float64)[:, None]
    numbers = ((exact - firsts) / steps).round()  # [steps, shifts, values]
    errors = (numbers * steps + firsts - exact).square().sum(-1)
    step, shift = divmod(int(errors.argmin()), TRIED_SHIFTS)
    return tuple(map(int, numbers[step, shift].tolist())), float(steps[step]), float(firsts[step, shift])


def stored_levels(weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What bitsandbytes stores, without rounding it again (QLoRA, arXiv 2305.14314, appendix E): levels uint8 `[out, in]`, and the largest
    magnitude of each block, float32 `[out, blocks]`.
    """
    state = weight.quant_state
    outputs, inputs = state.shape
    data = weight.detach().view(torch.uint8)
    if getattr(state, "packing_format_for_cpu", False):  # the layer's first forward on a CPU with AVX-512 reorders its levels
        halves = data.reshape(-1, BNB_BLOCK_OUTPUTS)
        blocks = torch.cat([halves & 15, halves >> 4], -1).view(outputs // BNB_BLOCK_OUTPUTS, inputs // 2, BNB_BLOCK_OUTPUTS, 2)
        return blocks.transpose(1, 2).reshape(outputs, inputs), state.absmax.T.float()
    from bitsandbytes.functional import dequantize_blockwise  # here: whoever made the layer has imported it

    pairs = data.view(outputs, inputs // 2)
    scale = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    levels = torch.stack([pairs >> 4, pairs & 15], -1).view(outputs, inputs)
    return levels, scale.float().view(outputs, inputs // state.blocksize)
