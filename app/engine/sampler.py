"""From logits to tokens: each row by its own sampling parameters, all rows in one vectorised pass.

A row's uniform number is a hash of (seed, position), so that its token does not depend on the other rows of the batch. Knows no slots and
no requests.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine import devicesampling
from app.engine.devicesampling import RowNumbers, draw
from app.engine.events import TokenLogprob
from app.engine.kernel import kernel_for
from app.engine.request import SamplingParams
from app.engine.structures import SamplingRowArgs
from app.engine.transfer import to_device

FIRST_TOKENS = 128  # likeliest tokens in which the nucleus of top_p is looked for first
GROWTH = 8  # where they are too few, this many times as many are tried next
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
    """Apply logit_bias, the three penalties, bad_words, min_tokens, allowed tokens and, unless left to the kernel, grammars to logits or
    log-probabilities `[rows, vocab]`.

    Returns float32, or the very same tensor if no row asks for any of them.
    """
    vocab = logits.shape[-1]
    biases = [{token: bias for token, bias in row.params.logit_bias if 0 <= token < vocab} for row in rows]
    repeated = [row.tokens if row.params.repetition_penalty != 1.0 else () for row in rows]
    answer_penalties = [_answer_penalties(row) for row in rows]
    banned = [_banned_tokens(row, vocab) for row in rows]
    masks = [(index, row.allowed) for index, row in enumerate(rows) if with_grammars and row.allowed is not None]
    limited = [(index, row.params.allowed_tokens) for index, row in enumerate(rows) if row.params.allowed_tokens]
    if not any(chain(biases, repeated, answer_penalties, banned, masks, limited)):
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
    for index, tokens in limited:
        kept = torch.tensor(tokens, device=scores.device)
        only = torch.full_like(scores[index], -torch.inf)
        only[kept] = scores[index, kept]
        scores[index] = only
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
    random = [index for index, row in enumerate(rows) if not row.params.greedy]
    tokens: list[int] = [0] * len(rows)
    if len(random) < len(rows):
        tokens = scores.max(-1).indices.tolist()  # four times as fast as argmax on bfloat16
    if random:
        for index, token in zip(random, _draw(_select_rows(scores, random), [rows[index] for index in random]), strict=True):
            tokens[index] = token
    return tokens


def drawing_numbers(rows: Sequence[SamplerRow]) -> NDArray[np.float64]:
    """What `draw` is told of the rows, `[rows, COLUMNS]`."""
    return np.array([row_numbers(row.params, len(row.tokens)) for row in rows])


def row_numbers(params: SamplingParams, position: int) -> RowNumbers:
    """The same of one row, whose token will stand at `position`."""
    if params.greedy:
        return devicesampling.GREEDY
    uniform = _uniform(params.seed, position)
    return devicesampling.random_row(uniform, params.temperature, params.top_k or 0, params.top_p, params.min_p)


def changes_logits(params: SamplingParams, answer_tokens: int) -> bool:
    """Whether the token that follows so many of the answer is not drawn from the model's logits as they are, a grammar aside."""
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    return bool(params.logit_bias or params.bad_words or params.allowed_tokens or penalties) or answer_tokens < params.min_tokens


def _draw(scores: torch.Tensor, rows: Sequence[SamplerRow]) -> list[int]:
    """Tokens for `scores` `[rows, vocab]`: again, among more tokens, for rows of which too few were looked at. None is where no row has a
    filter.
    """
    params = [row.params for row in rows]
    is_filtered = any(each.top_k or each.top_p < 1.0 or each.min_p > 0.0 for each in params)
    count = max(FIRST_TOKENS, *(each.top_k or 0 for each in params)) if is_filtered else 0
    numbers = to_device(torch.from_numpy(drawing_numbers(rows)), scores.device)
    tokens, pending = [0] * len(scores), list(range(len(scores)))
    while pending:
        drawn, is_right = draw(_select_rows(scores, pending), _select_rows(numbers, pending), count)
        found: list[list[int]] = torch.stack([drawn, is_right.long()], 1).tolist()
        for row, (token, _) in zip(pending, found, strict=True):
            tokens[row] = token
        pending = [row for row, (_, right) in zip(pending, found, strict=True) if not right]
        count *= GROWTH
    return tokens


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
