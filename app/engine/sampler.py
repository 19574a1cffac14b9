"""From logits to tokens: each row by its own sampling parameters, all rows in one vectorised pass.

A row inverts its cumulative distribution at one uniform number, which is a hash of (seed, position). So its token does not depend on
the other rows of the batch. Knows no slots and no requests.
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

from app.engine.events import TokenLogprob
from app.engine.kernel import kernel_for
from app.engine.request import SamplingParams
from app.engine.structures import SamplingRowArgs

NUCLEUS_TOKENS = 128  # likeliest tokens in which the nucleus of top_p is looked for first
NUCLEUS_GROWTH = 8  # where they are too few, this many times as many are tried next
BLOCK = 128  # tokens summed before one of them is searched for: about the square root of a vocabulary's size
MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """What a row's next token depends on beside its logits."""

    params: SamplingParams
    tokens: Sequence[int]  # prompt and answer so far
    prompt_tokens: int  # how many of them are the prompt
    end_tokens: frozenset[int]  # tokens that end this answer
    allowed: NDArray[np.bool_] | None = None  # [vocab] tokens that the answer's grammar allows next


def process_logits(logits: torch.Tensor, rows: Sequence[SamplerRow], with_grammars: bool = True) -> torch.Tensor:
    """Apply logit_bias, the three penalties, bad_words, min_tokens and, unless left to the kernel, grammars to logits or log-probabilities
    `[rows, vocab]`.

    Returns float32, or the very same tensor if no row asks for any of them.
    """
    vocab = logits.shape[-1]
    biases = [{token: bias for token, bias in row.params.logit_bias if 0 <= token < vocab} for row in rows]
    repeated = [row.tokens if row.params.repetition_penalty != 1.0 else () for row in rows]
    answer_penalties = [_answer_penalties(row) for row in rows]
    banned = [_banned_tokens(row, vocab) for row in rows]
    masks = [(index, row.allowed) for index, row in enumerate(rows) if with_grammars and row.allowed is not None]
    if not any(chain(biases, repeated, answer_penalties, banned, masks)):
        return logits
    scores = logits.to(torch.float32, copy=True)
    _add_to_scores(scores, biases)
    if any(repeated):
        cells = _cell_indices(repeated, scores.device)
        penalty = _column(scores, [row.params.repetition_penalty for row in rows])[cells[0], 0]
        before = scores[cells]
        scores[cells] = torch.where(before < 0, before * penalty, before / penalty)
    _add_to_scores(scores, answer_penalties)
    if any(banned):
        scores[_cell_indices(banned, scores.device)] = -torch.inf
    for index, allowed in masks:
        scores[index, : len(allowed)].masked_fill_(torch.from_numpy(~allowed[:vocab]).to(scores.device), -torch.inf)
        scores[index, len(allowed) :] = -torch.inf
    return scores


def sample(logits: torch.Tensor, rows: Sequence[SamplerRow]) -> list[int]:
    """One token for each row of `logits` `[rows, vocab]`. Its position, which decides its uniform number, is `len(row.tokens)`.

    Logits on a CPU are left to the compiled kernel. Which way a row goes may not depend on the other rows: the two
    ways add probabilities in different orders.
    """
    compiled = kernel_for(logits)
    scores = process_logits(logits, rows, with_grammars=compiled is None)
    if compiled is not None:
        return compiled.sample_tokens(scores, [_kernel_row(row, scores.shape[-1]) for row in rows])
    greedy = [index for index, row in enumerate(rows) if row.params.greedy]
    random = [index for index, row in enumerate(rows) if not row.params.greedy]
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    if greedy:
        tokens[greedy] = _select_rows(scores, greedy).max(-1).indices  # four times as fast as argmax on bfloat16
    if random:
        tokens[random] = _sample_random(_select_rows(scores, random).float(), [rows[index] for index in random])
    return tokens.tolist()


