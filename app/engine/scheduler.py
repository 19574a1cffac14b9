"""Chooses what runs in the next step. Policy only, decided from lengths, limits and a clock. Standard library, no torch.

Every decoding slot of a person runs in every step. The tokens that the budget allows beside them go to prompts and to texts to score, in
turns. `flex` work joins a person's step when the budget has the time for it. A free slot goes to the request that ranks first: continuing
conversations, then new ones, then `flex` work; age raises its priority.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.budget import FlexTime, StepBudget
from app.engine.detokenizer import Detokenize
from app.engine.drafts import Draft
from app.engine.placement import Placement, continues_conversation, place
from app.engine.request import Columns, Decision, Embed, Generate, Job, Score, Waiting, Window
from app.engine.slot import Slot, common_prefix_length

if TYPE_CHECKING:
    import torch

AGE_S = 5.0  # a request that has waited this long ranks one priority class higher
MAX_DECISIONS = 100
RECENT_RELEASES = 16  # releases of slots from which the expected wait is estimated


@dataclass(slots=True)
class WaitingRequest:
    """A request that has no slot yet."""

    job: Generate
    arrived_s: float
    arrival: int  # serial number

    def rank(self, now_s: float, is_continuing: bool) -> tuple[float, int]:
        """The smallest rank goes first."""
        priority_class = 0 if self.job.sampled else 2 if self.job.tier == "flex" else 0 if is_continuing else 1
        return priority_class - (now_s - self.arrived_s) / AGE_S, self.arrival


@dataclass(slots=True, eq=False)
class TextState:
    """A text being scored or embedded, and how far it has come."""

    job: Score | Embed
    windows: deque[Window]  # not finished yet
    arrived_s: float
    computed: int = 0  # tokens of the first of these windows that have been computed
    columns: list[Columns] = field(default_factory=list)  # to score: statistics of the chunks computed so far, in order
    observed: list["torch.Tensor"] = field(default_factory=list)  # states of the base, which has read the window; the adapter is to read it
    pooled: list[float] = field(default_factory=list)  # to embed: the sum of the hidden states so far, or the last of them


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens `[start, end)` of a slot, to be computed and written to the cache."""

    slot: Slot
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ScoreChunk:
    """Tokens `[start, end)` of a text, in one of its windows. `cached`: the window takes several steps, so that its keys and values have
    to be kept, in the one slot reserved for this.
    """

    text: TextState
    window: Window
    start: int
    end: int
    cached: bool


@dataclass(slots=True)
class Plan:
    """What runs in a step."""

    decodes: list[Slot] = field(default_factory=list)
    drafts: dict[Slot, Draft] = field(default_factory=dict)  # of those that decode
    copies: list[tuple[Slot, Slot, int]] = field(default_factory=list)  # (from, to, tokens): cache copies to make before the forward
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    score_chunks: list[ScoreChunk] = field(default_factory=list)
    people_rows: int | None = None  # decoding rows of people, who are not `flex` work; None if the step serves none of them
    may_flex: bool = True  # whether `flex` work may join
    with_flex: bool = False  # whether some has

    @property
    def empty(self) -> bool:
        return not (self.decodes or self.prefill_chunks or self.score_chunks)

    @property
    def decode_only(self) -> bool:
        return not (self.prefill_chunks or self.score_chunks)

    @property
    def decode_rows(self) -> int:
        return len(self.decodes) + sum(len(draft.tokens) for draft in self.drafts.values())

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.prefill_chunks)

    @property
    def score_tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.score_chunks)


