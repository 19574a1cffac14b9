"""Attention whose scores are changed before their softmax: capped softly (Gemma 2), or with a sink beside them (GPT-OSS).

Computed plainly in float32, some rows at a time: no kernel of ours or of torch's for a CPU knows these. Knows no cache and no layout.
"""

from dataclasses import dataclass

import torch

SCORES = 4_000_000  # that are computed at once


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer's scores come about: `cap * tanh(score / cap)` with a `cap` (arXiv 2408.00118, section 2). `sinks` `[heads]` take part
    in the softmax, and stand for no value.
    """

    scale: float | None  # None: 1 / sqrt(dim)
    window: int | None  # tokens of the sliding window
    cap: float | None
    sinks: torch.Tensor | None


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
    return torch.cat(parts).to(query.dtype)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, scores: Scores) -> torch.Tensor:
    rows, heads, dim = query.shape
    begin = 0 if scores.window is None else max(0, first - scores.window + 1)
    seen = slice(begin, first + rows)
    queries = query.float().view(rows, len(keys), -1, dim).permute(1, 2, 0, 3).flatten(1, 2)  # [kv_heads, group * rows, dim]
    weights = queries @ keys[:, seen].float().transpose(1, 2) * (dim**-0.5 if scores.scale is None else scores.scale)
    if scores.cap is not None:
        weights = scores.cap * torch.tanh(weights / scores.cap)
    weights = weights.view(len(keys), -1, rows, weights.shape[-1])
    positions = torch.arange(first, first + rows, device=query.device)[:, None]
    others = torch.arange(seen.start, seen.stop, device=query.device)
    hidden = others > positions if scores.window is None else (others > positions) | (others <= positions - scores.window)
    weights = weights.masked_fill(hidden, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(len(keys), -1, 1, 1).expand(-1, -1, rows, 1)
        weights = torch.cat([weights, sinks], -1)
    weights = weights.softmax(-1)[..., : len(others)].flatten(1, 2)
    attended = weights @ values[:, seen].float()  # [kv_heads, group * rows, value dim]
    return attended.view(len(keys), -1, rows, attended.shape[-1]).permute(2, 0, 1, 3).flatten(1, 2)
