"""Goes on with the answers of slots: draws the next tokens from the states of their rows, checks drafts, and tells what was written.

Knows no schedule, and no searches.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Protocol

import torch

from app.engine.drafts import Draft, Drafter
from app.engine.events import Delta, Failed, Finish, TokenLogprob
from app.engine.flat import FlatModel
from app.engine.grammar import Choices, GrammarState
from app.engine.request import Generate
from app.engine.sampler import SamplerRow, sample, token_logprobs
from app.engine.slot import Slot
from app.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Row:
    """Row `index` of a step gives a token of the slot's answer: `certain`, if its grammar leaves no other."""

    index: int
    slot: Slot
    request: Generate
    sampler: SamplerRow
    certain: int | None = None

    @property
    def needs_logits(self) -> bool:
        return self.certain is None or self.request.logprobs is not None


@dataclass(slots=True)
class Written:
    """What a step has added to an answer: the rows that were kept, the token and the text of each."""

    request: Generate
    drafted: int
    rows: list[Row] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish: Finish | None = None
    error: InvalidRequest | None = None


class Outputs(Protocol):
    """What a step has computed. `drawn` are tokens by the indices of their rows, of those that were drawn on the device."""

    @property
    def drawn(self) -> Mapping[int, int]: ...

    def logits(self, rows: list[int]) -> torch.Tensor:
        """The model's own `[rows, vocab]`."""


class States:
    """The outputs of a step whose hidden states are known, `[rows, hidden]`."""

    drawn: Mapping[int, int] = MappingProxyType({})

    def __init__(self, model: FlatModel, hidden: torch.Tensor) -> None:
        self._model, self._hidden = model, hidden

    def logits(self, rows: list[int]) -> torch.Tensor:
        return self._model.head(_select(self._hidden, rows))


class Answers:
    def __init__(
        self,
        grammars: Mapping[str, GrammarState],
        drafter: Drafter,
        end_tokens_of: Callable[[Generate], frozenset[int]],
    ) -> None:
        """`grammars` are the states of answers, by the ids of their requests."""
        self._grammars, self._drafter, self.end_tokens_of = grammars, drafter, end_tokens_of
        self._plain: dict[Slot, Row] = {}  # the latest row of a slot without a grammar and a draft

    def rows(self, sampled: Sequence[tuple[int, Slot]], drafts: Mapping[Slot, Draft]) -> dict[Slot, list[Row]]:
        """The rows of a step that give tokens, by their slots. `sampled` are indices of rows and their slots, the rows of a slot one after
        the other.
        """
        rows = {slot: self._rows([index for index, _ in group], slot, drafts.get(slot)) for slot, group in groupby(sampled, itemgetter(1))}
        if len(self._plain) > len(rows):  # those of answers that were cancelled or failed go
            self._plain = {slot: row for slot, row in self._plain.items() if slot in rows}
        return rows

    def advance(self, own: Mapping[Slot, Sequence[Row]], outputs: Outputs) -> Iterator[tuple[Slot, Delta | Failed]]:
        """What the step adds to each answer. A slot whose answer ends is to be released by the caller."""
        rows = [row for each in own.values() for row in each]
        headed = [row for row in rows if row.needs_logits and row.index not in outputs.drawn]
        logits = outputs.logits([row.index for row in headed]) if headed else torch.empty(0)
        tokens = {**outputs.drawn, **_draw(rows, headed, logits)}
        written = {slot: self._write(slot, each, tokens) for slot, each in own.items()}
        logprobs = _logprobs(headed, logits, written.values())
        for slot, each in written.items():
            self._drafter.record(each.request.id, each.tokens)
            slot.drafted += each.drafted
            slot.accepted += max(0, len(each.tokens) - 1)
            if each.finish is not None or each.error is not None:
                self._plain.pop(slot, None)
            if each.tokens:
                yield slot, _delta(slot, each, logprobs)
            if each.error is not None:
                yield slot, Failed(each.request.id, each.error)

    def _rows(self, indices: Sequence[int], slot: Slot, draft: Draft | None) -> list[Row]:
        request, drafted = slot.request, () if draft is None else draft.tokens
        assert request is not None
        plain = self._plain.get(slot)
        if plain is not None and draft is None and plain.index == indices[0] and plain.sampler.tokens is slot.tokens:
            return [plain]  # its tokens are the slot's
        choices: Sequence[Choices | None] = () if draft is None else draft.choices
        if not choices:
            allowed = None if request.grammar is None else Choices(self._grammars[request.id].allowed_tokens(), None)
            choices = [allowed] * len(indices)
        ends, prompt_tokens, rows = self.end_tokens_of(request), len(request.prompt), []
        for place, (index, choice) in enumerate(zip(indices, choices, strict=True)):
            tokens = [*slot.tokens, *drafted[:place]] if place else slot.tokens
            mask, certain = (None, None) if choice is None else (choice.allowed, choice.certain)
            rows.append(Row(index, slot, request, SamplerRow(request.sampling, tokens, prompt_tokens, ends, mask), certain))
        if draft is None and request.grammar is None:
            self._plain[slot] = rows[0]
        return rows

    def _write(self, slot: Slot, rows: Sequence[Row], tokens: Mapping[int, int]) -> Written:
        """Add the tokens of rows to the slot, until one differs from the draft of the next row or ends the answer."""
        written = Written(rows[0].request, len(rows) - 1)
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            token = self._steer(row, tokens[row.index])
            try:
                complete = row.request.grammar is not None and self._grammars[row.request.id].accept(token)
            except InvalidRequest as error:
                written.error = error
                return written
            text, written.finish = slot.push(token, row.sampler.end_tokens, complete)
            written.rows.append(row)
            written.tokens.append(token)
            written.texts.append(text)
            if written.finish is not None or following is None or following.sampler.tokens[-1] != token:
                break
            slot.length += 1  # the draft's keys and values are those of the token
        return written

    def _steer(self, row: Row, token: int) -> int:
        """The sampled token, or another: where a thought has used up its tokens, or an answer could otherwise not follow its grammar to
        an end within its own.
        """
        slot, request = row.slot, row.request
        if slot.thought is not None and slot.detokenizer is not None and row.certain is None:
            token = slot.thought.steer(token, row.sampler.allowed, slot.detokenizer)
        left = request.max_tokens - slot.generated - 1
        return token if request.grammar is None else self._grammars[request.id].steer(token, left)


