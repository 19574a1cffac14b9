"""Beam search and contrastive search as state machines: scores in, continuations of a group of sequences ("branches") out.

Knows no models, caches, slots or schedulers. The caller runs one row for each branch. Before it runs the next row each branch goes on
from the cache of the one that `Continuation.sources` says, and it feeds `Continuation.tokens`. Prompts, penalties and texts are the
caller's concern.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from app.engine.events import Finish
from app.engine.request import BeamSearchParams, ContrastiveSearchParams


@dataclass(frozen=True, slots=True)
class Continuation:
    """For each branch, the branch whose sequence it continues, and the token it adds.

    A branch that is the source of any branch is also its own source, so that little is copied; in the first continuation, branch 0 is
    the only source.
    """

    sources: list[int]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Candidate:
    score: float  # sum of log-probabilities
    source: int  # the branch it continues
    token: int
    finished: bool = False  # no token may follow


class BeamSearch:
    """Beam search as transformers' `generate(num_beams=beams, do_sample=False)` does it, for one prompt.

    Scores are log-probabilities. Penalties, if any, were applied to them after the softmax, and they are not normalised again.
    A sequence ends with one of `end_tokens`, or where `is_complete`, called with all its tokens so far, returns True.
    """

    def __init__(
        self,
        params: BeamSearchParams,
        max_tokens: int,
        end_tokens: frozenset[int],
        is_complete: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self._params = params
        self._max_tokens = max_tokens
        self._end_tokens = end_tokens
        self._is_complete = is_complete
        self._tokens: list[list[int]] = [[]]  # of each branch; there is only one before the first continuation
        self._scores = [0.0]  # of each branch: the sum over its tokens
        self._finished: list[tuple[float, list[int]]] = []  # penalised score and tokens, best first

    def start(self, scores: torch.Tensor) -> Continuation | None:
        """The first continuation, from the scores `[vocab]` after the prompt."""
        return self.advance(scores[None])

    def advance(self, scores: torch.Tensor) -> Continuation | None:
        """The next continuation, from the scores `[beams, vocab]` after every branch's token; None when the search is over."""
        candidates = self._candidates(scores)
        length = len(self._tokens[0]) + 1
        is_last = length == self._max_tokens
        self._finish([each for each in candidates[: self._params.beams] if is_last or each.finished], length)
        running = [each for each in candidates if not each.finished][: self._params.beams]
        if is_last or not running or self._cannot_improve(running[0].score, length):
            return None
        running = _order_by_source(self._padded(running, candidates))
        self._tokens = [[*self._tokens[each.source], each.token] for each in running]
        self._scores = [each.score for each in running]
        return Continuation([each.source for each in running], [each.token for each in running])

    @property
    def best(self) -> tuple[list[int], Finish]:
        """Tokens of the best finished sequence, including its end token, and its finish reason. Only for a search that is over."""
        _, tokens = self._finished[0]
        return tokens, "stop" if self._has_ended(tokens) else "length"

    def _candidates(self, scores: torch.Tensor) -> list[Candidate]:
        """The likeliest continuations of all branches, best first: so many that `beams` are unfinished even if all others finish."""
        vocab = scores.shape[-1]
        totals = scores.float() + torch.tensor(self._scores, device=scores.device)[:, None]  # [beams, vocab]
        count = (1 + max(1, len(self._end_tokens))) * self._params.beams
        top = totals.flatten().topk(min(count, totals.numel()))
        best = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return [self._candidate(score, *divmod(index, vocab)) for score, index in best]

    def _candidate(self, score: float, source: int, token: int) -> Candidate:
        return Candidate(score, source, token, self._has_ended([*self._tokens[source], token]))

    def _has_ended(self, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self._end_tokens or (self._is_complete is not None and self._is_complete(tokens))

    def _padded(self, running: list[Candidate], candidates: list[Candidate]) -> list[Candidate]:
        """As many candidates as beams: where too few are unfinished, finished ones fill up with a score of -inf, so they never win."""
        fillers = [replace(each, score=-math.inf) for each in candidates if each.finished]
        return running + fillers[: self._params.beams - len(running)]

    def _finish(self, finishing: list[Candidate], length: int) -> None:
        penalty = length**self._params.length_penalty
        self._finished += [(each.score / penalty, [*self._tokens[each.source], each.token]) for each in finishing]
        self._finished = sorted(self._finished, key=lambda pair: -pair[0])[: self._params.beams]

    def _cannot_improve(self, best_running: float, length: int) -> bool:
        """Whether the search may stop: as many sequences have finished as there are beams, and the best unfinished one would not be
        among them if it ended here.
        """
        if len(self._finished) < self._params.beams:
            return False
        return self._params.early_stopping or best_running / length**self._params.length_penalty <= self._finished[-1][0]


def _order_by_source(running: list[Candidate]) -> list[Candidate]:
    """The same candidates in another order: the likeliest one of each source takes the place of its source."""
    staying: dict[int, Candidate] = {}
    moving = []
    for each in running:
        if staying.setdefault(each.source, each) is not each:
            moving.append(each)
    return [staying[branch] if branch in staying else moving.pop() for branch in range(len(running))]


class ContrastiveSearch:
    """Contrastive search (Su et al., arXiv 2202.06417, eq. 5). Each branch tries one of the `top_k` likeliest tokens; of two that are
    equally good, the likelier one is chosen. It never ends by itself.
    """

    def __init__(self, params: ContrastiveSearchParams) -> None:
        self._params = params
        self._states = torch.empty(0, 1)  # [capacity, width], unit vectors; the first `_length` are filled
        self._length = 0
        self._probabilities = torch.empty(0)  # [top_k], of the candidates being tried
        self._banned = torch.empty(0)  # [top_k], candidates that may not be chosen: fewer than `top_k` tokens were allowed

    def add_prompt_states(self, hidden: torch.Tensor) -> None:
        """Store the last hidden states `[tokens, width]` of the prompt, or of its next chunk."""
        self._append(F.normalize(hidden.float(), dim=-1))

    def start(self, logits: torch.Tensor) -> Continuation:
        """The first candidates, from the logits `[vocab]` after the prompt, whose states have all been added."""
        return self._propose(logits, 0)

    def advance(self, logits: torch.Tensor, hidden: torch.Tensor) -> tuple[int, Continuation]:
        """The branch whose candidate is chosen, and the candidates that follow it. Takes `[top_k, vocab]` and `[top_k, width]`."""
        states = F.normalize(hidden.float(), dim=-1)
        similarity = (states @ self._states[: self._length].T).amax(-1)  # [top_k]
        alpha = self._params.penalty_alpha
        scores = (1 - alpha) * self._probabilities - alpha * similarity
        chosen = int(scores.masked_fill(self._banned, -torch.inf).argmax())
        self._append(states[chosen : chosen + 1])
        return chosen, self._propose(logits[chosen], chosen)

    def _propose(self, logits: torch.Tensor, source: int) -> Continuation:
        top = logits.float().topk(self._params.top_k)
        self._probabilities = logits.float().softmax(-1)[top.indices]
        self._banned = top.values == -torch.inf
        return Continuation([source] * self._params.top_k, top.indices.tolist())

    def _append(self, states: torch.Tensor) -> None:
        length = self._length + len(states)
        if length > len(self._states):
            grown = states.new_empty(max(length, 2 * len(self._states)), states.shape[-1])
            grown[: self._length] = self._states[: self._length]
            self._states = grown
        self._states[self._length : length] = states
        self._length = length
