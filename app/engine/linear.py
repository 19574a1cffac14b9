"""Faster linear layers for a CPU: weights are packed once, in bfloat16, 8 or 4 bits, for the compiled kernel of `csrc`.

Where the kernel cannot be compiled, bfloat16 layers are packed for oneDNN, 4-bit layers use torch's own int4 kernel, and 8-bit layers are
dequantized. torch itself packs bfloat16 weights anew in every call; packed once, they are read at nearly the speed of memory. Knows no
architecture.
"""

import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine import grouped, packing
from app.engine.grouped import GROUP_FORMAT, GroupedEmbedding, GroupedLinear, GroupedWeights, GroupFormat
from app.engine.int4 import CPU_OUTPUT_MULTIPLE, Int4Linear
from app.engine.kernel import Epilogue, Kernel, activation_of, kernel
from app.engine.packing import PackedWeights

log = logging.getLogger(__name__)

Place = tuple[nn.Module, str, GroupedLinear | nn.Linear]  # a layer, and where it is: parent, name, layer

LARGE_LAYER = 1 << 21  # weights of a layer that all threads pack together
MAX_INPUT_ERROR = 0.03  # of a layer's outputs on the check's tokens, relative to their norm, because its inputs are rounded to 8 bits


class TiledLinear(nn.Module):
    """A layer on the compiled kernel, with activations in bfloat16. The weight cannot be read back.

    The vocabulary projection gives its outputs `in_float32`: rounded to bfloat16, logits of 16 to 32 are an eighth apart.
    """

    def __init__(self, packed: PackedWeights, outputs: int, bias: torch.Tensor | None, kernel: Kernel) -> None:
        super().__init__()
        self.in_float32 = False
        self.kernel, self.packed, self.outputs = kernel, packed, outputs
        self.packed_bytes = packed.nbytes
        self.bias = None if bias is None else packing.pad_bias(bias.detach(), kernel.columns)

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Apply the layer and then `activation`, "none", "swish" or "gelu"."""
        return self.kernel.linear(x, self.packed, Epilogue(self.outputs, self.bias, activation, in_float32=self.in_float32))

    def combine(self, x: torch.Tensor, operand: torch.Tensor, binary_op: str) -> torch.Tensor:
        """Apply the layer, then multiply by `operand` ("mul") or add it ("add")."""
        return self.kernel.linear(x, self.packed, Epilogue(self.outputs, self.bias, "none", binary_op, operand))


class PackedEmbedding(nn.Module):
    """An embedding that reads its rows out of 8-bit weights packed for the kernel, which a tied vocabulary projection shares."""

    def __init__(self, packed: PackedWeights, replaced: GroupedEmbedding, shared: bool) -> None:
        super().__init__()
        self.packed, self.num_embeddings, self.embed_scale = packed, replaced.num_embeddings, replaced.embed_scale
        self.packed_bytes = 0 if shared else packed.nbytes

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = packing.unpack_rows(self.packed, ids.flatten()).bfloat16()
        return grouped.scaled(rows.view(*ids.shape, rows.shape[-1]), self.embed_scale)


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
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "tanh" if activation == "gelu" else "")

    def combine(self, x: torch.Tensor, operand: torch.Tensor, binary_op: str) -> torch.Tensor:
        """As `TiledLinear.combine`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, operand, self.packed, self.bias, binary_op)


FusedLinear = TiledLinear | PackedLinear  # these apply an activation or a second operand before they write their outputs


