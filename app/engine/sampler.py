"""From logits to tokens, every row by its own parameters in one vectorised pass.

Sampling is Gumbel-max over the filtered logits (Maddison et al., 2014, arXiv 1411.0030): argmax(logits / temperature + noise), the
noise a hash of (seed, position, token). So a row's token depends on nothing but the row. Knows nothing of slots or requests.
"""

from collections.abc import Sequence

import torch

from app.engine.request import Sampling

HEAD = 1024  # likeliest tokens looked at first for a nucleus; a flatter row is sorted in full
MASK64 = (1 << 64) - 1


def sample(logits: torch.Tensor, rows: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token a row. `logits` `[rows, vocab]`; `positions` is where in its sequence each row's new token will stand."""
    drawn = [index for index, row in enumerate(rows) if not row.greedy]
    if not drawn:
        return logits.argmax(-1).tolist()
    picked = logits.argmax(-1)
    every = len(drawn) == len(rows)
    scores = _filtered((logits if every else logits[drawn]).float(), [rows[index] for index in drawn])
    keys = [_key(rows[index].seed, positions[index]) for index in drawn]
    picked[drawn] = (scores + gumbel(keys, logits.shape[-1], logits.device)).argmax(-1)
    return picked.tolist()


def _filtered(scores: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    """Temperature, then top_k, top_p, min_p, each on what the one before left (transformers' order). `[rows, vocab]`."""
    scores = scores / _column(scores, [row.temperature for row in rows])
    if any(row.top_k or row.top_p < 1.0 for row in rows):
        scores = scores.masked_fill(scores < _nucleus_floor(scores, rows), -torch.inf)
    if any(row.min_p > 0.0 for row in rows):
        floor = scores.amax(-1, keepdim=True) + _column(scores, [row.min_p for row in rows]).log()
        scores = scores.masked_fill(scores < floor, -torch.inf)
    return scores


def _nucleus_floor(scores: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    """Smallest score each row keeps under its top_k and top_p. `[rows, 1]`."""
    vocab = scores.shape[-1]
    floors = torch.full((len(rows), 1), -torch.inf, device=scores.device)
    asking = [index for index, row in enumerate(rows) if row.top_k or row.top_p < 1.0]
    head = max(min(HEAD, vocab), *(min(rows[index].top_k, vocab) for index in asking))
    while asking:
        best = scores[asking].topk(head, dim=-1).values  # [asking, head], falling
        counts = torch.tensor([min(rows[i].top_k, vocab) or vocab for i in asking], device=scores.device)[:, None]
        inside = torch.arange(head, device=scores.device) < counts
        kept = torch.where(inside, best, -torch.inf)
        whole = torch.where(counts <= head, kept.logsumexp(-1, keepdim=True), scores[asking].logsumexp(-1, keepdim=True))
        mass = (kept - whole).exp().cumsum(-1)
        top_p = _column(scores, [rows[i].top_p for i in asking])
        size = ((mass < top_p) & inside).sum(-1, keepdim=True) + 1  # tokens that reach top_p
        size = torch.where(top_p < 1.0, size.minimum(counts), counts)
        found = best.gather(-1, size.clamp(max=head) - 1)
        finished = (size <= head).squeeze(-1).tolist()  # all of them when the head is the whole vocabulary
        for place, index in enumerate(asking):
            if finished[place]:
                floors[index] = found[place]
        asking = [index for place, index in enumerate(asking) if not finished[place]]
        head = vocab
    return floors


def gumbel(keys: Sequence[int], vocab: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise `[keys, vocab]`, a pure function of (key, token): the same on every device and in every batch."""
    low = torch.tensor([_signed(key & 0xFFFFFFFF) for key in keys], dtype=torch.int32, device=device)[:, None]
    high = torch.tensor([_signed(key >> 32) for key in keys], dtype=torch.int32, device=device)[:, None]
    tokens = torch.arange(vocab, dtype=torch.int32, device=device) * _signed(0x9E3779B1)
    bits = _mix(_mix(tokens ^ low) ^ high)  # [keys, vocab]
    uniform = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-31  # fine near 0, where the large noise comes from
    return -torch.log(-torch.log1p(-uniform.clamp(max=1.0 - 2.0**-24)))


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """The finalizer of MurmurHash3 on 32-bit words, in wrapping arithmetic."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _signed(0x85EBCA6B)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _signed(0xC2B2AE35)
    return bits ^ ((bits >> 16) & 0xFFFF)


def _key(seed: int, position: int) -> int:
    """SplitMix64 of (seed, position)."""
    word = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK64
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
