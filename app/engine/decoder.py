"""All layers of a Llama-shaped decoder in one call of the compiled kernel, where every part of them can run on it; and all experts of a
layer.

The decoder is bit for bit what `FusedDecoder` computes part by part. Knows no model: `fused.py` hands it the layers.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.engine.kernel import Kernel, cache_args, groups_args, scores_args, weights_args
from app.engine.keyvalues import KeyValues
from app.engine.layout import Layout
from app.engine.linear import TiledLinear
from app.engine.rows import MAX_HEAD_DIM
from app.engine.scores import Scores
from app.engine.structures import CacheArgs, DecoderArgs, ExpertsArgs, LayerArgs, LinearArgs, SpanArgs

NOT_CACHED = -1  # where the pages begin of a span whose keys and values are not cached


@dataclass(frozen=True, slots=True)
class CompiledLayer:
    """The parts of one layer. The norms are the weights of RMSNorms; query_norm and key_norm are per head, or None."""

    input_norm: torch.Tensor
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    qkv: tuple[TiledLinear, ...]  # queries, keys and values: one layer, or as many as have weights of their own kind
    out: TiledLinear
    gate: TiledLinear
    up: TiledLinear
    down: TiledLinear
    scores: Scores  # without sinks


@dataclass(frozen=True, slots=True)
class DecoderShape:
    heads: int
    kv_heads: int
    dim: int  # of a head
    eps: float  # of every norm


class CompiledDecoder:
    """Call `bind_cache` before the first step."""

    def __init__(self, kernel: Kernel, shape: DecoderShape, layers: Sequence[CompiledLayer], norm: torch.Tensor) -> None:
        self._kernel, self._shape, self._layers, self._norm = kernel, shape, layers, norm
        self._args: DecoderArgs | None = None
        self._referenced: list[object] = []  # by pointers inside of `_args`

    @staticmethod
    def is_supported(kernel: Kernel, shape: DecoderShape, layers: Sequence[CompiledLayer], hidden: int) -> bool:
        """Whether the kernel can rotate and attend heads of this dim, and no layer's inputs would have to be padded."""
        inputs = {"out": shape.heads * shape.dim, "gate": hidden, "up": hidden, "down": layers[0].gate.outputs}
        return (
            shape.dim % kernel.columns == 0
            and shape.dim <= MAX_HEAD_DIM
            and all(getattr(layer, part).packed.inputs == count for layer in layers for part, count in inputs.items())
            and all(part.packed.inputs == hidden for layer in layers for part in layer.qkv)
        )

    @property
    def is_bound(self) -> bool:
        return self._args is not None

    def bind_cache(self, slots: KeyValues, texts: KeyValues) -> None:
        """Raises `ValueError` if blocks of keys lie on two pages."""
        if slots.page_tokens % self._kernel.columns:
            raise ValueError(f"pages of {slots.page_tokens} tokens are no multiple of {self._kernel.columns}")
        caches = [tuple(cache_args(each.keys[index], each.values[index]) for each in (slots, texts)) for index in range(len(self._layers))]
        layers = (LayerArgs * len(self._layers))(*map(self._layer_args, self._layers, caches))
        shape, hidden = self._shape, len(self._norm)
        sizes = (len(self._layers), hidden, shape.heads, shape.kv_heads, shape.dim, self._layers[0].gate.outputs)
        self._args = DecoderArgs(layers, *sizes, shape.eps, self._norm.data_ptr())
        self._referenced += [layers, slots, texts]

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Compute hidden states `[rows, hidden]` of embeddings `x` `[rows, hidden]`, which are changed.

        `cos` and `sin` `[rows, dim]`, the first half of `sin` negated. All bfloat16 and contiguous. Raises `MemoryError`.
        """
        assert self._args is not None
        args, out = self._args, torch.empty_like(x)
        spans = [
            SpanArgs(span.row_start, span.row_end - span.row_start, span.start, NOT_CACHED if first is None else first, span.is_text)
            for span, first in zip(layout.spans, layout.span_firsts, strict=True)
        ]
        args.rows, args.decodes, args.spans = len(x), layout.decodes, len(spans)
        args.pages = layout.pages.data_ptr()
        args.firsts, args.positions = layout.firsts.data_ptr(), layout.positions.data_ptr()
        args.span = (SpanArgs * len(spans))(*spans)
        args.cos, args.sin, args.x, args.out = cos.data_ptr(), sin.data_ptr(), x.data_ptr(), out.data_ptr()
        self._kernel.run_decoder(args)
        return out

    def _layer_args(self, layer: CompiledLayer, caches: Sequence[CacheArgs]) -> LayerArgs:
        norms = (layer.input_norm, layer.mlp_norm, layer.query_norm, layer.key_norm)
        parts = (layer.out, layer.gate, layer.up, layer.down)
        return LayerArgs(
            *(None if norm is None else norm.data_ptr() for norm in norms),
            (LinearArgs * 3)(*(linear_args(part, self._referenced) for part in layer.qkv)),
            *(linear_args(part, self._referenced) for part in parts),
            *caches,
            scores_args(layer.scores, self._shape.dim),
        )


class CompiledExperts:
    """The experts of a layer in one call: `parts` are gate, up and down of each, with swish between them."""

    def __init__(self, parts: Sequence[Sequence[TiledLinear]]) -> None:
        self._parts, self._kernel = parts, parts[0][0].kernel
        self._referenced: list[object] = []  # by pointers inside of `_args`
        columns = zip(*parts, strict=True)
        layers = [(LinearArgs * len(parts))(*(linear_args(part, self._referenced) for part in column)) for column in columns]
        self._hidden, self._width = parts[0][2].outputs, parts[0][0].outputs
        self._args = ExpertsArgs(*layers, len(parts), self._hidden, self._width)

    def __call__(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Compute rows `x` `[rows, hidden]` in bfloat16, of which each expert has the next `counts` `[experts or more]`. What is left of
        the rows gives 0. Raises `MemoryError`.
        """
        x, args = x.contiguous(), self._args
        out, gated = torch.zeros(len(x), self._hidden, dtype=torch.bfloat16), torch.empty(len(x), self._width, dtype=torch.bfloat16)
        args.counts, args.x, args.gated, args.out = counts.data_ptr(), x.data_ptr(), gated.data_ptr(), out.data_ptr()
        self._kernel.run_experts(args)
        return out


def create_compiled_experts(layers: Sequence[tuple[nn.Module, nn.Module, nn.Module]]) -> CompiledExperts | None:
    """Of the `layers` gate, up and down of each expert; None unless all are the kernel's, and no inputs would have to be padded."""
    parts = [[layer for layer in expert if isinstance(layer, TiledLinear)] for expert in layers]
    if not parts or any(len(part) < 3 for part in parts):
        return None
    hidden, width = parts[0][2].outputs, parts[0][0].outputs
    fit = ((hidden, width), (hidden, width), (width, hidden))
    is_whole = all([(layer.packed.inputs, layer.outputs) for layer in part] == list(fit) for part in parts)
    return CompiledExperts(parts) if is_whole else None


def linear_args(layer: TiledLinear, referenced: list[object]) -> LinearArgs:
    """The layer for the compiled kernel. What is pointed at is added to `referenced`, to be kept as long."""
    packed = layer.packed
    weights = None if packed.is_grouped else ctypes.pointer(weights_args(packed))
    groups = ctypes.pointer(groups_args(packed)) if packed.is_grouped else None
    referenced += [weights, groups]
    return LinearArgs(weights, groups, None if layer.bias is None else layer.bias.data_ptr(), packed.inputs, layer.outputs)
