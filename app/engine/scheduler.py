"""Chooses what runs in the next step. Policy only, decided from lengths, limits and a clock. Standard library, no torch.

Every decoding slot of a person runs in every step. The tokens that the budget allows beside them go to prompts and to texts to score, in
turns. `flex` work joins a person's step when the budget has the time for it. A free slot goes to the request that ranks first: those of
whose prompt at least half is in the cache, as of a conversation that goes on, then new ones, then `flex` work; age raises its priority.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from app.engine.budget import FlexTime, StepBudget
from app.engine.cache import SlotCache, needs_whole_prompt
from app.engine.detokenizer import Detokenize
from app.engine.drafts import Draft
from app.engine.events import Decision
from app.engine.notices import SetBack
from app.engine.pages import CacheReport
from app.engine.placement import place, shared_prefix_of
from app.engine.plan import Plan, PrefillChunk
from app.engine.request import Generate, Job
from app.engine.requestqueue import RequestQueue, WaitingRequest
from app.engine.slot import Slot
from app.engine.textqueue import AGE_S, TextQueue

MAX_DECISIONS = 100


class Scheduler:
    def __init__(self, slots: Sequence[Slot], budget: StepBudget, cache: SlotCache, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.budget = budget
        self.flex_time = FlexTime()
        self.cache = cache
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.draft: Callable[[Sequence[Slot]], dict[Slot, Draft]] = lambda _: {}  # called with the slots that decode
        self._clock = clock
        self.waiting = RequestQueue(cache, clock)
        self.texts = TextQueue(clock)
        self._steps = 0
        self._prompts_next = True  # whether prompts come before texts in the next step that could take both
        self._flex_ran_s = clock()  # when flex work was in a step for the last time, or there was none
        self._admissions = 0
        self._notices: list[SetBack] = []
        self._set_back_count = 0

    def add(self, job: Job) -> None:
        if self.idle:
            self.waiting.forget_releases()
        if isinstance(job, Generate):
            self.waiting.add(job)
        else:
            self.texts.add(job)

    def cancel(self, id: str) -> bool:
        """Drop a job, running or waiting; returns whether it was found. Its slots are free for the next step."""
        for slot in self.slots:
            if slot.request is not None and slot.request.id == id:
                self.release(slot)
                return True
        return self.texts.cancel(id) or self.waiting.cancel(id)

    def release(self, slot: Slot) -> None:
        """Free the slot and the other slots of its group. What their pages hold can be found until the pages are needed."""
        self.waiting.slot_released()
        members = slot.group or (slot,)
        for member in members:
            self.cache.release(member)
        for member in members:
            member.release()

    def clear(self) -> list[str]:
        """Drop every job and what the cache holds; returns the jobs' ids."""
        ids = [slot.request.id for slot in self.slots if slot.request is not None and not slot.is_follower]
        ids += [waiting.job.id for waiting in self.waiting.requests] + [text.job.id for text in self.texts.texts]
        self.cache.clear(self.slots)
        for slot in self.slots:
            slot.release()
        self.waiting.requests.clear()
        self.texts.clear()
        self._notices.clear()
        return ids

    def forget(self, adapter: str) -> list[str]:
        """Drop the jobs of an adapter, and what the cache holds of it; returns the jobs' ids."""
        jobs = [slot.request for slot in self.slots if slot.request is not None and not slot.is_follower]
        others = (*(waiting.job for waiting in self.waiting.requests), *(text.job for text in self.texts.texts))
        ids = [job.id for job in (*jobs, *others) if job.adapter == adapter]
        for id in ids:
            self.cancel(id)
        self.cache.pool.forget(adapter)
        return ids

    def reset(self) -> None:
        """Drop every job, what the cache holds and the decisions; only the estimates of the budget stay."""
        self.clear()
        self.decisions.clear()
        self.waiting.forget_releases()
        self._set_back_count = self.cache.prompt_tokens = self.cache.found_tokens = 0

    @property
    def idle(self) -> bool:
        return not (self.waiting.requests or self.texts.texts or any(slot.request is not None for slot in self.slots))

    def take_notices(self) -> list[SetBack]:
        """Of the requests that were set back; each is returned once."""
        notices, self._notices = self._notices, []
        return notices

    def cache_report(self) -> CacheReport:
        cache = self.cache
        return CacheReport(cache.pool.page_tokens, cache.pool.counts(), cache.prompt_tokens, cache.found_tokens, self._set_back_count)

    @property
    def text_count(self) -> int:
        """Texts being scored or embedded, or waiting to be."""
        return len(self.texts.texts)

    def schedule(self, detokenize: Detokenize) -> Plan:
        """Admit waiting requests to free slots, then plan a step. `detokenize` is passed on to the slots."""
        self._admit_waiting(detokenize)
        decoding = [slot for slot in self.slots if slot.stage == "decode"]
        prefilling = [slot for slot in self.slots if slot.stage == "prefill" and not slot.is_follower]
        people = _people([*decoding, *prefilling])
        plan, waiting = Plan(), len(self.waiting.requests)
        if people:
            plan.people_rows = sum(slot.stage == "decode" for slot in people)
            plan.may_flex = self._flex_joins(plan.people_rows, reads_prompts=plan.people_rows < len(people))
        if not plan.may_flex:
            decoding, prefilling = ([slot for slot in slots if slot in people] for slots in (decoding, prefilling))
            waiting = sum(waiting.job.tier != "flex" for waiting in self.waiting.requests)
        plan.decodes = list(decoding)
        for slot in sorted(decoding, key=_protection):
            if slot.request is not None and not self._make_room(slot, slot.length + 1, plan):
                self._set_back(slot, plan)
        plan.drafts = self._with_pages(self.draft(plan.decodes))
        self._fill(plan, prefilling, *self.budget.token_limits(len(plan.decodes), len(prefilling) + waiting))
        self._note_flex(plan)
        if not plan.empty:
            plan.copies = self.cache.take_copies()
        return plan

    def repeat(self, plan: Plan, slots: Sequence[Slot]) -> Plan | None:
        """The step after `plan`, which only decodes, for its `slots` that go on; None if there is more to do, or a page missing."""
        running = {slot for slot in self.slots if slot.request is not None}
        may_admit = self.waiting.requests and len(running) < len(self.slots)
        if may_admit or self.texts.texts or not running.issubset(plan.decodes):
            return None
        if not all(self.cache.reserve(slot, slot.length + 2) for slot in slots):
            return None
        people = None if plan.people_rows is None else sum(not slot.is_flex for slot in slots)
        return self._note_flex(replace(plan, decodes=list(slots), drafts={}, copies=[], people_rows=people))

    def record(self, plan: Plan, step_s: float) -> None:
        """Account for the duration of a step that `schedule` planned."""
        self.budget.record(plan.decode_rows, plan.prefill_tokens, plan.score_tokens, step_s)
        if plan.people_rows is not None:
            self.flex_time.record(plan.people_rows, plan.decode_only, plan.with_flex, step_s)

    def _note_flex(self, plan: Plan) -> Plan:
        plan.with_flex = plan.runs_flex
        if plan.with_flex or not (any(slot.is_flex for slot in self.slots) or self.texts.has_flex):
            self._flex_ran_s = self._clock()
        return plan

    def _flex_joins(self, people_rows: int, reads_prompts: bool) -> bool:
        """Whether flex work may join a step of people: if it has the time, and no prompt of theirs is being read; after `AGE_S` anyway."""
        if not reads_prompts and self.flex_time.allows(people_rows):
            return True
        return self._clock() - self._flex_ran_s > AGE_S

    def _fill(self, plan: Plan, prefilling: list[Slot], prefill_tokens: int, score_tokens: int) -> None:
        """Add prompts and texts to a step that decodes."""
        self._steps += 1
        texts = self.texts.candidates(plan.may_flex)
        urgent = any(map(self.texts.is_urgent, texts))
        prompts_first = bool(prefilling) and (self._prompts_next or not urgent)
        if prefilling and urgent:
            self._prompts_next = not self._prompts_next
        if plan.decodes:  # either prompts or texts, so that the step's duration tells the budget what each costs
            if prompts_first:
                self._plan_prefill(plan, prefilling, prefill_tokens)
            else:
                self.texts.plan(plan, texts, score_tokens, self._steps)
        elif prompts_first:
            self.texts.plan(plan, texts, self._plan_prefill(plan, prefilling, prefill_tokens), self._steps)
        else:
            self._plan_prefill(plan, prefilling, self.texts.plan(plan, texts, score_tokens, self._steps))

    def _admit_waiting(self, detokenize: Detokenize) -> None:
        """Give free slots to the first in rank. One that needs more slots than are free blocks those behind it, or it would starve."""
        if not self.waiting.requests or all(slot.request is not None for slot in self.slots):
            return
        for waiting in self.waiting.ranked():
            slots = place(waiting.job, self.slots)
            if slots is None or not self.cache.has_room(waiting.job, waiting.digests, self.slots):
                return
            self.waiting.requests.remove(waiting)
            self._admit(waiting, slots, detokenize)

    def _admit(self, waiting: WaitingRequest, slots: tuple[Slot, ...], detokenize: Detokenize) -> None:
        job, lead = waiting.job, slots[0]
        for slot in slots:
            self._admissions += 1
            slot.admit(job, self._admissions, detokenize)
            slot.group = slots if job.search is not None else ()
        for follower in slots[1:]:
            follower.tokens = []
        lead.admitted_s, lead.arrived_s, lead.arrival = self._clock(), waiting.arrived_s, waiting.arrival
        self.cache.adopt(lead)
        others = [slot for slot in self.slots if slot not in slots]
        lead.shared_prefix = None if needs_whole_prompt(job) else shared_prefix_of(job, others, lead.length)
        prefix, holder, reused = lead.shared_prefix, "the cache", lead.cached
        if prefix is not None:
            holder, reused = f"slot {prefix.donor.index}", prefix.tokens
        reason = f"{holder} holds {reused} of the prompt's {len(job.prompt)} tokens" if reused else "nothing of the prompt is in the cache"
        self.cache.prompt_tokens += len(job.prompt)
        self.cache.found_tokens += reused
        waited_s = round(lead.admitted_s - waiting.arrived_s, 3)
        self.decisions.append(Decision(time.time(), job.id, lead.index, reason, waited_s, reused, len(job.prompt)))

    def _plan_prefill(self, plan: Plan, prefilling: list[Slot], tokens: int) -> int:
        """Plan prompt chunks in the order in which the requests came, `flex` ones last; returns how many of `tokens` are left. A slot
        whose prefix another slot is still prefilling waits for it.
        """
        for slot in sorted(prefilling, key=_protection):
            if tokens <= 0 or slot.request is None:  # it was set back
                continue
            if slot.shared_prefix is not None:
                if slot.shared_prefix.pending:
                    continue
                self._adopt_prefix(slot)
            prompt = len(slot.request.prompt)  # a chunk is of the prompt or of the answer
            end = min(len(slot.tokens) if slot.length >= prompt else prompt, slot.length + tokens)
            if not self._make_room(slot, end, plan):
                end = min(end, len(slot.pages) * self.cache.pool.page_tokens)
            if end <= slot.length:
                continue
            plan.prefill_chunks.append(PrefillChunk(slot, slot.length, end))
            tokens -= end - slot.length
        return tokens

    def _make_room(self, slot: Slot, end: int, plan: Plan) -> bool:
        """Let the slot write up to position `end`; if no page is left, set back those that are less protected. False if there is none."""
        while not self.cache.reserve(slot, end):
            others = [other for other in self.slots if other.request is not None and other.pages and not other.group]
            weakest = max(others, key=_protection, default=slot)
            if weakest is slot or (not slot.group and _protection(weakest) < _protection(slot)):
                return False
            self._set_back(weakest, plan)
        return True

    def _with_pages(self, drafts: dict[Slot, Draft]) -> dict[Slot, Draft]:
        """The drafts that the pages left have room for: nobody is set back for one."""
        kept = {}
        for slot, draft in drafts.items():
            if self.cache.reserve(slot, slot.length + 1 + len(draft.tokens)):
                kept[slot] = draft
            elif draft.choices:
                kept[slot] = Draft((), draft.choices[:1])
        return kept

    def _set_back(self, slot: Slot, plan: Plan) -> None:
        """Let the request wait again, with what was sampled so far. What its pages hold can be found until they are needed."""
        job, tokens = slot.rest, len(slot.tokens)
        self.waiting.add_back(slot)
        if slot in plan.decodes:
            plan.decodes.remove(slot)
            plan.drafts.pop(slot, None)
        plan.prefill_chunks = [chunk for chunk in plan.prefill_chunks if chunk.slot is not slot]
        self._set_back_count += 1
        self._notices.append(SetBack(job.id))
        reason = f"set back with {tokens} tokens: no page of the cache was left"
        self.decisions.append(Decision(time.time(), job.id, slot.index, reason, 0.0, 0, len(job.prompt)))
        self.cache.release(slot)
        slot.release()

    def _adopt_prefix(self, slot: Slot) -> None:
        """Take what another slot has of the slot's prompt, or had when its request ended, instead of computing it."""
        prefix, slot.shared_prefix = slot.shared_prefix, None
        assert prefix is not None
        if prefix.valid:
            self.cache.keep(prefix.donor)
        self.cache.adopt(slot)


def _people(slots: Sequence[Slot]) -> list[Slot]:
    """Those of `slots` that run requests of people, and those that prefill a prefix which such a request waits for."""
    people = [slot for slot in slots if not slot.is_flex]
    for slot in people:  # grows
        prefix = slot.shared_prefix
        if prefix is not None and prefix.pending and prefix.donor in slots and prefix.donor not in people:
            people.append(prefix.donor)
    return people


def _protection(slot: Slot) -> tuple[bool, int]:
    """Whose pages others get last comes first: `flex` requests lose theirs before others, and the latest before those that came earlier."""
    return slot.is_flex, slot.arrival
