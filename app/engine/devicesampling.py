"""Draws one token for each row of logits with torch, in a fixed sequence of operations that never waits for the device.

A row inverts its cumulative distribution at one uniform number. So its token does not depend on the other rows.
"""

import math

import torch
from torch.nn import functional as F

NUCLEUS_TOKENS = 1024  # of a recorded step: likeliest tokens among which top_k and the nucleus of top_p are looked for
BLOCK = 128  # tokens summed before one of them is searched for: about the square root of a vocabulary's size
UNIFORM, TEMPERATURE, TOP_K, TOP_P, LOG_MIN_P, IS_GREEDY = range(6)  # columns of the numbers that say how a row is drawn
COLUMNS = 6

RowNumbers = tuple[float, float, float, float, float, float]
GREEDY: RowNumbers = (0.0, 1.0, 0.0, 1.0, -math.inf, 1.0)


def random_row(uniform: float, temperature: float, top_k: int, top_p: float, min_p: float) -> RowNumbers:
    """The numbers of a row. `top_k` 0 and `min_p` 0 remove no token."""
    return uniform, temperature, top_k, top_p, math.log(min_p) if min_p > 0.0 else -math.inf, 0.0


def draw(logits: torch.Tensor, numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of `logits` `[rows, vocab]` by its `numbers` `[rows, COLUMNS]` in float64: `[rows]`, and whether it is right:
    not where top_k or the nucleus of top_p has more than `count` tokens. 0 where no row has a filter.

    Each filter acts on what the one before left, in transformers' order: top_k, top_p, min_p.
    """
    probabilities, is_right = filtered_probabilities(logits.float() / _column(numbers, TEMPERATURE), numbers, count)
    is_greedy = numbers[:, IS_GREEDY] > 0
    tokens = torch.where(is_greedy, logits.max(-1).indices, _invert_distribution(probabilities, numbers[:, UNIFORM, None]))
    return tokens, is_greedy | is_right


def filtered_probabilities(scores: torch.Tensor, numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[rows, vocab]` of tempered `scores`, set to 0 for the tokens that filters remove, but not normalised afterwards, and
    whether they are right, as in `draw`.
    """
    probabilities = scores.softmax(-1)
    if not count:  # no row has a filter
        return probabilities, torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    min_scores, is_right = _min_scores(scores, probabilities, numbers, min(count, scores.shape[-1]))
    probabilities *= torch.ge(scores, min_scores, out=torch.empty_like(scores))  # a float32 mask takes a third of the time of a bool mask
    return probabilities, is_right


def _min_scores(scores: torch.Tensor, probabilities: torch.Tensor, numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest score that each row's filters keep, `[rows, 1]`, and whether `count` tokens were enough to know it, `[rows]`."""
    vocab = scores.shape[-1]
    top_k, top_p = numbers[:, TOP_K, None].long(), numbers[:, TOP_P, None]
    top_k = torch.where(top_k < vocab, top_k, 0)
    best = scores.topk(count)  # [rows, count], largest first
    mass = probabilities.gather(-1, best.indices).double().cumsum(-1)
    top_k_mass = torch.where(top_k > 0, mass.gather(-1, top_k.clamp(1, count) - 1), 1.0)
    nucleus = (mass < top_p * top_k_mass).sum(-1, keepdim=True) + 1  # tokens that together reach top_p of what top_k keeps
    is_filtered = (top_k > 0) | (top_p < 1.0)
    min_scores = torch.where(is_filtered, best.values.gather(-1, nucleus.clamp(max=count) - 1), -torch.inf)
    is_right = ~is_filtered | ((top_k <= count) & (nucleus <= count)) if count < vocab else torch.ones_like(is_filtered)
    return min_scores.maximum(best.values[:, :1] + _column(numbers, LOG_MIN_P)), is_right[:, 0]


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


def _column(numbers: torch.Tensor, column: int) -> torch.Tensor:
    return numbers[:, column, None].float()
