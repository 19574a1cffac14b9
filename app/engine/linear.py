"""Linear layers for a CPU: weights packed once for `csrc`, in bfloat16 or 4 bits; where that cannot be compiled, for oneDNN, or for
torch's own int4 kernel.

torch packs bfloat16 weights anew in every call; packed once they are read at nearly the speed of memory. Knows no architecture.
"""

from typing import Any, TypeGuard, cast

import torch
from bitsandbytes.functional import dequantize_blockwise
from torch import nn
from transformers.activations import SiLUActivation

from app.engine import packing
from app.engine.kernel import Ending, Kernel, kernel
from app.engine.packing import GROUP, Packed

LEVELS = 15
BNB_BLOCK = 32  # outputs of a block of bitsandbytes' order for a CPU
COLUMNS = 16  # the int4 kernel wants a multiple of this many outputs


class TiledLinear(nn.Module):
    """A layer in the order of `csrc`, with activations in bfloat16. The weight cannot be read back."""

    def __init__(self, packed: Packed, linear: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.kernel, self.packed = kernel, packed
        self.packed_bytes = packed.nbytes
        self.outputs = linear.out_features
        self.bias = None if linear.bias is None else packing.padded(linear.bias.detach(), kernel.columns)

    @classmethod
    def of(cls, linear: nn.Linear, kernel: Kernel) -> "TiledLinear":
        return cls(packing.pairs(linear.weight.detach(), kernel.columns), linear, kernel)

    @classmethod
    def int4(cls, linear: nn.Linear, kernel: Kernel) -> "TiledLinear":
        """Of weights in 4 bits, its inputs rounded to bytes."""
        return cls(packing.steps(*_levels(linear.weight.detach()), kernel.columns), linear, kernel)

    def forward(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        """`then` is what is done to each output before it is written: "none" or "swish"."""
        return self.kernel(x, self.packed, Ending(self.outputs, self.bias, then))

    def combine(self, x: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        """Outputs times ("mul") or plus ("add") `other`."""
        return self.kernel(x, self.packed, Ending(self.outputs, self.bias, "none", how, other))


class PackedLinear(nn.Module):
    """A bfloat16 layer in oneDNN's own order. The weight cannot be read back."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed_bytes = weight.nbytes
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 32)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, then, [], "")

    def combine(self, x: torch.Tensor, other: torch.Tensor, how: str) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, how)


Fused = TiledLinear | PackedLinear  # go on with their outputs before they are written


class Int4Linear(nn.Module):
    """Rows of weights in groups of 32, each rounded to 16 levels between its smallest and its largest."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        levels, scale, middle = _levels(linear.weight.detach())
        self.outputs = linear.out_features
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1))
        scales = torch.stack([scale, middle], -1).transpose(0, 1).contiguous()  # [groups, out, 2]
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.ops.aten._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), self.packed, GROUP, self.scales)
        out = flat.view(*x.shape[:-1], self.outputs)
        return out if self.bias is None else out + self.bias


def round_weights(model: nn.Module) -> None:
    """Replace the weights of every layer that `quicken` will make an `Int4Linear` of by what that layer will hold."""
    for linear in filter(_rounds, model.modules()):
        levels, scale, middle = _levels(linear.weight.detach())
        grouped = levels.view(len(levels), -1, GROUP).float()
        rounded = (grouped - 8) * scale[..., None] + middle[..., None]
        linear.weight = nn.Parameter(rounded.view_as(linear.weight).to(linear.weight.dtype), requires_grad=False)


def quicken(model: nn.Module, int4: bool) -> None:
    """Put faster layers in the place of the plain ones of a model on a CPU; layers of other kinds (bitsandbytes' int8) stay as they are."""
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for name, child in list(parent.named_children()):
            faster = _faster(child, int4)
            if faster is not None:
                setattr(parent, name, faster)


