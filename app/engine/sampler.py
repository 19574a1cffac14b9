"""From logits to tokens, every row by its own parameters in one vectorised pass.

A row is drawn by inverting its distribution function at one uniform number, a hash of (seed, position). So its token depends on
nothing but the row. Knows nothing of slots or requests.
"""

import math
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from app.engine.request import Sampling, TokenLogprob

HEAD = 128  # likeliest tokens looked at first for a nucleus; each further look takes GROWTH times as many
GROWTH = 8
BLOCK = 128  # tokens summed up before one of them is searched for; about the square root of a vocabulary
MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """What a row's next token depends on beside its logits."""

    sampling: Sampling
    tokens: Sequence[int]  # prompt and answer so far
    prompt: int  # how many of them are the prompt
    ends: frozenset[int]  # tokens that end this answer
    allowed: NDArray[np.bool_] | None = None  # [vocab] the tokens that its grammar lets come next


def process(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Logits or log-probabilities `[rows, vocab]` after logit_bias, the three penalties, bad_words, min_tokens and grammars, in
    float32. The very same tensor if no row asks for any of them.
    """
    vocab = logits.shape[-1]
    biases = [{token: bias for token, bias in draw.sampling.logit_bias if 0 <= token < vocab} for draw in draws]
    repeated = [draw.tokens if draw.sampling.repetition_penalty != 1.0 else () for draw in draws]
    charges = [_charges(draw) for draw in draws]
    banned = [_banned(draw, vocab) for draw in draws]
    confined = [(row, draw.allowed) for row, draw in enumerate(draws) if draw.allowed is not None]
    if not any(chain(biases, repeated, charges, banned, confined)):
        return logits
    scores = logits.to(torch.float32, copy=True)
    _add(scores, biases)
    if any(repeated):
        rows, tokens = _cells(repeated, scores.device)
        penalty = _column(scores, [draw.sampling.repetition_penalty for draw in draws])[rows, 0]
        found = scores[rows, tokens]
        scores[rows, tokens] = torch.where(found < 0, found * penalty, found / penalty)
    _add(scores, charges)
    if any(banned):
        scores[_cells(banned, scores.device)] = -torch.inf
    for row, allowed in confined:
        scores[row, : len(allowed)].masked_fill_(torch.from_numpy(~allowed[:vocab]).to(scores.device), -torch.inf)
        scores[row, len(allowed) :] = -torch.inf
    return scores


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token a row, which will stand at `len(draw.tokens)`. `logits` `[rows, vocab]`."""
    scores = process(logits, draws)
    greedy = [index for index, draw in enumerate(draws) if draw.sampling.greedy]
    drawn = [index for index, draw in enumerate(draws) if not draw.sampling.greedy]
    picked = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    if greedy:
        picked[greedy] = _take(scores, greedy).max(-1).indices  # four times as fast as argmax on bfloat16
    if drawn:
        picked[drawn] = _drawn(_take(scores, drawn).float(), [draws[index] for index in drawn])
    return picked.tolist()


def logprobs(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int | None]) -> list[TokenLogprob | None]:
    """Of each row's token and its `tops` likeliest ones, None where `tops` is. `logits` `[rows, vocab]` as the model gave them."""
    found: list[TokenLogprob | None] = [None] * len(tops)
    asking = {index: top for index, top in enumerate(tops) if top is not None}
    if not asking:
        return found
    logs = _take(logits, list(asking)).float().log_softmax(-1)
    own = logs.gather(-1, torch.tensor([[tokens[index]] for index in asking], device=logs.device))
    best = logs.topk(min(max(asking.values()), logs.shape[-1]))
    listed = zip(asking.items(), own.squeeze(-1).tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    for (index, top), logprob, likeliest, values in listed:
        found[index] = TokenLogprob(tokens[index], logprob, tuple(zip(likeliest[:top], values[:top], strict=True)))
    return found


def _charges(draw: Draw) -> dict[int, float]:
    """What presence and frequency penalties take from the logits of the answer's tokens, as what is added to them."""
    presence, frequency = draw.sampling.presence_penalty, draw.sampling.frequency_penalty
    if not presence and not frequency:
        return {}
    return {token: -presence - frequency * count for token, count in Counter(draw.tokens[draw.prompt :]).items()}


def _banned(draw: Draw, vocab: int) -> set[int]:
    banned = {word[-1] for word in draw.sampling.bad_words if word and _ends_with(draw.tokens, word[:-1])}
    if len(draw.tokens) - draw.prompt < draw.sampling.min_tokens:
        banned |= draw.ends
    return {token for token in banned if 0 <= token < vocab}


def _ends_with(tokens: Sequence[int], tail: tuple[int, ...]) -> bool:
    return tuple(tokens[len(tokens) - len(tail) :]) == tail  # where the tail is the longer one, the lengths differ


def _add(scores: torch.Tensor, changes: Sequence[Mapping[int, float]]) -> None:
    if any(changes):
        values = torch.tensor([value for change in changes for value in change.values()], dtype=torch.float32)
        scores[_cells(changes, scores.device)] += values.to(scores.device)


def _cells(chosen: Sequence[Collection[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the logits of the tokens chosen in each row, at least one in all: rows and tokens."""
    rows = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(tokens) for tokens in chosen]))
    tokens = torch.frombuffer(array("q", chain.from_iterable(chosen)), dtype=torch.int64)  # torch.tensor takes twice the time
    return rows.to(device), tokens.to(device)


def _drawn(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Temperature, filters, draw. `scores` `[rows, vocab]` in float32, tokens `[rows]`."""
    rows = [draw.sampling for draw in draws]
    if any(row.temperature != 1.0 for row in rows):
        scores = scores / _column(scores, [row.temperature for row in rows])
    probabilities = _filtered(scores, rows)
    uniforms = [[_uniform(draw.sampling.seed, len(draw.tokens))] for draw in draws]
    return _invert(probabilities, torch.tensor(uniforms, dtype=torch.float64, device=scores.device))


def _filtered(scores: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities `[rows, vocab]`, 0 where top_k, top_p or min_p, each on what the one before left (transformers' order), drop
    a token; what is left does not sum to 1.
    """
    probabilities = scores.softmax(-1)
    asking = [index for index, row in enumerate(rows) if row.top_k or row.top_p < 1.0 or row.min_p > 0.0]
    if not asking:
        return probabilities
    scores, kept, rows = _take(scores, asking), _take(probabilities, asking), [rows[index] for index in asking]
    floor = _nucleus_floor(scores, kept, rows)
    if any(row.min_p > 0.0 for row in rows):
        ratios = _column(scores, [math.log(row.min_p) if row.min_p > 0.0 else -math.inf for row in rows])
        floor = floor.maximum(scores.amax(-1, keepdim=True) + ratios)
    kept *= torch.ge(scores, floor, out=torch.empty_like(scores))  # in float32: a third of the time of a mask of bools
    if kept is not probabilities:
        probabilities[asking] = kept
    return probabilities


def _nucleus_floor(scores: torch.Tensor, probabilities: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    """Smallest score each row keeps under its top_k and top_p. `[rows, 1]`."""
    vocab = scores.shape[-1]
    floors = torch.full((len(rows), 1), -torch.inf, device=scores.device)
    asking = [index for index, row in enumerate(rows) if row.top_k or row.top_p < 1.0]
    head = max(HEAD, *(row.top_k for row in rows))
    while asking:
        head = min(head, vocab)
        best = _take(scores, asking).topk(head)  # [asking, head], falling
        mass = _take(probabilities, asking).gather(-1, best.indices).double().cumsum(-1)
        counts = torch.tensor([[min(rows[index].top_k or vocab, vocab)] for index in asking], device=scores.device)
        top_p = torch.tensor([[rows[index].top_p] for index in asking], dtype=torch.float64, device=scores.device)
        whole = torch.where(counts <= head, mass.gather(-1, counts.clamp(max=head) - 1), 1.0)
        size = (mass < top_p * whole).sum(-1, keepdim=True) + 1  # tokens that reach top_p of it
        floors[asking] = best.values.gather(-1, size.clamp(max=head) - 1)
        if head == vocab or all(rows[index].top_p >= 1.0 for index in asking):
            break
        unfinished = (size > head).squeeze(-1).tolist()
        asking = [index for index, more in zip(asking, unfinished, strict=True) if more]
        head *= GROWTH
    return floors


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """For each row of `weights` `[rows, vocab]` the token at which their running sum passes that part of the whole, of
    `uniforms` `[rows, 1]`: first the block, then the token in it. Never a token of weight 0, unless all are; then it is 0.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)) if weights.shape[-1] % BLOCK else weights
    blocks = blocks.unflatten(-1, (-1, BLOCK))  # [rows, blocks, BLOCK]
    block, rest = _search(blocks.sum(-1).double(), uniforms)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    token, _ = _search(inside.double(), rest)
    return (block * BLOCK + token).squeeze(-1)


def _search(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the weight at that part of their sum, and the part of that weight at which it lies. `[rows, n]`, all else `[rows, 1]`."""
    sums = weights.cumsum(-1)
    target = uniforms * sums[:, -1:]
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    index = (sums <= target).sum(-1, keepdim=True).minimum(last)
    weight = weights.gather(-1, index)
    return index, ((target - sums.gather(-1, index) + weight) / weight).clamp(min=0.0)


def _uniform(seed: int, position: int) -> float:
    """In [0, 1), of 53 bits of SplitMix64 of (seed, position)."""
    word = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((word ^ (word >> 31)) >> 11) * 2.0**-53


def _take(rows: torch.Tensor, index: list[int]) -> torch.Tensor:
    """Those rows, in a copy unless they are all."""
    return rows if len(index) == len(rows) else rows[index]


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