class Scheduler:
    def __init__(self, slots: Sequence[Slot], budget: StepBudget, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.budget = budget
        self.flex_time = FlexTime()
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.draft: Callable[[Sequence[Slot]], dict[Slot, Draft]] = lambda _: {}  # called with the slots that decode
        self._clock = clock
        self._waiting: list[WaitingRequest] = []
        self._texts: list[TextState] = []
        self._cached_text: TextState | None = None  # the text whose unfinished window is in the slot reserved for texts
        self._steps = 0
        self._prompts_next = True  # whether prompts come before texts in the next step that could take both
        self._flex_ran_s = clock()  # when flex work was in a step for the last time, or there was none
        self._arrivals = 0
        self._admissions = 0
        self._releases = 0
        self._release_times_s: deque[float] = deque(maxlen=RECENT_RELEASES)

    def add(self, job: Job) -> None:
        if self.idle:  # releases before an idle time say nothing about the wait after it
            self._release_times_s.clear()
        if isinstance(job, Generate):
            self._arrivals += 1
            self._waiting.append(WaitingRequest(job, self._clock(), self._arrivals))
        else:
            self._texts.append(TextState(job, deque(job.readings), self._clock()))

    def cancel(self, id: str) -> bool:
        """Drop a job, running or waiting; returns whether it was found. Its slots are free for the next step."""
        for slot in self.slots:
            if slot.request is not None and slot.request.id == id:
                self.release(slot)
                return True
        for text in self._texts:
            if text.job.id == id:
                self.finish_text(text)
                return True
        matches = [waiting for waiting in self._waiting if waiting.job.id == id]
        for waiting in matches:
            self._waiting.remove(waiting)
        return bool(matches)

    def release(self, slot: Slot) -> None:
        """Free the slot and the other slots of its group. Their caches stay as they are until the slots are needed."""
        self._release_times_s.append(self._clock())
        for member in slot.group or (slot,):
            self._releases += 1
            member.release(self._releases)

    def clear(self) -> list[str]:
        """Drop every job and what the slots hold; returns the jobs' ids."""
        ids = [slot.request.id for slot in self.slots if slot.request is not None and not slot.is_follower]
        ids += [waiting.job.id for waiting in self._waiting] + [text.job.id for text in self._texts]
        for slot in self.slots:
            slot.length = 0
            slot.release(0)
        self._waiting.clear()
        self._texts.clear()
        self._cached_text = None
        return ids

    def forget(self, adapter: str) -> list[str]:
        """Drop the jobs of an adapter, and what slots hold of it; returns the jobs' ids."""
        jobs = [slot.request for slot in self.slots if slot.request is not None and not slot.is_follower]
        jobs += [waiting.job for waiting in self._waiting]
        ids = [job.id for job in (*jobs, *(text.job for text in self._texts)) if job.adapter == adapter]
        for id in ids:
            self.cancel(id)
        for slot in self.slots:
            if slot.adapter == adapter:
                slot.adapter, slot.length, slot.tokens = None, 0, []
        return ids

    def reset(self) -> None:
        """Drop every job, what the slots hold and the decisions; only the estimates of the budget stay."""
        self.clear()
        self.decisions.clear()
        self._release_times_s.clear()
        for slot in self.slots:
            slot.tokens = []

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._texts or any(slot.request is not None for slot in self.slots))

    @property
    def text_count(self) -> int:
        """Texts being scored or embedded, or waiting to be."""
        return len(self._texts)

    def queue(self) -> list[Waiting]:
        """The requests that wait for a slot, the next one first, with the wait that recent releases suggest."""
        times_s = self._release_times_s
        interval_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else None
        return [
            Waiting(waiting.job.id, position, None if interval_s is None else round(position * interval_s, 1))
            for position, waiting in enumerate(self._ranked(), 1)
        ]

    def schedule(self, detokenize: Detokenize) -> Plan:
        """Admit waiting requests to free slots, then plan a step. `detokenize` is passed on to the slots."""
        self._admit_waiting(detokenize)
        decoding = [slot for slot in self.slots if slot.stage == "decode"]
        prefilling = [slot for slot in self.slots if slot.stage == "prefill" and not slot.is_follower]
        people = _people([*decoding, *prefilling])
        plan, waiting = Plan(), len(self._waiting)
        if people:
            plan.people_rows = sum(slot.stage == "decode" for slot in people)
            plan.may_flex = self._flex_joins(plan.people_rows, reads_prompts=plan.people_rows < len(people))
        if not plan.may_flex:
            decoding, prefilling = ([slot for slot in slots if slot in people] for slots in (decoding, prefilling))
            waiting = sum(waiting.job.tier != "flex" for waiting in self._waiting)
        plan.decodes, plan.drafts = decoding, self.draft(decoding)
        self._fill(plan, prefilling, *self.budget.token_limits(len(decoding), len(prefilling) + waiting))
        plan.with_flex = _runs_flex(plan)
        if plan.with_flex or not (any(slot.is_flex for slot in self.slots) or any(text.job.tier == "flex" for text in self._texts)):
            self._flex_ran_s = self._clock()
        return plan

    def record(self, plan: Plan, step_s: float) -> None:
        """Account for the duration of a step that `schedule` planned."""
        self.budget.record(plan.decode_rows, plan.prefill_tokens, plan.score_tokens, step_s)
        if plan.people_rows is not None:
            self.flex_time.record(plan.people_rows, plan.decode_only, plan.with_flex, step_s)

    def _flex_joins(self, people_rows: int, reads_prompts: bool) -> bool:
        """Whether flex work may join a step of people: if it has the time, and no prompt of theirs is being read; after `AGE_S` anyway."""
        if not reads_prompts and self.flex_time.allows(people_rows):
            return True
        return self._clock() - self._flex_ran_s > AGE_S

    def _fill(self, plan: Plan, prefilling: list[Slot], prefill_tokens: int, score_tokens: int) -> None:
        """Add prompts and texts to a step that decodes."""
        self._steps += 1
        texts = self._texts if plan.may_flex else [text for text in self._texts if text.job.tier != "flex"]
        if texts and self._cached_text is not None and self._cached_text not in texts:
            texts = [*texts, self._cached_text]  # the others would wait for the slot that it holds
        urgent = any(map(self._is_urgent, texts))
        prompts_first = bool(prefilling) and (self._prompts_next or not urgent)
        if prefilling and urgent:
            self._prompts_next = not self._prompts_next
        if plan.decodes:  # either prompts or texts, so that the step's duration tells the budget what each costs
            if prompts_first:
                self._plan_prefill(plan, prefilling, prefill_tokens)
            else:
                self._plan_scoring(plan, texts, score_tokens)
        elif prompts_first:
            self._plan_scoring(plan, texts, self._plan_prefill(plan, prefilling, prefill_tokens))
        else:
            self._plan_prefill(plan, prefilling, self._plan_scoring(plan, texts, score_tokens))

    def finish_text(self, text: TextState) -> None:
        """Forget a text that is read completely, or no longer wanted."""
        self._texts.remove(text)
        if self._cached_text is text:
            self._cached_text = None

    def _ranked(self) -> list[WaitingRequest]:
        now_s = self._clock()
        idle = [slot for slot in self.slots if slot.request is None]
        return sorted(self._waiting, key=lambda waiting: waiting.rank(now_s, continues_conversation(waiting.job, idle)))

    def _admit_waiting(self, detokenize: Detokenize) -> None:
        """Give free slots to the first in rank. One that needs more slots than are free blocks those behind it, or it would starve."""
        if not self._waiting or all(slot.request is not None for slot in self.slots):
            return
        for waiting in self._ranked():
            placement = place(waiting.job, self.slots)
            if placement is None:
                return
            self._waiting.remove(waiting)
            self._admit(waiting, placement, detokenize)

    def _admit(self, waiting: WaitingRequest, placement: Placement, detokenize: Detokenize) -> None:
        self._admissions += 1
        job, lead, prefix = waiting.job, placement.slots[0], placement.shared_prefix
        lead.admit(job, self._admissions, detokenize, placement.cached)
        lead.admitted_s = self._clock()
        lead.shared_prefix = prefix
        for follower in placement.slots[1:]:
            self._admissions += 1
            follower.admit(job, self._admissions, detokenize, 0)
            follower.tokens = []
        if job.search is not None:
            for slot in placement.slots:
                slot.group = placement.slots
        if prefix is not None and prefix.donor.request is None:  # the donor becomes the last to be reused: its prefix is still to be copied
            self._releases += 1
            prefix.donor.release_order = self._releases
        reused = placement.cached or (prefix.tokens if prefix else 0)
        waited_s = round(lead.admitted_s - waiting.arrived_s, 3)
        self.decisions.append(Decision(time.time(), job.id, lead.index, placement.reason, waited_s, reused, len(job.prompt)))

    def _plan_prefill(self, plan: Plan, prefilling: list[Slot], tokens: int) -> int:
        """Plan prompt chunks in the order of admission; returns how many of `tokens` are left. A slot whose prefix another slot is still
        prefilling waits for it.
        """
        for slot in sorted(prefilling, key=lambda slot: slot.admission):
            if tokens <= 0:
                break
            if slot.shared_prefix is not None:
                if slot.shared_prefix.pending:
                    continue
                _plan_prefix_copy(plan, slot)
            end = min(len(slot.tokens), slot.length + tokens)
            plan.prefill_chunks.append(PrefillChunk(slot, slot.length, end))
            tokens -= end - slot.length
        return tokens

    def _plan_scoring(self, plan: Plan, texts: Sequence[TextState], tokens: int) -> int:
        """Plan a window of each of `texts` in turn, whole if it fits; returns how many of `tokens` are left. Only one text at a time may
        have a window in several chunks. It goes first and last by turns, so that it does not hold up short texts.
        """
        texts = [text for text in texts if self._is_urgent(text) or text is self._cached_text] or texts
        cached_last = self._steps // 2 % 2 == 0
        for text in sorted(texts, key=lambda text: (text is self._cached_text) == cached_last):
            if tokens <= 0:
                break
            window = text.windows[0]
            start = window.start + text.computed
            cached = text.computed > 0 or window.end - start > tokens
            if cached and self._cached_text not in {None, text}:
                continue
            end = min(window.end, start + tokens)
            plan.score_chunks.append(ScoreChunk(text, window, start, end, cached))
            tokens -= end - start
            self._advance(text, window, end)
        return tokens

    def _is_urgent(self, text: TextState) -> bool:
        """Whether the text is not `flex` work, or has waited long enough to count as if it were not."""
        return text.job.tier == "default" or self._clock() - text.arrived_s > AGE_S

    def _advance(self, text: TextState, window: Window, end: int) -> None:
        """Note that `window` is planned up to token `end`; after a whole window the other texts have their turn. Not after the base's
        reading: its states are kept until the adapter has read the same.
        """
        if end < window.end:
            self._cached_text, text.computed = text, end - window.start
            return
        if self._cached_text is text:
            self._cached_text = None
        text.windows.popleft()
        text.computed = 0
        if window.base:
            return
        self._texts.remove(text)
        self._texts.append(text)