def prepack_layers(model: nn.Module, known_harmed: Collection[str] | None = None) -> list[str]:
    """Replace the linear layers of a model on a CPU by faster ones. Other kinds of layers, such as bitsandbytes' int8, stay.

    A layer in groups rounds its inputs to 8 bits, or to 16: an 8-bit layer where rounding shows most, and any layer whose outputs on the
    check's tokens 8 would harm too much. Returns the names of the latter, or takes them from `known_harmed`.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    paths = {id(module): path for path, module in model.named_modules()}
    replacements: dict[int, nn.Module] = {}  # by what unpacked their weights: a tied embedding and its projection have the same
    harmed: list[str] = []
    if known_harmed is not None:
        _mark_harmed(model, known_harmed)
    for (parent, name, layer), replacement in _replaced(model, head):
        if replacement is None:
            continue
        setattr(parent, name, replacement)
        if layer is head and isinstance(replacement, TiledLinear):
            replacement.in_float32 = True
        if isinstance(layer, GroupedLinear):
            replacements[id(layer.unpack)] = replacement
            if _is_on_16_bits(replacement, _is_precise(layer, head)):
                harmed.append(paths[id(layer)])
    for parent, name, embedding in grouped.layers_of(model):
        if isinstance(embedding, GroupedEmbedding):
            setattr(parent, name, _prepacked_embedding(embedding, replacements.get(id(embedding.unpack))))
    if harmed:
        log.info("%d layers round inputs to 16 bits, as 8 would change their outputs too much: %s", len(harmed), ", ".join(harmed))
    return harmed


def widen_inputs(model: nn.Module) -> list[str]:
    """Let all layers in groups round their inputs to 16 bits; returns the names of those that rounded them to 8."""
    narrow = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, TiledLinear) and layer.packed.is_grouped and layer.packed.input_bits == 8
    }
    for layer in narrow.values():
        layer.packed = replace(layer.packed, input_bits=16)
    return list(narrow)


def _mark_harmed(model: nn.Module, harmed: Collection[str]) -> None:
    for path, layer in model.named_modules():
        if isinstance(layer, GroupedLinear):
            layer.is_harmed = path in harmed


def _replaced(model: nn.Module, head: nn.Module | None) -> Iterator[tuple[Place, nn.Module | None]]:
    """What takes the place of each layer. Of small layers every thread packs one of its own: where other processes want the cores, too,
    threads that share the operations of a small layer wait for each other most of the time. No more layers are in memory twice than there
    are threads.
    """
    found = grouped.layers_of(model)
    places: Iterator[Place] = (
        (parent, name, layer) for parent, name, layer in found if isinstance(layer, GroupedLinear) or _is_plain(layer)
    )
    threads = torch.get_num_threads()

    def replace_layer(place: Place) -> tuple[Place, nn.Module | None]:
        return place, _prepacked(place[2], _is_precise(place[2], head))

    yield from map(replace_layer, islice(places, 1))  # here, as it may compile the kernel
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while some := list(islice(places, threads)):
            is_small = all(layer.in_features * layer.out_features < LARGE_LAYER for _, _, layer in some)
            yield from pool.map(replace_layer, some) if is_small else map(replace_layer, some)
    torch.set_num_threads(threads)  # of this thread, and of what libraries count for all


def _is_precise(layer: nn.Module, head: nn.Module | None) -> bool:
    """Whether a layer in groups is the vocabulary projection, or one back from the wide part of a block: rounding their inputs changes the
    model's answers most.
    """
    return isinstance(layer, GroupedLinear) and (layer is head or layer.in_features > layer.out_features)


def _prepacked(layer: nn.Module, precise: bool) -> nn.Module | None:
    """Return the replacement of `layer`, or None if it stays. Calls `kernel()`, which compiles, only for a layer that would use it.
    `precise`: see `_is_precise`.
    """
    if isinstance(layer, GroupedLinear):
        return _prepacked_groups(layer, precise)
    return prepack_plain(layer) if _is_plain(layer) else None


def prepack_plain(layer: nn.Linear) -> nn.Module | None:
    """The replacement of a layer that is not quantized, or None if it stays."""
    if layer.weight.dtype != torch.bfloat16:
        return None
    compiled = kernel()
    if compiled is not None:
        return TiledLinear(packing.pack_bfloat16(layer.weight.detach(), compiled.columns), layer.out_features, layer.bias, compiled)
    return PackedLinear(layer) if can_pack_on_onednn() else None


def can_pack_on_onednn() -> bool:
    """Whether oneDNN has products of bfloat16 for this processor: on x86 those with AVX-512, or AVX-NE-CONVERT."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _prepacked_groups(layer: GroupedLinear, precise: bool) -> nn.Module:
    weights, dtype = layer.unpack(), layer.dtype
    compiled = kernel() if dtype == torch.bfloat16 else None
    if compiled is not None:
        packed = packing.pack_grouped(weights, compiled.columns)
        if not precise and weights.format != GroupFormat(8, 16):
            packed = replace(packed, input_bits=8)
        tiled = TiledLinear(packed, layer.out_features, layer.bias, compiled)
        if packed.input_bits == 8 and _is_harmed(layer, tiled, weights):
            return TiledLinear(replace(packed, input_bits=16), layer.out_features, layer.bias, compiled)
        return tiled
    # torch's int4 kernel takes float32 too, but a hundred times longer than the dequantized layer
    fits = weights.format == GROUP_FORMAT and layer.out_features % CPU_OUTPUT_MULTIPLE == 0
    if fits and dtype != torch.float32:
        return Int4Linear(weights, layer.bias, dtype)
    plain = layer.plain()
    return prepack_plain(plain) or plain


