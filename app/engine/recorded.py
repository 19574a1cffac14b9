"""Steps that only decode, as recorded graphs: the next one is given to the device before the tokens of this one are read.

A step follows another at once if every token of that one is drawn on the device and nothing else is to be scheduled. Where an answer then
ends, or its token has to be drawn anew, its row of the step that followed counts for nothing: the keys and values that it wrote lie behind
the sequence's length.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from app.engine.answers import Answers, Row
from app.engine.batch import FlatBatch
from app.engine.changes import AnswerChanges, RowChanges, answer_changes
from app.engine.drafts import Drafter
from app.engine.graphs import DecodeGraphs, DecodeRow, Launched
from app.engine.plan import Plan
from app.engine.sampler import SamplerRow, changes_logits, drawing_numbers, row_numbers
from app.engine.scheduler import Scheduler
from app.engine.slot import Slot

MOST_IN_A_ROW = 8  # steps without a look at what could be drafted


@dataclass(frozen=True, slots=True)
class RunningRow:
    """The first row of a slot in a step, and where its sequence stood then."""

    index: int
    slot: Slot
    admission: int
    position: int

    @property
    def counts(self) -> bool:
        """Whether the slot still waits for the token of this row."""
        return self.slot.request is not None and self.slot.admission == self.admission and self.slot.length == self.position


@dataclass(slots=True)
class RunningStep:
    """A step that was given to the device."""

    plan: Plan
    launched: Launched
    rows: list[RunningRow]
    own: dict[Slot, list[Row]] | None  # None: the tokens before them were not known yet
    drawn_by_host: frozenset[int] = frozenset()  # rows
    number: int = 0  # of those that followed each other

    @property
    def row_count(self) -> int:
        return len(self.rows) if self.own is None else sum(map(len, self.own.values()))

    @property
    def counts(self) -> bool:
        """Whether any of its rows does."""
        return any(each.counts for each in self.rows)


@dataclass(slots=True)
class StepResult:
    """What a step has computed, as `Answers.advance` asks for it."""

    graphs: DecodeGraphs
    drawn: Mapping[int, int]

    def logits(self, rows: list[int]) -> torch.Tensor:
        return self.graphs.logits(rows)


class RecordedSteps:
    def __init__(self, graphs: DecodeGraphs, scheduler: Scheduler, answers: Answers, drafter: Drafter) -> None:
        self._graphs, self._scheduler, self._answers, self._drafter = graphs, scheduler, answers, drafter
        self._changes: dict[Slot, tuple[int, AnswerChanges | None]] = {}  # with the admission of the answer
        self.followed = 0  # steps that were launched before the tokens of the one before were read

    def launch(self, plan: Plan, batch: FlatBatch) -> RunningStep | None:
        """Give a step to the device; None if it is not one of those that are recorded."""
        rows = len(batch.ids)
        if not plan.decode_only or batch.adapted or rows > self._graphs.most_rows or any(slot.group for slot in plan.decodes):
            return None
        own = self._answers.rows(batch.sampled, plan.drafts)
        every = [row for each in own.values() for row in each]
        drafted = {each[0].slot for each in own.values() if len(each) > 1}
        there = {row.index: row.slot for row in every if _may_be_drawn_there(row, row.slot in drafted)}
        changes = {index: self._changes_of(slot, slot.generated) for index, slot in there.items() if slot not in drafted}
        by_host = frozenset(row.index for row in every if row.index not in there or row.slot.is_drawn_by_host)
        numbers = drawing_numbers([row.sampler for row in every])
        decodes = [
            DecodeRow(token, 0, position, pages, drawn, changes.get(index))
            for index, (token, (pages, position), drawn) in enumerate(zip(batch.ids, batch.decodes, numbers, strict=True))
        ]
        first = [RunningRow(each[0].index, slot, slot.admission, slot.length) for slot, each in own.items()]
        return RunningStep(plan, self._graphs.launch(decodes), first, own, by_host)

    def follow(self, running: RunningStep) -> RunningStep | None:
        """Give the step after `running` to the device, if it can be told before its tokens are."""
        is_drafted = running.own is not None and any(len(each) > 1 for each in running.own.values())
        drafter = self._drafter
        looks = drafter.is_on and (drafter.proposer is not None or running.number >= MOST_IN_A_ROW)
        if running.drawn_by_host or is_drafted or looks or any(each.slot.thought is not None for each in running.rows):
            return None
        goes_on = [each for each in running.rows if each.counts and _is_longer(each.slot)]
        changes = [self._changes_of(each.slot, each.slot.generated + 1) for each in goes_on]
        is_drawn_there = not any(each.slot.is_drawn_by_host for each in goes_on)
        plan = self._scheduler.repeat(running.plan, [each.slot for each in goes_on]) if goes_on and is_drawn_there else None
        if plan is None:
            return None
        decodes, rows = [], []
        for index, (each, changed) in enumerate(zip(goes_on, changes, strict=True)):
            slot, position = each.slot, each.position + 1
            assert slot.request is not None
            numbers = row_numbers(slot.request.sampling, len(slot.tokens) + 1)
            decodes.append(DecodeRow(None, each.index, position, slot.pages, numbers, changed))
            rows.append(RunningRow(index, slot, each.admission, position))
        self.followed += 1
        return RunningStep(plan, self._graphs.launch(decodes), rows, None, number=running.number + 1)

    def read(self, running: RunningStep, is_followed: bool) -> tuple[dict[Slot, list[Row]], StepResult]:
        """The rows of a step that count, by their slots, and what it has drawn. Where a row's token is not right, it is to be drawn from
        its logits or, as these are gone if another step follows, the row is to be run again.
        """
        found = running.launched.tokens()
        counting = [each for each in running.rows if each.counts]
        own = running.own
        if own is None:
            own = self._answers.rows([(each.index, each.slot) for each in counting], {})
        wrong = {index for index, (_, is_right) in enumerate(found) if not is_right} - running.drawn_by_host
        counted: dict[Slot, list[Row]] = {}
        for each in counting:
            rows = own[each.slot]
            has_wrong = bool(wrong) and any(row.index in wrong for row in rows)
            each.slot.is_drawn_by_host |= has_wrong
            if not (has_wrong and is_followed):
                counted[each.slot] = rows
        of_host = wrong | running.drawn_by_host
        drawn = {row.index: found[row.index][0] for rows in counted.values() for row in rows if row.index not in of_host}
        return counted, StepResult(self._graphs, drawn)

    def _changes_of(self, slot: Slot, answer_tokens: int) -> RowChanges | None:
        """What is changed in the logits of the token that follows so many of the slot's answer; None if nothing is. Where the device
        cannot do it, the host draws the slot's tokens from then on.
        """
        request = slot.request
        assert request is not None
        if slot.is_drawn_by_host or not changes_logits(request.sampling, answer_tokens):
            return None
        admission, changes = self._changes.get(slot, (None, None))
        if admission != slot.admission:
            ends = self._answers.end_tokens_of(request)
            changes = answer_changes(request.sampling, len(request.prompt), ends, self._graphs.vocabulary)
            self._changes[slot] = slot.admission, changes
        found = None if changes is None else changes.read(slot.tokens, answer_tokens)
        slot.is_drawn_by_host = found is None
        return found


def _may_be_drawn_there(row: Row, is_drafted: bool) -> bool:
    """Whether the device draws the row's token, if it can change the logits as asked. It changes none of slots with drafted tokens."""
    is_asked_for_logits = row.certain is not None or row.request.logprobs is not None or row.sampler.allowed is not None
    return not is_asked_for_logits and not row.slot.is_drawn_by_host and not (is_drafted and _changes(row.sampler))


def _changes(row: SamplerRow) -> bool:
    return changes_logits(row.params, len(row.tokens) - row.prompt_tokens)


def _is_longer(slot: Slot) -> bool:
    """Whether the answer may have another token after the next one."""
    return slot.request is not None and slot.generated + 1 < slot.request.max_tokens
