"""Beam search and contrastive search as state machines: scores in, moves of a group of sequences ("places") out.

Knows nothing of models, caches, slots and schedulers. Whoever drives a search runs one row a place, first of all lets the
places follow `Move.sources`, and feeds `Move.tokens`. What a prompt, a penalty or a text is stays with the driver.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from app.engine.request import Beams, Contrast, Finish


@dataclass(frozen=True, slots=True)
class Move:
    """What each place continues from and with. A place that anyone continues from is its own source or, in the first move, place 0:
    so caches may be copied one after another, in place, and only place 0 has to hold the prompt.
    """

    sources: list[int]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Candidate:
    score: float  # sum of log-probabilities
    source: int
    token: int
    ends: bool = False  # no token may follow


class BeamSearch:
    """Beam search as transformers' `generate(num_beams=beams, do_sample=False)` does it, for one prompt.

    Scores are log-probabilities; penalties, if any, were applied to them after the softmax, and nothing normalises them again.
    A sequence ends with one of `ends`, or where it is `whole`: all its tokens so far are asked about.
    """

    def __init__(self, search: Beams, max_tokens: int, ends: frozenset[int], whole: Callable[[Sequence[int]], bool] | None = None) -> None:
        self._search = search
        self._max_tokens = max_tokens
        self._ends = ends
        self._whole = whole
        self._tokens: list[list[int]] = [[]]  # of each place; before the first move there is only one
        self._scores = [0.0]  # of each place: the sum over its tokens
        self._finished: list[tuple[float, list[int]]] = []  # penalised score and tokens, best first

    def start(self, scores: torch.Tensor) -> Move | None:
        """The first move, from the scores `[vocab]` after the prompt."""
        return self.advance(scores[None])

    def advance(self, scores: torch.Tensor) -> Move | None:
        """The next move, from the scores `[beams, vocab]` after every place's token; None when the search is over."""
        candidates = self._candidates(scores)
        length = len(self._tokens[0]) + 1
        last = length == self._max_tokens
        self._finish([each for each in candidates[: self._search.beams] if last or each.ends], length)
        running = [each for each in candidates if not each.ends][: self._search.beams]
        if last or not running or self._settled(running[0].score, length):
            return None
        running = _stay(self._filled(running, candidates))
        self._tokens = [[*self._tokens[each.source], each.token] for each in running]
        self._scores = [each.score for each in running]
        return Move([each.source for each in running], [each.token for each in running])

    @property
    def best(self) -> tuple[list[int], Finish]:
        """Tokens of the best finished sequence, its end token included, and why it ended. Of a search that is over."""
        _, tokens = self._finished[0]
        return tokens, "stop" if self._ended(tokens) else "length"

    def _candidates(self, scores: torch.Tensor) -> list[Candidate]:
        """The likeliest continuations of all places, falling: enough that `beams` of them run on if all others end."""
        vocab = scores.shape[-1]
        totals = scores.float() + torch.tensor(self._scores, device=scores.device)[:, None]  # [beams, vocab]
        enough = (1 + max(1, len(self._ends))) * self._search.beams
        top = totals.flatten().topk(min(enough, totals.numel()))
        found = [Candidate(score, *divmod(index, vocab)) for score, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
        return [replace(each, ends=self._ended([*self._tokens[each.source], each.token])) for each in found]

    def _ended(self, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self._ends or (self._whole is not None and self._whole(tokens))

    def _filled(self, running: list[Candidate], candidates: list[Candidate]) -> list[Candidate]:
        """As many as there are beams: where too few run on, those that ended take part without a chance."""
        lost = [replace(each, score=-math.inf) for each in candidates if each.ends]
        return running + lost[: self._search.beams - len(running)]

    def _finish(self, ending: list[Candidate], length: int) -> None:
        penalty = length**self._search.length_penalty
        self._finished += [(each.score / penalty, [*self._tokens[each.source], each.token]) for each in ending]
        self._finished = sorted(self._finished, key=lambda pair: -pair[0])[: self._search.beams]

    def _settled(self, running: float, length: int) -> bool:
        """Whether nothing better is expected: as many sequences finished as there are beams, and the best one running, were it to
        end here, would not be among them.
        """
        if len(self._finished) < self._search.beams:
            return False
        return self._search.early_stopping or running / length**self._search.length_penalty <= self._finished[-1][0]


def _stay(running: list[Candidate]) -> list[Candidate]:
    """The same candidates, reordered: the likeliest one of each source comes to stand in its source's own place."""
    staying: dict[int, Candidate] = {}
    leaving = []
    for each in running:
        if staying.setdefault(each.source, each) is not each:
            leaving.append(each)
    return [staying[place] if place in staying else leaving.pop() for place in range(len(running))]


class ContrastiveSearch:
    """Contrastive search (Su et al., arXiv 2202.06417, eq. 5). A place is one of the `top_k` likeliest tokens, tried; where two are
    equally good, the likelier one is taken. It never ends by itself.
    """

    def __init__(self, search: Contrast) -> None:
        self._search = search
        self._seen = torch.empty(0, 1)  # [room, width], unit vectors; the first `_length` are there
        self._length = 0
        self._probabilities = torch.empty(0)  # [top_k], of the candidates being tried
        self._banned = torch.empty(0)  # [top_k], those that are there only because too few tokens may come

    def read(self, hidden: torch.Tensor) -> None:
        """Take note of the last hidden states `[tokens, width]` of the prompt, or of its next part."""
        self._append(F.normalize(hidden.float(), dim=-1))

    def start(self, logits: torch.Tensor) -> Move:
        """The first candidates, from the logits `[vocab]` after the prompt, all of which was `read`."""
        return self._propose(logits, 0)

    def advance(self, logits: torch.Tensor, hidden: torch.Tensor) -> tuple[int, Move]:
        """The place whose candidate is taken, and the candidates that follow it. `[top_k, vocab]`, `[top_k, width]`."""
        states = F.normalize(hidden.float(), dim=-1)
        similarity = (states @ self._seen[: self._length].T).amax(-1)  # [top_k]
        alpha = self._search.penalty_alpha
        scores = (1 - alpha) * self._probabilities - alpha * similarity
        chosen = int(scores.masked_fill(self._banned, -torch.inf).argmax())
        self._append(states[chosen : chosen + 1])
        return chosen, self._propose(logits[chosen], chosen)

    def _propose(self, logits: torch.Tensor, source: int) -> Move:
        top = logits.float().topk(self._search.top_k)
        self._probabilities = logits.float().softmax(-1)[top.indices]
        self._banned = top.values == -torch.inf
        return Move([source] * self._search.top_k, top.indices.tolist())

    def _append(self, states: torch.Tensor) -> None:
        length = self._length + len(states)
        if length > len(self._seen):
            grown = states.new_empty(max(length, 2 * len(self._seen)), states.shape[-1])
            grown[: self._length] = self._seen[: self._length]
            self._seen = grown
        self._seen[self._length : length] = states
        self._length = length
