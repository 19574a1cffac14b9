"""Faster linear layers for a CPU: weights are packed once, in bfloat16 or 4 bits, for the compiled kernel of `csrc`.

Where the kernel cannot be compiled, bfloat16 layers are packed for oneDNN and int4 layers use torch's own int4 kernel. torch itself
packs bfloat16 weights anew in every call; packed once, they are read at nearly the speed of memory. Knows no architecture.
"""

from typing import Any, TypeGuard, cast

import torch
from torch import nn
from transformers.activations import SiLUActivation

from app.engine import packing
from app.engine.kernel import Epilogue, Kernel, kernel
from app.engine.packing import GROUP_SIZE, PackedWeights

MAX_LEVEL = 15
BNB_BLOCK_OUTPUTS = 32  # in bitsandbytes' weight layout for a CPU
INT4_OUTPUT_MULTIPLE = 16  # torch's int4 kernel wants a multiple of this many outputs


class TiledLinear(nn.Module):
    """A layer on the compiled kernel, with activations in bfloat16. The weight cannot be read back."""

    def __init__(self, packed: PackedWeights, linear: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.kernel, self.packed = kernel, packed
        self.packed_bytes = packed.nbytes
        self.outputs = linear.out_features
        self.bias = None if linear.bias is None else packing.pad_bias(linear.bias.detach(), kernel.columns)

    @classmethod
    def from_bfloat16(cls, linear: nn.Linear, kernel: Kernel) -> "TiledLinear":
        """Keep the weights in bfloat16."""
        return cls(packing.pack_bfloat16(linear.weight.detach(), kernel.columns), linear, kernel)

    @classmethod
    def from_int4(cls, linear: nn.Linear, kernel: Kernel) -> "TiledLinear":
        """Round the weights to 4 bits; the kernel rounds the inputs to 8 bits."""
        return cls(packing.pack_uniform_levels(*_quantize_groups(linear.weight.detach()), kernel.columns), linear, kernel)

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Apply the layer and then `activation`, "none" or "swish"."""
        return self.kernel.linear(x, self.packed, Epilogue(self.outputs, self.bias, activation))

    def combine(self, x: torch.Tensor, operand: torch.Tensor, binary_op: str) -> torch.Tensor:
        """Apply the layer, then multiply by `operand` ("mul") or add it ("add")."""
        return self.kernel.linear(x, self.packed, Epilogue(self.outputs, self.bias, "none", binary_op, operand))


class PackedLinear(nn.Module):
    """A bfloat16 layer in oneDNN's own weight layout. The weight cannot be read back."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed_bytes = weight.nbytes
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 32)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """As `TiledLinear.forward`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "")

    def combine(self, x: torch.Tensor, operand: torch.Tensor, binary_op: str) -> torch.Tensor:
        """As `TiledLinear.combine`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, operand, self.packed, self.bias, binary_op)


FusedLinear = TiledLinear | PackedLinear  # these apply an activation or a second operand before they write their outputs


class Int4Linear(nn.Module):
    """A layer on torch's int4 kernel. Each group of 32 weights of a row is rounded to 16 levels between its minimum and maximum."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        levels, scale, offset = _quantize_groups(linear.weight.detach())
        self.outputs = linear.out_features
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1))
        scales = torch.stack([scale, offset], -1).transpose(0, 1).contiguous()  # [groups, out, 2]
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.ops.aten._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), self.packed, GROUP_SIZE, self.scales)
        out = flat.view(*x.shape[:-1], self.outputs)
        return out if self.bias is None else out + self.bias


def round_weights(model: nn.Module) -> None:
    """Round the weights of every layer that `prepack_layers` will convert to int4, in place and to the values of its levels.

    The model's own forward then is the reference for the int4 layers.
    """
    for linear in filter(_is_int4_compatible, model.modules()):
        levels, scale, offset = _quantize_groups(linear.weight.detach())
        grouped = levels.view(len(levels), -1, GROUP_SIZE).float()
        rounded = (grouped - 8) * scale[..., None] + offset[..., None]
        linear.weight = nn.Parameter(rounded.view_as(linear.weight).to(linear.weight.dtype), requires_grad=False)


def prepack_layers(model: nn.Module, int4: bool) -> None:
    """Replace the linear layers of a model on a CPU by faster ones. Other kinds of layers, such as bitsandbytes' int8, stay."""
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for name, child in list(parent.named_children()):
            replacement = _prepacked(child, int4)
            if replacement is not None:
                setattr(parent, name, replacement)