def _kernel_row(row: SamplerRow, vocab: int) -> SamplingRowArgs:
    """The mask of the grammar has to live as long as the result."""
    params = row.params
    mask = (None, 0) if row.allowed is None else (row.allowed.ctypes.data, len(row.allowed))
    if params.greedy:
        return SamplingRowArgs(0.0, 1.0, 0.0, 0.0, 0, *mask)
    uniform = _uniform(params.seed, len(row.tokens))
    return SamplingRowArgs(uniform, params.top_p, 1 / params.temperature, params.min_p, min(params.top_k or 0, vocab), *mask)


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int | None]) -> list[TokenLogprob | None]:
    """For each row, the log-probability of its token and of its `tops` likeliest tokens; None where `tops` is None. `logits`
    `[rows, vocab]` are the model's own, not processed.
    """
    logprobs: list[TokenLogprob | None] = [None] * len(tops)
    requested = {index: top for index, top in enumerate(tops) if top is not None}
    if not requested:
        return logprobs
    log_p = _select_rows(logits, list(requested)).float().log_softmax(-1)
    of_token = log_p.gather(-1, torch.tensor([[tokens[index]] for index in requested], device=logits.device))
    best = log_p.topk(min(max(requested.values()) + 1, log_p.shape[-1]))
    entries = zip(requested.items(), log_p, of_token.squeeze(-1).tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    for (index, top), row, logprob, likeliest, values in entries:
        logprobs[index] = TokenLogprob(tokens[index], logprob, first_of(list(zip(likeliest, values, strict=True)), top, row))
    return logprobs


def first_of(best: list[tuple[int, float]], top: int, log_p: torch.Tensor) -> tuple[tuple[int, float], ...]:
    """The `top` likeliest tokens of a row, those of equal log-probability by their ids. `best` are at least one more, if there are more;
    which of equals it has depends on the batch. `log_p` is `[vocab]`.
    """
    if 0 < top < len(best) and best[top - 1][1] == best[top][1]:
        value = best[top][1]
        equals: list[int] = (log_p == value).nonzero()[:, 0].tolist()
        best = [(token, logprob) for token, logprob in best if logprob > value] + [(token, value) for token in equals]
    return tuple(sorted(best, key=lambda entry: (-entry[1], entry[0]))[:top])


def _answer_penalties(row: SamplerRow) -> dict[int, float]:
    """What presence and frequency penalty add to the logit of each token of the answer: negative for a positive penalty."""
    presence, frequency = row.params.presence_penalty, row.params.frequency_penalty
    if not presence and not frequency:
        return {}
    return {token: -presence - frequency * count for token, count in Counter(row.tokens[row.prompt_tokens :]).items()}


def _banned_tokens(row: SamplerRow, vocab: int) -> set[int]:
    """Tokens that would complete a bad word, or end the answer before it has min_tokens."""
    banned = {word[-1] for word in row.params.bad_words if word and _ends_with(row.tokens, word[:-1])}
    if len(row.tokens) - row.prompt_tokens < row.params.min_tokens:
        banned |= row.end_tokens
    return {token for token in banned if 0 <= token < vocab}


def _ends_with(tokens: Sequence[int], tail: tuple[int, ...]) -> bool:
    return tuple(tokens[len(tokens) - len(tail) :]) == tail  # if the tail is longer than `tokens`, the two lengths differ


def _add_to_scores(scores: torch.Tensor, changes: Sequence[Mapping[int, float]]) -> None:
    """Add `changes`, for each row what to add to which token, in place."""
    if any(changes):
        values = torch.tensor([value for change in changes for value in change.values()], dtype=torch.float32)
        scores[_cell_indices(changes, scores.device)] += values.to(scores.device)


def _cell_indices(tokens_by_row: Sequence[Collection[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices of each row's tokens. There has to be at least one token in all."""
    rows = torch.arange(len(tokens_by_row)).repeat_interleave(torch.tensor([len(tokens) for tokens in tokens_by_row]))
    columns = torch.frombuffer(array("q", chain.from_iterable(tokens_by_row)), dtype=torch.int64)  # half the time of torch.tensor
    return rows.to(device), columns.to(device)


def _sample_random(scores: torch.Tensor, rows: Sequence[SamplerRow]) -> torch.Tensor:
    """Apply temperature and filters, then sample. `scores` `[rows, vocab]` in float32; returns tokens `[rows]`."""
    params = [row.params for row in rows]
    if any(each.temperature != 1.0 for each in params):
        scores = scores / _column(scores, [each.temperature for each in params])
    probabilities = _filtered_probabilities(scores, params)
    uniforms = [[_uniform(row.params.seed, len(row.tokens))] for row in rows]
    return _invert_distribution(probabilities, torch.tensor(uniforms, dtype=torch.float64, device=scores.device))


def _filtered_probabilities(scores: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Probabilities `[rows, vocab]`, set to 0 for the tokens that top_k, top_p and min_p remove. They are not normalised afterwards.

    Each filter acts on what the one before left, in transformers' order.
    """
    probabilities = scores.softmax(-1)
    filtered = [index for index, each in enumerate(params) if each.top_k or each.top_p < 1.0 or each.min_p > 0.0]
    if not filtered:
        return probabilities
    scores, kept, params = _select_rows(scores, filtered), _select_rows(probabilities, filtered), [params[index] for index in filtered]
    min_scores = _min_scores(scores, kept, params)
    if any(each.min_p > 0.0 for each in params):
        log_min_p = _column(scores, [math.log(each.min_p) if each.min_p > 0.0 else -math.inf for each in params])
        min_scores = min_scores.maximum(scores.amax(-1, keepdim=True) + log_min_p)
    kept *= torch.ge(scores, min_scores, out=torch.empty_like(scores))  # a float32 mask takes a third of the time of a bool mask
    if kept is not probabilities:
        probabilities[filtered] = kept
    return probabilities


def _min_scores(scores: torch.Tensor, probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Smallest score that each row's top_k and top_p keep, `[rows, 1]`. Sorts only as many tokens as the nucleus needs."""
    vocab = scores.shape[-1]
    min_scores = torch.full((len(params), 1), -torch.inf, device=scores.device)
    pending = [index for index, each in enumerate(params) if each.top_k or each.top_p < 1.0]
    count = max(NUCLEUS_TOKENS, *(each.top_k for each in params))
    while pending:
        count = min(count, vocab)
        best = _select_rows(scores, pending).topk(count)  # [pending, count], largest first
        mass = _select_rows(probabilities, pending).gather(-1, best.indices).double().cumsum(-1)
        top_k = torch.tensor([[min(params[index].top_k or vocab, vocab)] for index in pending], device=scores.device)
        top_p = torch.tensor([[params[index].top_p] for index in pending], dtype=torch.float64, device=scores.device)
        top_k_mass = torch.where(top_k <= count, mass.gather(-1, top_k.clamp(max=count) - 1), 1.0)
        nucleus_size = (mass < top_p * top_k_mass).sum(-1, keepdim=True) + 1  # tokens that together reach top_p of what top_k keeps
        min_scores[pending] = best.values.gather(-1, nucleus_size.clamp(max=count) - 1)
        if count == vocab or all(params[index].top_p >= 1.0 for index in pending):
            break
        is_larger = (nucleus_size > count).squeeze(-1).tolist()
        pending = [index for index, larger in zip(pending, is_larger, strict=True) if larger]
        count *= NUCLEUS_GROWTH
    return min_scores


def _invert_distribution(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """For each row of `weights` `[rows, vocab]` the token at which the running sum passes the fraction `uniforms` `[rows, 1]` of the
    total. Finds the block first, then the token in it. Never a token of weight 0, unless all weights are 0: then token 0.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)) if weights.shape[-1] % BLOCK else weights
    blocks = blocks.unflatten(-1, (-1, BLOCK))  # [rows, blocks, BLOCK]
    block, fraction = _locate_fraction(blocks.sum(-1).double(), uniforms)
    in_block = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    token, _ = _locate_fraction(in_block.double(), fraction)
    return (block * BLOCK + token).squeeze(-1)


def _locate_fraction(weights: torch.Tensor, fractions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the weight in which that fraction of the total lies, and at which fraction of this weight it lies. `weights` are
    `[rows, n]`, all else `[rows, 1]`.
    """
    sums = weights.cumsum(-1)
    target = fractions * sums[:, -1:]
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)  # the last index with a weight above 0
    index = (sums <= target).sum(-1, keepdim=True).minimum(last)
    weight = weights.gather(-1, index)
    return index, ((target - sums.gather(-1, index) + weight) / weight).clamp(min=0.0)


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 bits, from SplitMix64 of (seed, position)."""
    word = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((word ^ (word >> 31)) >> 11) * 2.0**-53


def _select_rows(tensor: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """These rows: a copy, or `tensor` itself if they are all of its rows."""
    return tensor if len(indices) == len(tensor) else tensor[indices]


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    """`values` as float32 `[rows, 1]` on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