def _runs_flex(plan: Plan) -> bool:
    slots = [*plan.decodes, *(chunk.slot for chunk in plan.prefill_chunks)]
    return any(slot.is_flex for slot in slots) or any(chunk.text.job.tier == "flex" for chunk in plan.score_chunks)


def _people(slots: Sequence[Slot]) -> list[Slot]:
    """Those of `slots` that run requests of people, and those that prefill a prefix which such a request waits for."""
    people = [slot for slot in slots if not slot.is_flex]
    for slot in people:  # grows
        prefix = slot.shared_prefix
        if prefix is not None and prefix.pending and prefix.donor in slots and prefix.donor not in people:
            people.append(prefix.donor)
    return people


def _plan_prefix_copy(plan: Plan, slot: Slot) -> None:
    """Copy what the donor has of the slot's prompt, instead of computing it."""
    prefix, slot.shared_prefix = slot.shared_prefix, None
    assert prefix is not None
    # The donor's tokens are compared again: if it runs a search, they may have changed meanwhile.
    common = common_prefix_length(slot.tokens, prefix.donor.tokens) if prefix.valid else 0
    available = min(prefix.tokens, prefix.donor.length, common)
    if available > slot.length:
        plan.copies.append((prefix.donor, slot, available))
        slot.length = slot.cached = available