def _prepacked(layer: nn.Module, int4: bool) -> nn.Module | None:
    """Return the replacement of `layer`, or None if it stays. Calls `kernel()`, which compiles, only for a layer that would use it."""
    if int4 and _is_int4_compatible(layer):
        compiled = kernel() if layer.weight.dtype == torch.bfloat16 else None
        return Int4Linear(layer) if compiled is None else TiledLinear.from_int4(layer, compiled)
    levels = _bitsandbytes_levels(layer)
    if levels is not None:
        compiled = kernel()
        return None if compiled is None else TiledLinear(packing.pack_levels(*levels, compiled.columns), cast(nn.Linear, layer), compiled)
    if not _is_plain(layer) or layer.weight.dtype != torch.bfloat16:
        return None
    compiled = kernel()
    if compiled is not None:
        return TiledLinear.from_bfloat16(layer, compiled)
    return PackedLinear(layer) if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def _bitsandbytes_levels(layer: Any) -> tuple[torch.Tensor, list[float], torch.Tensor, torch.Tensor] | None:
    """Read a 4-bit layer of bitsandbytes without rounding again (QLoRA, arXiv 2305.14314, appendix E).

    Returns levels `[out, in]`, the 16 values they stand for, and scale and offset `[out, groups]`; None for another kind of layer, or
    where a group spans several rows.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None or getattr(layer, "compute_dtype", None) != torch.bfloat16 or layer.weight.device.type != "cpu":
        return None
    outputs, inputs = state.shape
    if inputs % state.blocksize:
        return None
    data = layer.weight.detach().view(torch.uint8)
    if getattr(state, "packing_format_for_cpu", False):  # the layer's first forward on a CPU with AVX-512 reorders its levels
        halves = data.reshape(-1, BNB_BLOCK_OUTPUTS)
        blocks = torch.cat([halves & 15, halves >> 4], -1).view(outputs // BNB_BLOCK_OUTPUTS, inputs // 2, BNB_BLOCK_OUTPUTS, 2)
        levels, scale = blocks.transpose(1, 2).reshape(outputs, inputs), state.absmax.T.float()
    else:
        from bitsandbytes.functional import dequantize_blockwise  # here: importing it takes a second

        pairs = data.view(outputs, inputs // 2)
        levels = torch.stack([pairs >> 4, pairs & 15], -1).view(outputs, inputs)
        scale = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        scale = scale.float().view(outputs, inputs // state.blocksize)
    return levels, state.code.tolist(), scale, torch.zeros_like(scale)


def gated_product(gate: nn.Module, up: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return act(gate(x)) * up(x), fused where the layers allow it."""
    if isinstance(gate, FusedLinear) and isinstance(up, FusedLinear) and isinstance(act, nn.SiLU | SiLUActivation):
        return up.combine(x, gate(x, "swish"), "mul")
    return act(gate(x)).mul_(up(x))


def add_residual(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return layer(x) + residual, fused where the layer allows it."""
    return layer.combine(x, residual, "add") if isinstance(layer, FusedLinear) else layer(x).add_(residual)


def concatenate_layers(parts: list[nn.Module]) -> nn.Module:
    """Return one layer whose outputs are those of `parts`, concatenated. Weights are merged if all parts are plain linear layers."""
    plain = [part for part in parts if _is_plain(part)]
    if len(plain) < len(parts):
        return _ConcatenatedLayers(parts)
    weights = [part.weight.detach() for part in plain]
    biases = [part.bias.detach() for part in plain if part.bias is not None]
    merged = nn.Linear(plain[0].in_features, sum(map(len, weights)), bias=bool(biases), device="meta")
    merged.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if biases:
        merged.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return merged


class _ConcatenatedLayers(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """False for bitsandbytes' layers, which are subclasses of `nn.Linear`."""
    return type(module) is nn.Linear


def _is_int4_compatible(module: nn.Module) -> TypeGuard[nn.Linear]:
    return _is_plain(module) and module.in_features % GROUP_SIZE == 0 and module.out_features % INT4_OUTPUT_MULTIPLE == 0


def _quantize_groups(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return levels 0..15 `[out, in]`, and of each group its scale and the value of level 8 (offset), `[out, groups]`.

    Scale and offset are rounded as the layer stores them.
    """
    grouped = weight.float().view(len(weight), -1, GROUP_SIZE)
    low, high = grouped.aminmax(dim=-1)
    scale = ((high - low) / MAX_LEVEL).clamp(min=1e-8).to(weight.dtype).float()
    offset = (low + 8 * scale).to(weight.dtype).float()
    levels = ((grouped - offset[..., None]) / scale[..., None] + 8).round().clamp(0, MAX_LEVEL)
    return levels.to(torch.int32).view_as(weight), scale, offset
