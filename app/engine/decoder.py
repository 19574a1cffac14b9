"""All layers of a decoder shaped like Llama's or LFM2's in one call of the compiled kernel, where every part of them can run on it.

The decoder is bit for bit what `FusedDecoder` computes part by part. Knows no model: `fused.py` hands it the layers.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.engine.convolution import Convolution
from app.engine.kernel import Kernel
from app.engine.keyvalues import KeyValues
from app.engine.layout import Layout
from app.engine.linear import TiledLinear
from app.engine.mixture import CompiledMixture, Parts, linear_args
from app.engine.rows import MAX_HEAD_DIM
from app.engine.scores import Scores
from app.engine.structures import (
    ACTIVATIONS,
    CacheArgs,
    ConvolutionArgs,
    DecoderArgs,
    LayerArgs,
    LinearArgs,
    SpanArgs,
    address,
    cache_args,
    scores_args,
)

CosSin = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of a step's positions `[rows, dim]`, the first half of the latter negated
NOT_ROTATED = -1
MAX_TAPS = 16  # of a convolution
NOT_CACHED = -1  # where the pages begin of a span whose keys and values are not cached


@dataclass(frozen=True, slots=True)
class CompiledLayer:
    """The parts of one layer. `norms` are the weights of its RMSNorms, in the order of `LayerArgs`; any may be None. In place of attention
    it may have a convolution; then `qkv` makes its gate, change and x.
    """

    norms: tuple[torch.Tensor | None, ...]
    qkv: tuple[TiledLinear, ...]  # queries, keys and values: one layer, or as many as have weights of their own kind
    out: TiledLinear
    feed: Parts | CompiledMixture
    scores: Scores
    rotation: int | None = 0  # which of a step's; None: it does not rotate
    activation: str = "none"  # of the gate of a plain layer
    convolution: Convolution | None = None


@dataclass(frozen=True, slots=True)
class DecoderShape:
    heads: int
    kv_heads: int
    dim: int  # of a head
    eps: float  # of every norm
    shift: float = 0  # of the weights of every norm
    residual_scale: float = 1  # of what is added to the states


class CompiledDecoder:
    """Call `bind_cache` before the first step."""

    def __init__(self, kernel: Kernel, shape: DecoderShape, layers: Sequence[CompiledLayer], norm: torch.Tensor) -> None:
        self._kernel, self._shape, self._layers, self._norm = kernel, shape, layers, norm
        self._mixtures = [layer.feed for layer in layers if isinstance(layer.feed, CompiledMixture)]
        self._args: DecoderArgs | None = None
        self._referenced: list[object] = []  # by pointers inside of `_args`

    @staticmethod
    def is_supported(kernel: Kernel, shape: DecoderShape, layers: Sequence[CompiledLayer], hidden: int) -> bool:
        """Whether the kernel can rotate and attend heads of this dim, and no layer's inputs would have to be padded."""
        plain = [layer.feed for layer in layers if isinstance(layer.feed, tuple)]
        fit = [hidden, hidden, _intermediate(layers)]
        is_plain = shape.residual_scale == 1 and not any(isinstance(norm, torch.Tensor) for layer in layers for norm in layer.norms[2:4])
        convolved = [layer for layer in layers if layer.convolution is not None]
        return (
            (is_plain or (hidden % kernel.columns == 0 and len(plain) == len(layers)))
            and shape.dim % kernel.columns == 0
            and shape.dim <= MAX_HEAD_DIM
            and all([part.packed.inputs for part in feed] == fit for feed in plain)
            and all(layer.out.packed.inputs == (shape.heads * shape.dim if layer.convolution is None else hidden) for layer in layers)
            and not (convolved and hidden % kernel.columns)
            and all(layer.convolution.taps <= MAX_TAPS for layer in convolved if layer.convolution is not None)
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
        sizes = (len(self._layers), hidden, shape.heads, shape.kv_heads, shape.dim, _intermediate(self._layers))
        self._args = DecoderArgs(layers, *sizes, shape.eps, shape.shift, shape.residual_scale, self._norm.data_ptr())
        self._referenced += [layers, slots, texts]

    def __call__(self, x: torch.Tensor, rotations: Sequence[CosSin], query_scale: torch.Tensor | None, layout: Layout) -> torch.Tensor:
        """Compute hidden states `[rows, hidden]` of embeddings `x` `[rows, hidden]`, which are changed.

        There are at most two `rotations`; `query_scale` `[rows]` multiplies rotated queries. All bfloat16 and contiguous. Raises
        `MemoryError`.
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
        for index, (cos, sin) in enumerate(rotations):
            args.cos[index], args.sin[index] = cos.data_ptr(), sin.data_ptr()
        args.query_scale = None if query_scale is None else query_scale.data_ptr()
        args.x, args.out = x.data_ptr(), out.data_ptr()
        for mixture in self._mixtures:
            mixture.follow_routes(len(x))
        self._kernel.run_decoder(args)
        return out

    def _layer_args(self, layer: CompiledLayer, caches: Sequence[CacheArgs]) -> LayerArgs:
        feed, kept = layer.feed, self._referenced
        sinks = layer.scores.float_sinks
        kept.append(sinks)
        plain = (layer.out, *(feed if isinstance(feed, tuple) else ()))
        args = LayerArgs(
            *(None if norm is None else norm.data_ptr() for norm in layer.norms),
            (LinearArgs * 3)(*(linear_args(part, kept) for part in layer.qkv)),
            None if layer.convolution is None else _convolution_args(layer.convolution, kept),
            *(linear_args(part, kept) for part in plain),
        )
        if isinstance(feed, CompiledMixture):
            args.mixture = ctypes.pointer(feed.args)
        args.slots, args.texts = caches
        args.scores = scores_args(layer.scores, self._shape.dim, sinks)
        args.norms_together = layer.norms[4] is not None and len(layer.norms[4]) > self._shape.dim
        args.rotation, args.activation = NOT_ROTATED if layer.rotation is None else layer.rotation, ACTIVATIONS[layer.activation]
        return args


def _convolution_args(convolution: Convolution, kept: list[object]) -> Any:
    """A pointer to what the kernel reads of it; `kept` is what has to outlive the call."""
    weights, bias = convolution.factors, convolution.float_bias
    kept += [weights, bias]
    return ctypes.pointer(ConvolutionArgs(convolution.taps, weights.data_ptr(), address(bias)))


def _intermediate(layers: Sequence[CompiledLayer]) -> int:
    """Outputs of the gates of layers that are no mixtures; 0 if all are."""
    return next((layer.feed[0].outputs for layer in layers if isinstance(layer.feed, tuple)), 0)
