"""Attention over a KV cache in pages: keys and values of a flat row of tokens are cached, and each query sees its own sequence.

Each model has its own instance, registered with transformers' AttentionInterface under its own name. It knows no requests: before
each forward, a `Layout` says which rows of the step belong to which sequence, and which pages hold it.
"""

import itertools
import weakref
from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from app.engine import varlen
from app.engine.convolution import Convolution, Taps, convolve, places_of, taps_of
from app.engine.deltanet import DeltaInputs, DeltaShape, recur
from app.engine.kernel import kernel
from app.engine.keyvalues import KeyValues, Shape
from app.engine.layout import Call, DecodeGroup, Layout, Span
from app.engine.rows import DecodeRows, PrefillRows, dense
from app.engine.scores import Change, Scores, attend, attend_sequences
from app.errors import UnsupportedModel

# From this many rows on, torch's attention on a CPU is a third faster in float32 than in bfloat16, casts included.
MIN_FLOAT32_ROWS = 64

OUTSIDE = "a layer was called outside a step of the engine"

_instance_numbers = itertools.count()


class SlotAttention:
    """Raises `UnsupportedModel` in the forward when the model needs a kind of attention that is not implemented here."""

    def __init__(self) -> None:
        self.name = f"litmus-slots-{next(_instance_numbers)}"
        self.layout: Layout | None = None
        self.calls: tuple[Call, ...] | None = None  # of a recorded step, which has no layout
        self.slots = KeyValues()  # of requests
        self.texts = KeyValues()  # of a text that is scored in several steps; never in 8 bits, so that its score is that of one step
        self.shapes: dict[int, Shape] = {}  # by layer; from the last forward
        self.windows: dict[int, int | None] = {}  # layer -> tokens that it sees, None: all, 0: by a state; from the last forward
        self.changes: frozenset[Change] = frozenset()  # of scores, in any layer; from the forwards so far
        self._taps: tuple[Layout, int, Taps] | None = None  # of the last step with convolutions, for so many tokens
        AttentionInterface.register(self.name, weakref.proxy(self))  # what is registered is never forgotten: neither would be the cache
        AttentionMaskInterface.register(self.name, _no_mask)

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
        layer, dim = int(module.layer_idx), value.shape[3]  # type: ignore[arg-type]
        if dim < key.shape[3]:  # in latent attention (arXiv 2405.04434); kernels take keys and values of one size
            value = F.pad(value, (0, key.shape[3] - dim))
        self.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        self.windows[layer] = sliding_window
        scores = Scores(scaling, sliding_window, softcap, s_aux)
        self.changes |= scores.changes
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        return self.attend(layer, rows[0], rows[1], rows[2], scores)[None, ..., :dim], None

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> torch.Tensor:
        """Cache `key` and `value` `[rows, kv_heads, dim]` and attend `query` `[rows, heads, dim]`; returns `[rows, heads, value dim]`.

        Raises `UnsupportedModel` outside a forward of `FlatModel`.
        """
        layout = None if self.layout is None else self.layout.on(query.device)
        if layout is None or self.is_flash:
            return self._attend_by_flash(layer, (query, key, value), self.running_calls(query.device), scores)
        if query.device.type == "cpu":  # as the kernel reads them: a row is computed there or by torch, whatever stands beside it
            query, key, value = dense(query), dense(key), dense(value)
        count = layout.decodes
        decoded = self._decode_compiled(layer, layout, (query[:count], key[:count], value[:count]), scores) if count else None
        if count and decoded is None:
            self._write_cache(layer, layout, key[:count], value[:count])
        if decoded is None and count == len(query) and len(layout.groups) == 1:
            decoded = self._decode_by_torch(layer, query, layout.groups[0], scores)
        if decoded is not None and count == len(query):
            return decoded
        out = torch.empty(len(query), query.shape[1], value.shape[2], dtype=query.dtype, device=query.device)
        if decoded is not None:
            out[:count] = decoded
        for group in layout.groups if decoded is None else ():
            out[group.rows] = self._decode_by_torch(layer, query[group.rows], group, scores)
        for index, span in enumerate(layout.spans):
            rows = slice(span.row_start, span.row_end)
            pages = None if span.pages is None else layout.span_pages(index)
            out[rows] = self._attend_span(layer, (query[rows], key[rows], value[rows]), span, pages, scores)
        return out

    def convolve(self, layer: int, rows: torch.Tensor, convolution: Convolution) -> torch.Tensor:
        """Of `rows` `[rows, 3 * channels]`, a gate, a change and x each: change * convolution(gate * x), of which gate * x is cached.

        Raises `UnsupportedModel` outside a forward of `FlatModel`.
        """
        gate, change, x = rows.chunk(3, -1)
        inputs, count = gate * x, convolution.taps
        self.shapes[layer], self.windows[layer] = (1, inputs.shape[1], 0), count
        if self.layout is None:
            raise UnsupportedModel(OUTSIDE)
        layout = self.layout.on(rows.device)
        if self._taps is None or self._taps[0] is not layout or self._taps[1] != count:
            self._taps = layout, count, taps_of(layout, count)
        return change * convolve(inputs, convolution, self._taps[2], [places_of(cache, layer) for cache in (self.slots, self.texts)])

    def recur(self, layer: int, inputs: DeltaInputs, shape: DeltaShape, weight: torch.Tensor) -> torch.Tensor:
        """The gated delta rule behind a convolution, see `deltanet.recur`. Raises `UnsupportedModel` outside a forward of `FlatModel`."""
        self.shapes[layer], self.windows[layer] = (0, shape.token_floats, 0), 0
        if self.layout is None:
            raise UnsupportedModel(OUTSIDE)
        caches = tuple(cache.states_of(layer) for cache in (self.slots, self.texts))
        return recur(inputs, shape, weight, self.layout.on(inputs.mixed.device), caches)

    @property
    def is_flash(self) -> bool:
        """Whether its cache is laid out for torch's flash kernel."""
        return bool(self.slots.by_tokens)

    def running_calls(self, device: torch.device) -> tuple[Call, ...]:
        """Of the running step, if its cache is laid out for torch's flash kernel. Raises `UnsupportedModel` outside of one."""
        calls = self.calls if self.layout is None else self.layout.on(device).calls
        if calls is None:
            raise UnsupportedModel(OUTSIDE)
        return calls

    def cache_of(self, call: Call) -> KeyValues:
        return self.texts if call.keys == "texts" else self.slots

    def _attend_by_flash(
        self,
        layer: int,
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        calls: tuple[Call, ...],
        scores: Scores,
    ) -> torch.Tensor:
        parts = []
        for call in calls:
            query, key, value = (part[call.rows] for part in rows)
            cache = self.cache_of(call)
            if call.places is not None:
                cache.write_places(layer, call.places, key, value)
            parts.append(varlen.attend(query, cache.by_tokens[layer], (key, value), call.reads, scores))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode_compiled(
        self, layer: int, layout: Layout, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scores: Scores
    ) -> torch.Tensor | None:
        """Attend `rows` (query, key, value) by the compiled kernel, which also writes the cache; None if it cannot."""
        if (compiled := kernel() if rows[0].device.type == "cpu" else None) is None:
            return None
        caches = self.slots.keys[layer], self.slots.values[layer]
        batch = DecodeRows(*rows, *caches, layout.pages, layout.firsts, layout.positions, scores)
        return compiled.attend_decode(batch) if batch.is_supported(compiled.columns) else None

    def _write_cache(self, layer: int, layout: Layout, key: torch.Tensor, value: torch.Tensor) -> None:
        pages, places = layout.written
        if layout.decodes == 1:
            key, value = key[0], value[0]
        self.slots.keys[layer][pages, :, places] = key
        self.slots.values[layer][pages, :, places] = value

    def _decode_by_torch(self, layer: int, query: torch.Tensor, group: DecodeGroup, scores: Scores) -> torch.Tensor:
        """Attend each row of `query` `[rows, heads, dim]` to its own sequence, up to its position."""
        rows, heads, dim = query.shape
        k, v = (cached[:, :, : group.key_count] for cached in self.slots.gather(layer, group.pages))
        mask = group.mask(scores.window, query.dtype)
        if scores.changes:
            return attend_sequences(query, k, v, mask, scores)
        grouped = query.reshape(rows, k.shape[1], heads // k.shape[1], dim)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scores.scale).reshape(rows, heads, -1)

    def _attend_span(
        self,
        layer: int,
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        span: Span,
        pages: torch.Tensor | None,
        scores: Scores,
    ) -> torch.Tensor:
        """Causal attention of consecutive positions of one sequence, `rows` being query, key and value `[rows, heads, dim]`."""
        query, key, value = rows
        cache = self.texts if span.is_text else self.slots
        if (compiled := kernel() if query.device.type == "cpu" else None) is not None:
            batch = PrefillRows(query, key, value, span.start, scores)
            if pages is not None:
                batch = replace(batch, cache=(cache.keys[layer], cache.values[layer]), pages=pages)
            if batch.is_supported(compiled.columns):
                return compiled.attend_prefill(batch)
        if pages is not None:
            cache.write_span(layer, span, key, value)
        k, v = key.transpose(0, 1), value.transpose(0, 1)  # [kv_heads, rows, dim]
        if span.start:  # the keys and values before these rows are in the cache only
            assert pages is not None
            k, v = (cached[0, :, : span.end] for cached in cache.gather(layer, pages[None]))
        if scores.changes:
            return attend(query, k, v, span.start, scores)
        q, dtype = query.transpose(0, 1), query.dtype
        if len(query) >= MIN_FLOAT32_ROWS and query.device.type == "cpu":
            q, k, v = q.float(), k.float(), v.float()
        mask = span.mask(scores.window, q.dtype, q.device)
        attended = F.scaled_dot_product_attention(
            q[None], k[None], v[None], mask, is_causal=mask is None, scale=scores.scale, enable_gqa=len(k) != len(q)
        )
        return attended[0].transpose(0, 1).to(dtype)


def _no_mask(*_: object, **__: object) -> None:
    """Keep transformers from building a mask for a padded batch: the layout has the masks."""
