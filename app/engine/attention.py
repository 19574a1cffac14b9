"""Attention that knows slots: keys and values of a flat row of tokens go to the cache, each query sees its own sequence.

One instance a model, registered with transformers' AttentionInterface under a name of its own. Knows nothing of requests: it is
told by a `Layout`, before each forward, which rows of the step belong to which slot.
"""

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from app.engine.kernel import Kernel, Reading, Step, kernel
from app.engine.layout import Decodes, Layout, Span
from app.errors import UnsupportedModel

LONG = 64  # rows from which torch's attention on a CPU is faster in float32 than in bfloat16, the casts counted: by a third
_numbers = itertools.count()


class SlotAttention:
    """Raises `UnsupportedModel` in the forward when the model asks for a form of attention that is not computed here."""

    def __init__(self) -> None:
        self.name = f"litmus-slots-{next(_numbers)}"
        self.layout: Layout | None = None
        self.keys: dict[int, torch.Tensor] = {}  # layer -> [slots, kv_heads, context, head_dim]
        self.values: dict[int, torch.Tensor] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}  # layer -> kv_heads, key dim, value dim: as seen in the last forward
        self.windows: dict[int, int | None] = {}  # layer -> the sliding window it asked for
        AttentionInterface.register(self.name, self)
        AttentionMaskInterface.register(self.name, _no_mask)

    def allocate(self, slots: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the cache for the layers seen so far. `torch.zeros` on a CPU takes no memory before it is written."""
        for layer, (heads, key_dim, value_dim) in self.shapes.items():
            self.keys[layer] = torch.zeros(slots, heads, context, key_dim, dtype=dtype, device=device)
            self.values[layer] = torch.zeros(slots, heads, context, value_dim, dtype=dtype, device=device)

    def copy(self, sources: Sequence[int], targets: Sequence[int], start: int, end: int) -> None:
        """Positions `[start, end)` of `targets[i]` become those of `sources[i]` as they were before."""
        pairs = [(source, target) for source, target in zip(sources, targets, strict=True) if source != target]
        if not pairs or start >= end:
            return
        taken, given = [source for source, _ in pairs], [target for _, target in pairs]
        for cache in (*self.keys.values(), *self.values.values()):
            cache[given, :, start:end] = cache[taken, :, start:end]

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
        if softcap is not None or s_aux is not None:
            raise UnsupportedModel(f"{type(module).__name__} cannot be served: its attention has soft-capped scores or sinks")
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        self.windows[layer] = sliding_window
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        return self.attend(layer, rows[0], rows[1], rows[2], (scaling, sliding_window))[None], None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: tuple[float | None, int | None]
    ) -> torch.Tensor:
        """`query` `[rows, heads, dim]`, `key` and `value` `[rows, kv_heads, dim]` to `[rows, heads, dim]`. `how` is the scale of the
        scores (None: 1 / sqrt(dim)) and the sliding window in tokens (None: everything before is seen).
        """
        layout = self.layout
        if layout is None:
            raise UnsupportedModel("attention was called outside a step of the engine")
        count = layout.decodes
        done = self._compiled(layer, layout, (query[:count], key[:count], value[:count]), how) if count else None
        if count and done is None:
            self._write(layer, layout, key[:count], value[:count])
        if done is None and count == len(query) and len(layout.groups) == 1:
            done = self._decode(layer, query, layout.groups[0], how)
        if done is not None and count == len(query):
            return done
        out = torch.empty(len(query), query.shape[1], value.shape[2], dtype=query.dtype, device=query.device)
        if done is not None:
            out[:count] = done
        for group in layout.groups if done is None else ():
            out[group.rows] = self._decode(layer, query[group.rows], group, how)
        for span in layout.spans:
            here = slice(span.first, span.last)
            out[here] = self._span(layer, query[here], key[here], value[here], span, how)
        return out

    def _compiled(
        self, layer: int, layout: Layout, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], how: tuple[float | None, int | None]
    ) -> torch.Tensor | None:
        """`rows` (query, key, value) by the kernel, which writes the cache as well; None where there is none that can."""
        if (found := _kernel_for(rows[0])) is None:
            return None
        scaling, window = how
        step = Step(*rows, self.keys[layer], self.values[layer], layout.slots, layout.positions, scaling, window)
        return found.decode(step) if step.fits(found.columns) else None

    def _write(self, layer: int, layout: Layout, key: torch.Tensor, value: torch.Tensor) -> None:
        if layout.decodes == 1:  # an index is several times as dear as a view
            slot, position = layout.single
            self.keys[layer][slot, :, position] = key[0]
            self.values[layer][slot, :, position] = value[0]
        else:
            self.keys[layer][layout.slots, :, layout.positions] = key
            self.values[layer][layout.slots, :, layout.positions] = value

    def _decode(self, layer: int, query: torch.Tensor, group: Decodes, how: tuple[float | None, int | None]) -> torch.Tensor:
        """`query` `[rows, heads, dim]` to the same: each row over its own slot's keys up to its position."""
        scaling, window = how
        rows, heads, dim = query.shape
        k = self.keys[layer][group.slots, :, : group.longest]
        v = self.values[layer][group.slots, :, : group.longest]
        grouped = query.reshape(rows, k.shape[1], heads // k.shape[1], dim)
        mask = group.mask(window, query.dtype)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scaling).reshape(rows, heads, -1)

    def _span(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        span: Span,
        how: tuple[float | None, int | None],
    ) -> torch.Tensor:
        """Causal attention of consecutive positions of one sequence: `[rows, heads, dim]` to the same."""
        scaling, window = how
        k, v = key.transpose(0, 1), value.transpose(0, 1)  # [kv_heads, rows, dim]
        if span.slot is not None:
            self.keys[layer][span.slot, :, span.start : span.end] = k
            self.values[layer][span.slot, :, span.start : span.end] = v
            k, v = self.keys[layer][span.slot, :, : span.end], self.values[layer][span.slot, :, : span.end]
        if (found := _kernel_for(query)) is not None:
            reading = Reading(query, k.transpose(0, 1), v.transpose(0, 1), scaling, window)
            if reading.fits(found.columns):
                return found.read(reading)
        q, dtype = query.transpose(0, 1), query.dtype
        if len(query) >= LONG and query.device.type == "cpu":
            q, k, v = q.float(), k.float(), v.float()
        mask = span.mask(window, q.dtype, q.device)
        attended = F.scaled_dot_product_attention(
            q[None], k[None], v[None], mask, is_causal=mask is None, scale=scaling, enable_gqa=len(k) != len(q)
        )
        return attended[0].transpose(0, 1).to(dtype)


def _kernel_for(query: torch.Tensor) -> Kernel | None:
    return kernel() if query.device.type == "cpu" and query.dtype == torch.bfloat16 else None


def _no_mask(*_: object, **__: object) -> None:
    """transformers would build a mask for one padded batch; the spans say more."""
