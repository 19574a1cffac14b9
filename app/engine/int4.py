"""4-bit layers on torch's own products for groups of 32 weights: for CUDA, and for a CPU without the compiled kernel.

Both keep a scale and a zero for each group: a weight is (level - 8) * scale + zero. Knows no architecture and no file.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.engine import cudaexperts, grouped
from app.engine.experts import Experts
from app.engine.grouped import GROUP_FORMAT, GROUP_SIZE, GroupedLinear, GroupedWeights, GroupFormat
from app.engine.rounding import quantize_4_bits
from app.errors import UnsupportedModel

MIDDLE_LEVEL = 8
CPU_OUTPUT_MULTIPLE = 16  # torch's product for a CPU wants a multiple of this many outputs
CUDA_OUTPUT_MULTIPLE = 8  # the same of that for CUDA
CUDA_CAPABILITY = (8, 0)  # of the oldest cards that it is written for
TILE_INPUTS = 16  # of the tensor cores
MOST_ROWS = 64  # from here on dequantizing costs less than another pass over the levels; to be measured on a card
BLOCK_WEIGHTS = 1 << 25  # dequantized at a time: 100 MB beside the layer
ROUNDED_WEIGHTS = 1 << 24  # rounded at a time: some 500 MB in float32


class Int4Linear(nn.Module):
    """A layer on torch's int4 product for a CPU."""

    def __init__(self, weights: GroupedWeights, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs = len(weights.levels)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(weights.levels.int(), 1))
        self.register_buffer("scales", scales_and_zeros(weights).to(dtype))
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.ops.aten._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), self.packed, GROUP_SIZE, self.scales)
        out = flat.view(*x.shape[:-1], self.outputs)
        return out if self.bias is None else out + self.bias


