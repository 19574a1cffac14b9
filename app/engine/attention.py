"""Attention that knows slots: keys and values of a flat row of tokens go to the cache, each query sees its own sequence.

One instance a model, registered with transformers' AttentionInterface under a name of its own. Knows nothing of requests: it is
told by a `Layout`, before each forward, which rows of the step belong to which slot.
"""

import itertools
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from app.errors import UnsupportedModel

ROUND = 64  # cached keys are read up to a multiple of this
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `[first, last)` of the step are positions `[start, end)` of one sequence; `slot` is None for a text that is only read."""

    first: int
    last: int
    start: int
    slot: int | None

    @property
    def end(self) -> int:
        return self.start + self.last - self.first


@dataclass(frozen=True, slots=True)
class Layout:
    """The step's rows in order: one row a decoding slot, then spans with a slot, then spans without."""

    decode_slots: torch.Tensor  # [decodes]
    decode_positions: torch.Tensor  # [decodes]
    spans: tuple[Span, ...]
    cached_slots: torch.Tensor  # [cached] slot of every row that is written to the cache: the first rows of the step
    cached_positions: torch.Tensor  # [cached]
    longest: int  # keys that the longest decode row sees, rounded up
    adjacent: bool  # the decode slots are 0, 1, 2, ...: their cache rows need no gathering


class SlotAttention:
    """Raises `UnsupportedModel` in the forward when the model asks for a form of attention that is not computed here."""

    def __init__(self) -> None:
        self.name = f"litmus-slots-{next(_numbers)}"
        self.layout: Layout | None = None
        self.keys: dict[int, torch.Tensor] = {}  # layer -> [slots, kv_heads, context, head_dim]
        self.values: dict[int, torch.Tensor] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}  # layer -> kv_heads, key dim, value dim: as seen in the last forward
        AttentionInterface.register(self.name, self)
        AttentionMaskInterface.register(self.name, _no_mask)

    @property
    def slots(self) -> int:
        return next(iter(self.keys.values())).shape[0] if self.keys else 0

    def allocate(self, slots: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the cache for the layers seen so far. `torch.zeros` on a CPU takes no memory before it is written."""
        for layer, (heads, key_dim, value_dim) in self.shapes.items():
            self.keys[layer] = torch.zeros(slots, heads, context, key_dim, dtype=dtype, device=device)
            self.values[layer] = torch.zeros(slots, heads, context, value_dim, dtype=dtype, device=device)

    def __call__(  # noqa: PLR0913  (the signature is transformers')
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, heads, rows, dim]
        key: torch.Tensor,  # [1, kv_heads, rows, dim]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        layout, layer = self.layout, int(module.layer_idx)  # type: ignore[arg-type]
        if layout is None:
            raise UnsupportedModel("attention was called outside a step of the engine")
        if softcap is not None or s_aux is not None:
            raise UnsupportedModel(f"{type(module).__name__} cannot be served: its attention has soft-capped scores or sinks")
        self.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        rows, heads = query.shape[2], query.shape[1]
        out = torch.empty(rows, heads, value.shape[3], dtype=query.dtype, device=query.device)
        cached = layout.cached_slots.numel()
        if cached:
            self.keys[layer][layout.cached_slots, :, layout.cached_positions] = key[0, :, :cached].transpose(0, 1)
            self.values[layer][layout.cached_slots, :, layout.cached_positions] = value[0, :, :cached].transpose(0, 1)
        decodes = layout.decode_slots.numel()
        if decodes:
            out[:decodes] = self._decode(layer, query[0, :, :decodes], layout, scaling, sliding_window)
        for span in layout.spans:
            here = slice(span.first, span.last)
            if span.slot is None:
                k, v = key[:, :, here], value[:, :, here]
            else:
                k = self.keys[layer][span.slot : span.slot + 1, :, : span.end]
                v = self.values[layer][span.slot : span.slot + 1, :, : span.end]
            out[here] = _attend_span(query[:, :, here], k, v, span, scaling, sliding_window)
        return out[None], None

    def _decode(self, layer: int, query: torch.Tensor, layout: Layout, scaling: float | None, window: int | None) -> torch.Tensor:
        """`query` `[heads, decodes, dim]` to `[decodes, heads, dim]`: each row over its own slot's keys up to its position."""
        heads, decodes, dim = query.shape
        keys, values = self.keys[layer][:, :, : layout.longest], self.values[layer][:, :, : layout.longest]
        k, v = (keys[:decodes], values[:decodes]) if layout.adjacent else (keys[layout.decode_slots], values[layout.decode_slots])
        grouped = query.transpose(0, 1).reshape(decodes, k.shape[1], heads // k.shape[1], dim)
        at = torch.arange(layout.longest, device=query.device)
        last = layout.decode_positions[:, None]
        seen = at <= last if window is None else (at <= last) & (at > last - window)  # [decodes, longest]
        attended = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen[:, None, None], scale=scaling)
        return attended.reshape(decodes, heads, -1)


def _attend_span(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, span: Span, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention of consecutive positions of one sequence: `[1, heads, rows, dim]` to `[rows, heads, dim]`."""
    plain = span.start == 0 and (window is None or span.end <= window)
    mask = None
    if not plain:
        at = torch.arange(span.end, device=query.device)
        own = at[span.start :, None]
        mask = at <= own if window is None else (at <= own) & (at > own - window)  # [rows, end]
    grouped = key.shape[1] != query.shape[1]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=grouped)
    return attended[0].transpose(0, 1)


def layout_of(decodes: list[tuple[int, int]], spans: list[Span], context: int, device: torch.device) -> Layout:
    """`decodes` are (slot, position) of the first rows of the step; `spans` follow, those with a slot before those without."""
    slots, positions = [slot for slot, _ in decodes], [position for _, position in decodes]
    cached_slots, cached_positions = list(slots), list(positions)
    for span in spans:
        if span.slot is not None:
            cached_slots += [span.slot] * (span.last - span.first)
            cached_positions += range(span.start, span.end)
    longest = min(context, (max(positions, default=0) // ROUND + 1) * ROUND)
    numbers = torch.tensor([*cached_slots, *cached_positions], dtype=torch.long).to(device)
    half = len(cached_slots)
    return Layout(
        decode_slots=numbers[: len(slots)],
        decode_positions=numbers[half : half + len(slots)],
        spans=tuple(spans),
        cached_slots=numbers[:half],
        cached_positions=numbers[half:],
        longest=longest,
        adjacent=slots == list(range(len(slots))),
    )


def _no_mask(*_: object, **__: object) -> None:
    """transformers would build a mask for one padded batch; the spans say more."""