def _draw(rows: Sequence[Row], headed: Sequence[Row], logits: torch.Tensor) -> dict[int, int]:
    """The token of each row, by the row's index, as if all drafts before it were kept. `logits` `[headed, vocab]`."""
    tokens = {row.index: row.certain for row in rows if row.certain is not None}
    drawn = [place for place, row in enumerate(headed) if row.certain is None]
    if drawn:
        sampled = sample(_select(logits, drawn), [headed[place].sampler for place in drawn])
        tokens |= {headed[place].index: token for place, token in zip(drawn, sampled, strict=True)}
    return tokens


def _logprobs(headed: Sequence[Row], logits: torch.Tensor, written: Iterable[Written]) -> dict[int, TokenLogprob]:
    """Of the tokens that were kept and whose requests ask for them, by the rows' indices. `logits` `[headed, vocab]`."""
    if all(row.request.logprobs is None for row in headed):
        return {}
    kept = {row.index: token for each in written for row, token in zip(each.rows, each.tokens, strict=True)}
    tops = [row.request.logprobs if row.index in kept else None for row in headed]
    logprobs = token_logprobs(logits, [kept.get(row.index, 0) for row in headed], tops)
    return {row.index: logprob for row, logprob in zip(headed, logprobs, strict=True) if logprob is not None}


def _delta(slot: Slot, written: Written, logprobs: Mapping[int, TokenLogprob]) -> Delta:
    is_first = slot.generated == len(written.tokens)
    return Delta(
        written.request.id,
        "".join(written.texts),
        tuple(written.tokens),
        written.finish,
        tuple(logprobs[row.index] for row in written.rows if row.index in logprobs),
        tuple(slot.prompt_logprobs) if is_first else (),
        slot.cached if is_first else 0,
        slot.stop_string if written.finish is not None else None,
        time.monotonic() - slot.admitted_s if is_first else 0.0,
        tuple(written.texts) if len(written.texts) > 1 else (),
        written.drafted,
        len(written.tokens) - 1,
    )


def _select(tensor: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """These rows: a copy, or `tensor` itself if they are all of its rows in their order."""
    return tensor if indices == list(range(len(tensor))) else tensor[indices]
