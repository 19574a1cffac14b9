"""The one primitive of scoring: from hidden states to per-token statistics, the vocabulary projection done in chunks.

No `[length, vocab]` tensor of a whole text is ever held. Knows no text and no method: methods are arithmetic on the columns.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.linalg import vecdot

from app.engine.kernel import kernel
from app.engine.request import Columns

CHUNK = 256  # rows projected at a time, at most: enough to keep a processor's arithmetic busy
SLICE = 4  # of them, summed up at a time: what the cache of a core holds of 50,000 words
Head = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def columns(hidden: torch.Tensor, targets: torch.Tensor, head: Head, observer: tuple[torch.Tensor, Head] | None = None) -> Columns:
    """Statistics of `targets` `[rows]` under the model whose `hidden` `[rows, width]` came just before each.

    `observer` is its own hidden states of the same rows, and its head: adds, in nats, the cross-entropy - sum_v p_observer(v) log p(v)
    (Binoculars, arXiv 2401.12070, eq. 3) and its own log-probability of each target. Both heads must give logits over one vocabulary.
    """
    parts: list[Sequence[torch.Tensor]] = []
    for rows in _slices(len(targets), CHUNK):
        logits, seen = head(hidden[rows]), observer[1](observer[0][rows]) if observer else None
        if logits.device.type == "cpu" and logits.dtype == torch.bfloat16 and (found := kernel()) is not None:
            parts.append(list(found.sums(logits, targets[rows], seen).T[: 4 if seen is None else 6]))
            continue
        for few in _slices(len(logits), SLICE if logits.device.type == "cpu" else CHUNK):
            parts.append(_sums(logits[few], targets[rows][few], None if seen is None else seen[few]))
    return Columns(*(tuple(torch.cat(column).tolist()) for column in zip(*parts, strict=True)))


def _slices(count: int, most: int) -> Iterator[slice]:
    """As many as it takes, about equally long."""
    each = -(-count // -(-count // most)) if count else 1
    return (slice(first, first + each) for first in range(0, count, each))


def _sums(logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None) -> list[torch.Tensor]:
    """`Columns` in their order, each `[rows]`, of `logits` and the observer's `seen` `[rows, vocab]`.

    With z = logit - max and Z = sum exp z, log p is z - log Z, and a mean under p is one under exp z, divided by Z: few passes over the
    vocabulary, most of them in place.
    """
    width = logits.shape[-1] if seen is None else min(logits.shape[-1], seen.shape[-1])  # vocabularies may be padded differently
    z = _shifted(logits[:, :width])
    at = targets[:, None]
    chosen = z.gather(-1, at)  # [rows, 1]
    rank = (z > chosen).count_nonzero(-1) + 1
    weight = z.exp()
    total = weight.sum(-1)
    log_total = total.log()
    mean = vecdot(weight, z) / total
    paired = [] if seen is None else _observed(_shifted(seen[:, :width]), z, log_total, at)
    spread = z.sub_(mean[:, None])
    variance = vecdot(weight.mul_(spread), spread) / total
    return [chosen[:, 0] - log_total, rank, mean - log_total, variance, *paired]


def _observed(z: torch.Tensor, performer: torch.Tensor, log_total: torch.Tensor, at: torch.Tensor) -> list[torch.Tensor]:
    """Cross-entropy and log-probability, both z `[rows, vocab]` shifted; the observer's is overwritten."""
    chosen = z.gather(-1, at)[:, 0]
    weight = z.exp_()
    total = weight.sum(-1)
    return [log_total - vecdot(weight, performer) / total, chosen - total.log()]


def _shifted(logits: torch.Tensor) -> torch.Tensor:
    """In float32, the largest of each row 0."""
    return logits.float() - logits.amax(-1, keepdim=True)
