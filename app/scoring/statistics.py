"""The one primitive of scoring: from hidden states to statistics of each token.

The vocabulary projection runs in chunks, so no `[length, vocab]` tensor of a whole text is ever held. Knows no text and no method:
methods are arithmetic on the columns (`app.scoring.score`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.linalg import vecdot

from app.engine.events import Columns
from app.engine.kernel import kernel_for
from app.engine.sampler import first_of

CHUNK_ROWS = 256  # most rows projected to logits at once; enough to keep the processor busy
CPU_SUM_ROWS = 4  # most rows of logits summed at once on a CPU: what fits its cache at a vocabulary of 50,000
TOP_ROWS = 32  # most rows of logits copied to float32 at once, to find their likeliest tokens
Top = tuple[tuple[int, float], ...]  # tokens with their log-probabilities, likeliest first
Head = Callable[[torch.Tensor], torch.Tensor]  # language-model head: hidden states [rows, width] to logits [rows, vocab]


@torch.inference_mode()
def token_statistics(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, observer: tuple[torch.Tensor, Head] | None = None, top: int = 0
) -> Columns:
    """Statistics of the tokens `targets` `[rows]`, each predicted from its row of `hidden` `[rows, width]`.

    `observer` holds the observer's hidden states of the same rows and its head. It adds, in nats, the cross-entropy
    - sum_v p_observer(v) log p(v) (Binoculars, arXiv 2401.12070, eq. 3) and the observer's log-probability of each target. Both heads must
    share one vocabulary, except for padding at its end. `top` adds that many of the likeliest tokens of each row.
    """
    parts: list[Sequence[torch.Tensor]] = []
    likeliest: list[Top] = []
    for rows in _slices(len(targets), CHUNK_ROWS):
        logits = head(hidden[rows])
        observer_logits = observer[1](observer[0][rows]).to(logits.device) if observer else None
        if top:
            likeliest += likeliest_tokens(logits, top)
        if (compiled := kernel_for(logits)) is not None:
            found = compiled.token_statistics(logits, targets[rows], observer_logits).T[: 4 if observer_logits is None else 6]
            parts.append([found[0], found[1].long(), *found[2:]])
            continue
        for part in _slices(len(logits), CPU_SUM_ROWS if logits.device.type == "cpu" else CHUNK_ROWS):
            parts.append(_statistics(logits[part], targets[rows][part], None if observer_logits is None else observer_logits[part]))
    columns = Columns(*(tuple(torch.cat(column).tolist()) for column in zip(*parts, strict=True)))
    return replace(columns, top=tuple(likeliest))


def likeliest_tokens(logits: torch.Tensor, top: int) -> Iterator[Top]:
    """The `top` likeliest tokens of each row of `logits` `[rows, vocab]`, which stays as it is: the copies have a few rows."""
    for rows in _slices(len(logits), TOP_ROWS):
        part = logits[rows].float()
        best = part.topk(min(top + 1, part.shape[-1]))
        totals = part.logsumexp(-1).tolist()
        for row, total, tokens, values in zip(part, totals, best.indices.tolist(), best.values.tolist(), strict=True):
            found = first_of(list(zip(tokens, values, strict=True)), top, row)
            yield tuple((token, min(0.0, value - total)) for token, value in found)


def _slices(count: int, max_rows: int) -> Iterator[slice]:
    """The fewest slices of at most `max_rows` that cover `count` rows, of about equal length."""
    length = -(-count // -(-count // max_rows)) if count else 1
    return (slice(first, first + length) for first in range(0, count, length))


def _statistics(logits: torch.Tensor, targets: torch.Tensor, observer_logits: torch.Tensor | None) -> list[torch.Tensor]:
    """The fields of `Columns` in their order, each `[rows]`, from logits `[rows, vocab]`.

    With z = logit - max and Z = sum exp z, log p is z - log Z, and the mean of x under p is sum(x exp z) / Z: few passes over the
    vocabulary, most of them in place.
    """
    vocab = logits.shape[-1] if observer_logits is None else min(logits.shape[-1], observer_logits.shape[-1])  # padding may differ
    z = _shift_to_max(logits[:, :vocab])
    index = targets[:, None]  # [rows, 1]
    target_z = z.gather(-1, index)
    rank = (z > target_z).count_nonzero(-1) + 1
    weight = z.exp()
    total = weight.sum(-1)
    log_total = total.log()
    mean = vecdot(weight, z) / total
    observed = [] if observer_logits is None else _observer_statistics(_shift_to_max(observer_logits[:, :vocab]), z, log_total, index)
    deviation = z.sub_(mean[:, None])
    variance = vecdot(weight.mul_(deviation), deviation) / total
    return [target_z[:, 0] - log_total, rank, mean - log_total, variance, *observed]


def _observer_statistics(
    z: torch.Tensor, performer_z: torch.Tensor, performer_log_total: torch.Tensor, index: torch.Tensor
) -> list[torch.Tensor]:
    """Cross-entropy and the observer's log-probability of the targets, each `[rows]`. Overwrites the observer's `z` `[rows, vocab]`."""
    target_z = z.gather(-1, index)[:, 0]
    weight = z.exp_()
    total = weight.sum(-1)
    return [performer_log_total - vecdot(weight, performer_z) / total, target_z - total.log()]


def _shift_to_max(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, shifted so that the largest of each row is 0."""
    return logits.float() - logits.amax(-1, keepdim=True)
