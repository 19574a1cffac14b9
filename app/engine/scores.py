"""How the scores of attention come about, and attention by torch where they are changed before their softmax: capped softly (Gemma 2), or
with a sink beside them (GPT-OSS). No kernel of torch's knows these. Computed in float32, some rows at a time. Knows no cache and no layout.
"""

from dataclasses import dataclass
from typing import Literal

import torch

SCORES = 4_000_000  # that are computed at once
KEY_VALUES = 64_000_000  # of keys that are widened to float32 at once

Change = Literal["cap", "sinks"]


@dataclass(frozen=True, slots=True)
class Scores:
    """A `cap` makes `cap * tanh(score / cap)` of a score (arXiv 2408.00118, section 2). `sinks` `[heads]` take part in the softmax, and
    stand for no value (arXiv 2508.10925, section 2).
    """

    scale: float | None = None  # of query times key; None: 1 / sqrt(dim)
    window: int | None = None  # tokens that a row sees, itself included; None: all
    cap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def float_sinks(self) -> torch.Tensor | None:
        """As the compiled kernel reads them."""
        return None if self.sinks is None else self.sinks.float().contiguous()

    @property
    def changes(self) -> frozenset[Change]:
        """What the scores have that not every kernel knows."""
        changes: dict[Change, bool] = {"cap": self.cap is not None, "sinks": self.sinks is not None}
        return frozenset(name for name, is_there in changes.items() if is_there)


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, scores: Scores) -> torch.Tensor:
    """Attend `query` `[rows, heads, dim]`, whose positions begin with `first`, to the keys and values `[kv_heads, tokens, dim]` of
    positions 0, 1 ... Returns `[rows, heads, value dim]` in the dtype of the query.
    """
    rows, heads, _ = query.shape
    seen = keys.shape[1] if scores.window is None else min(keys.shape[1], scores.window)
    size = max(1, SCORES // (heads * seen))
    if scores.window is None:
        keys, values = keys.float(), values.float()  # once for all parts
    parts = [_attend(query[at : at + size], keys, values, first + at, scores) for at in range(0, rows, size)]
    return torch.cat(parts)


def attend_sequences(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """Attend each row of `query` `[rows, heads, dim]` to a sequence of its own, `keys` and `values` `[rows, kv_heads, tokens, dim]`, where
    the `mask` `[rows, 1, 1, tokens]` adds nothing. Returns `[rows, heads, value dim]` in the dtype of the query.
    """
    size = max(1, KEY_VALUES // max(1, keys[0].numel()))
    masks = [None] * len(query) if mask is None else mask.split(size)
    parts = zip(query.split(size), keys.split(size), values.split(size), masks, strict=False)
    return torch.cat([_softmax_and_mix(q[:, :, None], k, v, part, scores)[:, :, 0] for q, k, v, part in parts])


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, scores: Scores) -> torch.Tensor:
    rows, window = len(query), scores.window
    begin = 0 if window is None else max(0, first - window + 1)
    seen = slice(begin, first + rows)
    positions = torch.arange(first, first + rows, device=query.device)[:, None]
    others = torch.arange(seen.start, seen.stop, device=query.device)
    hidden = others > positions if window is None else (others > positions) | (others <= positions - window)
    mask = torch.zeros(hidden.shape, device=query.device).masked_fill_(hidden, -torch.inf)
    return _softmax_and_mix(query.transpose(0, 1)[None], keys[None, :, seen], values[None, :, seen], mask, scores)[0].transpose(0, 1)


def _softmax_and_mix(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """`query` `[n, heads, rows, dim]`, `keys` and `values` `[n, kv_heads, tokens, dim]`, a `mask` that broadcasts to
    `[n, heads, rows, tokens]`. Returns `[n, heads, rows, value dim]`.
    """
    count, heads, rows, dim = query.shape
    kv_heads, tokens = keys.shape[1:3]
    grouped = query.float().reshape(count, kv_heads, -1, dim)  # [n, kv_heads, group * rows, dim]
    weights = grouped @ keys.float().transpose(2, 3) * (dim**-0.5 if scores.scale is None else scores.scale)
    if scores.cap is not None:
        weights = scores.cap * torch.tanh(weights / scores.cap)
    weights = weights.view(count, heads, rows, tokens)
    if mask is not None:
        weights = weights + mask
    if scores.sinks is not None:
        weights = torch.cat([weights, scores.sinks.float().view(-1, 1, 1).expand(count, -1, rows, 1)], -1)
    weights = weights.softmax(-1)[..., :tokens].reshape(count, kv_heads, -1, tokens)
    return (weights @ values.float()).view(count, heads, rows, -1).to(query.dtype)
