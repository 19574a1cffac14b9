"""The one primitive of scoring: from hidden states to per-token statistics, the vocabulary projection done in chunks.

No `[length, vocab]` tensor of a whole text is ever held. Knows no text and no method: methods are arithmetic on the columns.
"""

from collections.abc import Callable

import torch

from app.engine.request import Columns, joined

CHUNK = 64  # rows projected at a time: what a cache holds is summed up faster than what it does not
Head = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def columns(hidden: torch.Tensor, targets: torch.Tensor, head: Head, observer: tuple[torch.Tensor, Head] | None = None) -> Columns:
    """Statistics of `targets` `[rows]` under the model whose `hidden` `[rows, width]` came just before each.

    `observer` is its own hidden states of the same rows, and its head: adds, in nats, the cross-entropy - sum_v p_observer(v) log p(v)
    (Binoculars, arXiv 2401.12070, eq. 3) and its own log-probability of each target. Both heads must give logits over one vocabulary.
    """
    parts = []
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        seen = observer[1](observer[0][rows]) if observer else None
        parts.append(_chunk(head(hidden[rows]), targets[rows], seen))
    return joined(parts)


def _chunk(logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None) -> Columns:
    """`logits` and the observer's `seen` `[rows, vocab]`, `targets` `[rows]`."""
    width = logits.shape[-1] if seen is None else min(logits.shape[-1], seen.shape[-1])  # vocabularies may be padded differently
    log_p = logits[:, :width].float().log_softmax(-1)
    p = log_p.exp()
    chosen = log_p.gather(-1, targets[:, None])  # [rows, 1]
    mean = (p * log_p).sum(-1)  # p log p is 0 where p underflows: log_p stays finite
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    rank = (log_p > chosen).sum(-1) + 1
    log_q = None if seen is None else seen[:, :width].float().log_softmax(-1)
    return Columns(
        logprob=tuple(chosen[:, 0].tolist()),
        rank=tuple(rank.tolist()),
        mean=tuple(mean.tolist()),
        variance=tuple(variance.tolist()),
        cross_entropy=() if log_q is None else tuple((-(log_q.exp() * log_p).sum(-1)).tolist()),
        observed=() if log_q is None else tuple(log_q.gather(-1, targets[:, None])[:, 0].tolist()),
    )
