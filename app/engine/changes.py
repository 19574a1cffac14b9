"""What requests change in the logits of a recorded step: biases, bans and penalties. They go to the device as numbers in one buffer, and
are applied there, by the arithmetic of `sampler.process_logits`. Knows no slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.request import SamplingParams

HISTORY_TOKENS = 1024  # different tokens of a sequence that may have a penalty
BIASED_TOKENS = 512  # tokens that may have a bias or be banned
ROW_FORMAT = np.dtype(
    [
        ("penalties", np.float64, 3),  # of repetition, presence and frequency
        ("sizes", np.int32, 2),  # how many of the tokens in `history` and in `biased` are meant
        ("history", np.int32, HISTORY_TOKENS),
        ("counts", np.int32, HISTORY_TOKENS),  # how often each is in the answer
        ("biased", np.int32, BIASED_TOKENS),
        ("biases", np.float32, BIASED_TOKENS),
    ]
)
NO_PENALTIES = (1.0, 0.0, 0.0)

Biases = tuple[NDArray[np.int32], NDArray[np.float32]]  # tokens, and what is added to the logit of each


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What is changed in one row of logits, see `ROW_FORMAT`."""

    penalties: tuple[float, float, float]
    history: NDArray[np.int32]
    counts: NDArray[np.int32]
    biased: NDArray[np.int32]
    biases: NDArray[np.float32]


@dataclass(slots=True)
class AnswerChanges:
    """What the parameters of a request change in the logits of its answer, step by step."""

    params: SamplingParams
    prompt_tokens: int
    biases: Biases
    early_biases: Biases  # the same, and the end tokens banned: while the answer has fewer than `min_tokens`
    _history: NDArray[np.int32] = field(default_factory=lambda: np.zeros(HISTORY_TOKENS, np.int32))
    _counts: NDArray[np.int32] = field(default_factory=lambda: np.zeros(HISTORY_TOKENS, np.int32))
    _places: dict[int, int] = field(default_factory=dict)
    _read: int = 0  # tokens of prompt and answer that are in the history

    def read(self, tokens: Sequence[int], answer_tokens: int) -> RowChanges | None:
        """The changes where `tokens`, prompt and answer, are known, for the token after the first `answer_tokens` of the answer. Between
        calls `tokens` only grow. None if there are more different ones than a row holds.
        """
        repetition, presence, frequency = self.penalties
        first = 0 if repetition != 1.0 else self.prompt_tokens
        if presence or frequency or repetition != 1.0:
            for position in range(max(self._read, first), len(tokens)):
                place = self._places.setdefault(tokens[position], len(self._places))
                if place >= HISTORY_TOKENS:
                    return None
                self._history[place] = tokens[position]
                self._counts[place] += position >= self.prompt_tokens
                self._read = position + 1
        count = len(self._places)
        biases = self.early_biases if answer_tokens < self.params.min_tokens else self.biases
        return RowChanges(self.penalties, self._history[:count], self._counts[:count], *biases)

    @property
    def penalties(self) -> tuple[float, float, float]:
        return self.params.repetition_penalty, self.params.presence_penalty, self.params.frequency_penalty


def answer_changes(params: SamplingParams, prompt_tokens: int, end_tokens: frozenset[int], vocab: int) -> AnswerChanges | None:
    """None if the device cannot make these changes: allowed tokens, `bad_words` of several tokens, or too many biases."""
    if params.allowed_tokens or any(len(word) != 1 for word in params.bad_words):
        return None
    banned = {word[0]: -np.inf for word in params.bad_words}
    biases = {token: bias for token, bias in (dict(params.logit_bias) | banned).items() if 0 <= token < vocab}
    early = biases | {token: -np.inf for token in end_tokens if 0 <= token < vocab and params.min_tokens}
    if len(early) > BIASED_TOKENS:
        return None
    return AnswerChanges(params, prompt_tokens, _arrays(biases), _arrays(early))


def write_changes(rows: Sequence[RowChanges | None], buffer: torch.Tensor) -> None:
    """Write them into `buffer`, uint8 `[more rows, ROW_FORMAT.itemsize]` on the CPU. None: nothing is changed."""
    whole = buffer.numpy().view(ROW_FORMAT)[:, 0]
    whole["penalties"], whole["sizes"] = NO_PENALTIES, 0
    for place, row in enumerate(rows):
        if row is not None:
            known, biased = len(row.history), len(row.biased)
            whole["penalties"][place], whole["sizes"][place] = row.penalties, (known, biased)
            whole["history"][place, :known], whole["counts"][place, :known] = row.history, row.counts
            whole["biased"][place, :biased], whole["biases"][place, :biased] = row.biased, row.biases


def change_logits(logits: torch.Tensor, rows: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
    """`logits` `[rows, vocab]` in float32 with the changes in `rows`, uint8 `[rows, ROW_FORMAT.itemsize]`. `newest` `[rows]` are tokens
    of the answers that are not yet counted there; -1: none.
    """
    vocab, sizes = logits.shape[-1], _field(rows, "sizes", torch.int32)
    scores = torch.empty(len(logits), vocab + 1, dtype=torch.float32, device=logits.device)  # the last column takes what is not meant
    scores[:, :vocab].copy_(logits)
    scores[:, vocab].zero_()
    biased = _field(rows, "biased", torch.int32).long()
    scores.scatter_add_(1, torch.where(_is_meant(biased, sizes[:, 1:]), biased, vocab), _field(rows, "biases", torch.float32).contiguous())
    history, newest = _field(rows, "history", torch.int32).long(), newest[:, None]
    is_meant = _is_meant(history, sizes[:, :1])
    is_newest = is_meant & (history == newest)
    is_first = (newest >= 0) & ~is_newest.any(-1, keepdim=True)
    tokens = torch.cat([torch.where(is_meant, history, vocab), torch.where(is_first, newest, vocab)], 1)
    counts = torch.cat([_field(rows, "counts", torch.int32) + is_newest, is_first], 1)
    repetition, presence, frequency = _field(rows, "penalties", torch.float64).split(1, 1)
    before = scores.gather(1, tokens)
    after = torch.where(before < 0, before * repetition.float(), before / repetition.float())
    after += torch.where(counts > 0, -presence - frequency * counts, 0.0).float()
    return scores.scatter_(1, tokens, after)[:, :vocab]


def _arrays(biases: Mapping[int, float]) -> Biases:
    return np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32)


def _field(rows: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    assert ROW_FORMAT.fields is not None
    part, start = ROW_FORMAT.fields[name][:2]
    return rows[:, start : start + part.itemsize].view(dtype)


def _is_meant(tokens: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device) < sizes