class CudaInt4Linear(nn.Module):
    """A layer on torch's int4 product for CUDA (ATen's int4mm.cu, "tinygemm"), with activations in bfloat16.

    That product reads all levels again for every 16 rows. Beyond `MOST_ROWS` the weights are dequantized for the call, to the bfloat16
    values that the product computes with, and multiplied as those of a plain layer.
    """

    packed: torch.Tensor  # int32 [out / 8, in / (16 * tiles), 32, tiles / 2]: see `unpack_levels`
    scales: torch.Tensor  # bfloat16 [groups, out, 2]: scale and zero
    bias: torch.Tensor | None  # [out]

    def __init__(self, weights: GroupedWeights, bias: torch.Tensor | None) -> None:
        """The levels are on the device. They fit if `is_packed_on_cuda` says so."""
        super().__init__()
        self.outputs, self.inputs = weights.levels.shape
        tiles = next(tiles for tiles in (8, 4, 2) if self.inputs % (tiles * TILE_INPUTS) == 0)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(pack_pairs(weights.levels), tiles))
        self.register_buffer("scales", scales_and_zeros(weights).bfloat16())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.inputs).contiguous()
        if 0 < len(rows) <= MOST_ROWS:
            out = torch.ops.aten._weight_int4pack_mm(rows, self.packed, GROUP_SIZE, self.scales)
        else:
            out = self._multiply_dequantized(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.outputs)

    def _multiply_dequantized(self, rows: torch.Tensor) -> torch.Tensor:
        block = max(1, BLOCK_WEIGHTS // (CUDA_OUTPUT_MULTIPLE * self.inputs)) * CUDA_OUTPUT_MULTIPLE
        parts = [F.linear(rows, self.dequantize(start, min(block, self.outputs - start))) for start in range(0, self.outputs, block)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def dequantize(self, start: int, count: int) -> torch.Tensor:
        """The weights `[count, in]` of the outputs from `start`, both multiples of 8. Reads nothing back from the device."""
        first, tiles = start // CUDA_OUTPUT_MULTIPLE, count // CUDA_OUTPUT_MULTIPLE
        levels = unpack_levels(self.packed.narrow(0, first, tiles))
        scale, zero = self.scales.narrow(1, start, count).float().transpose(0, 1).unsqueeze(-2).unbind(-1)  # [count, groups, 1]
        values = torch.empty(levels.shape, dtype=torch.bfloat16, device=levels.device)
        return torch.addcmul(zero - MIDDLE_LEVEL * scale, levels, scale, out=values).view(count, self.inputs)


def scales_and_zeros(weights: GroupedWeights) -> torch.Tensor:
    """What torch's products want beside the levels, `[groups, out, 2]`."""
    return torch.stack([weights.scale.T, (weights.minimum + MIDDLE_LEVEL * weights.scale).T], -1)


def pack_pairs(levels: torch.Tensor) -> torch.Tensor:
    """Levels uint8 `[out, in]` as bytes `[out, in / 2]`, the even inputs in the high halves."""
    even, odd = levels.unflatten(-1, (-1, 2)).unbind(-1)
    return even << 4 | odd


def unpack_pairs(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_pairs`."""
    return torch.stack([pairs >> 4, pairs & 15], -1).flatten(-2)


def unpack_levels(packed: torch.Tensor) -> torch.Tensor:
    """The levels uint8 `[out, groups, 32]` of what torch packed for CUDA: int32 `[out / 8, steps, 32, words]`.

    A word has a quarter of a group of one output, `words` groups lie side by side, and 32 lanes are 8 outputs by the quarters. Of the
    levels of its group, a word of the quarter `q` has those at 8 i + 2 q + odd, in bits 4 i + 16 odd and the three above.
    """
    tiles, steps, _, words = packed.shape
    bytes_ = packed.view(torch.uint8).view(tiles, steps, 8, 4, words, 2, 2)  # output, quarter, word, odd, half of the i
    ordered = bytes_.permute(0, 2, 1, 4, 6, 3, 5)  # [tiles, output, steps, word, half, quarter, odd]
    levels = torch.empty(tiles, 8, steps, words, 2, 2, 4, 2, dtype=torch.uint8, device=packed.device)
    low, high = levels.unbind(5)
    torch.bitwise_and(ordered, 15, out=low)
    torch.bitwise_right_shift(ordered, 4, out=high)
    return levels.view(tiles * 8, steps * words, GROUP_SIZE)


def runs_on(device: torch.device) -> bool:
    """Whether torch has the product for this CUDA device. AMD's have another layout of the levels."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= CUDA_CAPABILITY


def is_packed_on_cuda(group_format: GroupFormat, outputs: int, dtype: torch.dtype) -> bool:
    """Whether a layer in such groups stays in 4 bits on a CUDA device that has the product."""
    return group_format == GROUP_FORMAT and outputs % CUDA_OUTPUT_MULTIPLE == 0 and dtype == torch.bfloat16


def round_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Round the linear layers of a plain model to 4 bits on the CUDA `device`, in place; all else stays where it is. The vocabulary
    projection is not rounded, as 4 bits harm it most and 8 would not be kept. Layers that do not divide into groups stay, too.
    """
    head = model.get_output_embeddings()
    for parent, name, layer in grouped.layers_of(model):
        if type(layer) is nn.Linear and layer is not head and layer.in_features % GROUP_SIZE == 0:
            setattr(parent, name, _rounded(layer, device))


def _rounded(layer: nn.Linear, device: torch.device) -> GroupedLinear:
    """The levels wait in pairs, half as large as `GroupedWeights` has them."""
    rows = layer.weight.detach().split(max(1, ROUNDED_WEIGHTS // layer.in_features))
    parts = [quantize_4_bits(each.to(device)) for each in rows]
    pairs, scale, minimum = (
        torch.cat(column) for column in zip(*((pack_pairs(part.levels), part.scale, part.minimum) for part in parts), strict=True)
    )

    def unpack() -> GroupedWeights:
        return GroupedWeights(unpack_pairs(pairs), scale, minimum, 4)

    shape = (layer.out_features, layer.in_features)
    return GroupedLinear(unpack, shape, GROUP_FORMAT, layer.weight.dtype, layer.bias)


def dequantize_others(model: PreTrainedModel, device: torch.device) -> None:
    """Make plain what is in groups, but does not stay so on the CUDA `device`."""
    supported = runs_on(device)
    of_experts = {layer for experts in model.modules() if isinstance(experts, Experts) for layer in experts.modules()}

    def stays(layer: nn.Module) -> bool:
        if not supported or not isinstance(layer, GroupedLinear):
            return False
        if layer in of_experts:
            return cudaexperts.is_packed(layer.group_format, layer.dtype)
        return is_packed_on_cuda(layer.group_format, layer.out_features, layer.dtype)

    grouped.dequantize_layers(model, stays)


def pack_layers(model: nn.Module) -> None:
    """Pack the layers in groups of a model on a CUDA device, and join those of experts. Raises `UnsupportedModel` if torch packs other than
    this module reads.
    """
    cudaexperts.join_experts(model)
    for parent, name, layer in grouped.layers_of(model):
        if not isinstance(layer, GroupedLinear):
            continue
        weights = layer.unpack()
        packed = CudaInt4Linear(weights, layer.bias)
        if not torch.equal(unpack_levels(packed.packed).view_as(weights.levels), weights.levels):
            raise UnsupportedModel(f"torch {torch.__version__} packs 4-bit weights in an order that Litmus does not know; use nf4")
        setattr(parent, name, packed)
