"""All layers of a Llama-shaped decoder in one call of the compiled kernel, where every part of them can run on it.

Bit for bit what `FusedDecoder` computes part by part. Knows no model: `fused.py` hands it the layers.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.engine.kernel import Kernel, cache_args, groups_args, scores_args, weights_args
from app.engine.keyvalues import KeyValues
from app.engine.layout import Layout
from app.engine.linear import TiledLinear
from app.engine.rows import MAX_HEAD_DIM
from app.engine.scores import Scores
from app.engine.structures import CacheArgs, DecoderArgs, LayerArgs, LinearArgs, SpanArgs

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
            (LinearArgs * 3)(*map(self._linear_args, layer.qkv)),
            *map(self._linear_args, parts),
            *caches,
            scores_args(layer.scores, self._shape.dim),
        )

    def _linear_args(self, layer: TiledLinear) -> LinearArgs:
        packed = layer.packed
        weights = None if packed.is_grouped else ctypes.pointer(weights_args(packed))
        groups = ctypes.pointer(groups_args(packed)) if packed.is_grouped else None
        self._referenced += [weights, groups]
        return LinearArgs(weights, groups, None if layer.bias is None else layer.bias.data_ptr(), packed.inputs, layer.outputs)