def _faster(layer: nn.Module, int4: bool) -> nn.Module | None:
    """None for a layer that stays as it is. The kernel is asked for, and compiled, where it would have something to do only."""
    if int4 and _rounds(layer):
        made = kernel() if layer.weight.dtype == torch.bfloat16 else None
        return Int4Linear(layer) if made is None else TiledLinear.int4(layer, made)
    levels = _stored_levels(layer)
    if levels is not None:
        made = kernel()
        return None if made is None else TiledLinear(packing.levels(*levels, made.columns), cast(nn.Linear, layer), made)
    if not _plain(layer) or layer.weight.dtype != torch.bfloat16:
        return None
    made = kernel()
    if made is not None:
        return TiledLinear.of(layer, made)
    return PackedLinear(layer) if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def _stored_levels(layer: Any) -> tuple[torch.Tensor, list[float], torch.Tensor, torch.Tensor] | None:
    """The levels `[out, in]` that bitsandbytes has stored (QLoRA, arXiv 2305.14314, appendix E), what they stand for, and the scale
    and middle of each group; None for another kind of layer, or one whose groups go across rows.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None or getattr(layer, "compute_dtype", None) != torch.bfloat16 or layer.weight.device.type != "cpu":
        return None
    outputs, inputs = state.shape
    if inputs % state.blocksize:
        return None
    data = layer.weight.detach().view(torch.uint8)
    if getattr(state, "packing_format_for_cpu", False):  # its first forward on a CPU with AVX-512 puts them into another order
        halves = data.reshape(-1, BNB_BLOCK)
        blocks = torch.cat([halves & 15, halves >> 4], -1).view(outputs // BNB_BLOCK, inputs // 2, BNB_BLOCK, 2)
        levels, scale = blocks.transpose(1, 2).reshape(outputs, inputs), state.absmax.T.float()
    else:
        pairs = data.view(outputs, inputs // 2)
        levels = torch.stack([pairs >> 4, pairs & 15], -1).view(outputs, inputs)
        scale = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        scale = scale.float().view(outputs, inputs // state.blocksize)
    return levels, state.code.tolist(), scale, torch.zeros_like(scale)


def gated(gate: nn.Module, up: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """act(gate(x)) * up(x)."""
    if isinstance(gate, Fused) and isinstance(up, Fused) and isinstance(act, nn.SiLU | SiLUActivation):
        return up.combine(x, gate(x, "swish"), "mul")
    return act(gate(x)).mul_(up(x))


def added(layer: nn.Module, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """layer(x) + other."""
    return layer.combine(x, other, "add") if isinstance(layer, Fused) else layer(x).add_(other)


def joined(parts: list[nn.Module]) -> nn.Module:
    """One layer whose outputs are those of `parts` one after the other; plain layers become one, others are called in turn."""
    plain = [part for part in parts if _plain(part)]
    if len(plain) < len(parts):
        return _Side(parts)
    weights = [part.weight.detach() for part in plain]
    biases = [part.bias.detach() for part in plain if part.bias is not None]
    whole = nn.Linear(plain[0].in_features, sum(map(len, weights)), bias=bool(biases), device="meta")
    whole.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if biases:
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


class _Side(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Not one of bitsandbytes' layers, which are subclasses."""
    return type(module) is nn.Linear


def _rounds(module: nn.Module) -> TypeGuard[nn.Linear]:
    return _plain(module) and module.in_features % GROUP == 0 and module.out_features % COLUMNS == 0


def _levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels 0..15 `[out, in]`, and for each group its step and the value of level 8, `[out, groups]`, as the layer stores them."""
    grouped = weight.float().view(len(weight), -1, GROUP)
    low, high = grouped.aminmax(dim=-1)
    scale = ((high - low) / LEVELS).clamp(min=1e-8).to(weight.dtype).float()
    middle = (low + 8 * scale).to(weight.dtype).float()
    levels = ((grouped - middle[..., None]) / scale[..., None] + 8).round().clamp(0, LEVELS)
    return levels.to(torch.int32).view_as(weight), scale, middle