def _is_harmed(layer: GroupedLinear, tiled: TiledLinear, weights: GroupedWeights) -> bool:
    """Whether inputs of 8 bits, as `tiled` has them, change the outputs on the check's tokens too much."""
    if layer.is_harmed is not None or layer.check_inputs is None:
        return bool(layer.is_harmed)
    return not _error(tiled(layer.check_inputs), layer.multiply(layer.check_inputs, weights)) <= MAX_INPUT_ERROR


def _is_on_16_bits(replacement: nn.Module, precise: bool) -> bool:
    """Whether inputs of a layer in groups are rounded to 16 bits because 8 would harm its outputs."""
    return isinstance(replacement, TiledLinear) and replacement.packed.input_bits > 8 and not (precise and replacement.packed.bits == 8)


def _prepacked_embedding(layer: GroupedEmbedding, projection: nn.Module | None) -> nn.Module:
    """It shares the weights of a tied vocabulary `projection`, as that was replaced, where it can read them."""
    if isinstance(projection, TiledLinear) and projection.packed.bits == 8:
        return PackedEmbedding(projection.packed, layer, shared=True)
    compiled = kernel() if layer.dtype == torch.bfloat16 else None
    weights = layer.unpack()
    if compiled is None or weights.bits != 8:
        return layer.plain(projection if projection is not None and _is_plain(projection) else None)
    return PackedEmbedding(packing.pack_grouped(weights, compiled.columns), layer, shared=False)


def _error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm().clamp(min=1e-30))


def gated_product(gate: nn.Module, up: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return act(gate(x)) * up(x), fused where the layers allow it."""
    if isinstance(gate, FusedLinear) and isinstance(up, FusedLinear) and (name := activation_of(act)) != "none":
        return up.combine(x, gate(x, name), "mul")
    return act(gate(x)).mul_(up(x))


def add_residual(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return layer(x) + residual, fused where the layer allows it. `residual` may hold the result."""
    if isinstance(layer, FusedLinear):
        return layer.combine(x, residual, "add")
    if _is_plain(layer) and layer.bias is None and x.device.type != "cpu":
        return residual.addmm_(x, layer.weight.t())  # a kernel less
    return layer(x).add_(residual)


def concatenate_layers(parts: list[nn.Module]) -> nn.Module:
    """Return one layer whose outputs are those of `parts`, concatenated. Weights are merged if all parts are of one kind."""
    in_groups = [part for part in parts if isinstance(part, GroupedLinear)]
    if len(in_groups) == len(parts) and grouped.can_concatenate(in_groups):
        return grouped.concatenate(in_groups)
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


def parts_of(layer: nn.Module) -> list[nn.Module]:
    """The layers that `concatenate_layers` could not merge; else the layer itself."""
    return list(layer.parts) if isinstance(layer, _ConcatenatedLayers) else [layer]


class _ConcatenatedLayers(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """False for bitsandbytes' layers, which are subclasses of `nn.Linear`."""
    return type(module) is nn.Linear
