"""Rounds a plain model's layers to levels of 4 or 8 bits in groups: Litmus's own int4 and int8.

By the compiled kernel, or by torch where there is none, and on other devices: the same but for sums in another order. Knows no file.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.grouped import GROUP_SIZE, GroupedEmbedding, GroupedLinear, GroupedWeights, GroupFormat, is_groupable, layers_of
from app.engine.kernel import Kernel, kernel
from app.engine.rows import ROW_DTYPES

MAX_LEVEL = 15  # in 4 bits
ZERO_LEVEL = 128  # in 8 bits: the level of the value 0
MAX_MAGNITUDE = 127  # in 8 bits: the largest distance from it
FIT_ROUNDS = 2  # in each, scale and minimum are fitted by least squares, and the levels chosen again
TINY = 1e-8  # the smallest scale: a group of equal weights has no range


def quantize_layers(model: PreTrainedModel, scheme: str) -> None:
    """Round a plain model's linear layers, in place: `int8` in 8 bits; `int4` in 4 bits, but the vocabulary projection in 8, as 4 bits harm
    it most. An embedding that is tied to the projection shares its weights. Layers that do not divide into groups stay.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    for parent, name, layer in layers_of(model):
        if type(layer) is not nn.Linear or layer.in_features % GROUP_SIZE:
            continue
        bits = 8 if scheme == "int8" or layer is head else 4
        weights = (quantize_8_bits if bits == 8 else quantize_4_bits)(layer.weight.detach().contiguous())
        shape = (layer.out_features, layer.in_features)
        replacement = GroupedLinear(_constant(weights), shape, GroupFormat(bits, GROUP_SIZE), layer.weight.dtype, layer.bias)
        if layer is head and is_groupable(embedding) and embedding.weight is layer.weight:
            model.set_input_embeddings(GroupedEmbedding(replacement.unpack, embedding))
        setattr(parent, name, replacement)


def _constant(weights: GroupedWeights) -> Callable[[], GroupedWeights]:
    return lambda: weights


def quantize_4_bits(weight: torch.Tensor) -> GroupedWeights:
    """Round to 16 evenly spaced levels a group. Scale and minimum minimise the squared error of the levels chosen (linear regression)."""
    if (compiled := _kernel_for(weight)) is not None:
        return compiled.round_weights(weight, 4)
    grouped = weight.float().view(len(weight), -1, GROUP_SIZE)
    minimum, high = grouped.aminmax(dim=-1)
    scale = ((high - minimum) / MAX_LEVEL).clamp_(min=TINY)
    levels = _nearest_levels(grouped, scale, minimum)
    total = grouped.sum(-1)
    for _ in range(FIT_ROUNDS):
        sums, squares, products = levels.sum(-1), (levels * levels).sum(-1), (levels * grouped).sum(-1)
        spread = GROUP_SIZE * squares - sums * sums
        scale = torch.where(spread > 0, (GROUP_SIZE * products - sums * total) / spread.clamp(min=1), scale).clamp_(min=TINY)
        scale = scale.half().float().clamp_(min=TINY)  # as the layer stores it
        minimum = (total - scale * sums) / GROUP_SIZE
        levels = _nearest_levels(grouped, scale, minimum)
    return GroupedWeights(levels.to(torch.uint8).view_as(weight), scale, minimum, 4)


def quantize_8_bits(weight: torch.Tensor) -> GroupedWeights:
    """Round to 255 levels around 0 a group, as GGUF's Q8_0 does."""
    if (compiled := _kernel_for(weight)) is not None:
        return compiled.round_weights(weight, 8)
    grouped = weight.float().view(len(weight), -1, GROUP_SIZE)
    scale = (grouped.abs().amax(-1) / MAX_MAGNITUDE).clamp_(min=TINY)
    levels = (grouped / scale[..., None]).round_().clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE).add_(ZERO_LEVEL)
    return GroupedWeights(levels.to(torch.uint8).view_as(weight), scale, -ZERO_LEVEL * scale, 8)


def _nearest_levels(grouped: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    return ((grouped - minimum[..., None]) / scale[..., None]).round_().clamp_(0, MAX_LEVEL)


def _kernel_for(weight: torch.Tensor) -> Kernel | None:
    return kernel() if weight.device.type == "cpu" and weight.dtype in ROW_DTYPES else None
