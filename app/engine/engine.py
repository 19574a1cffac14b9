"""The serving loop: `step` schedules, runs one forward, and accounts for it. Chats and texts share every step.

Single-threaded; knows no processes, queues or HTTP. Text leaves it only in events.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from app.engine.answers import Answers, Outputs, Row, States
from app.engine.batch import FlatBatch, flatten_plan
from app.engine.budget import MIN_TOKENS_RECORDED, StepBudget
from app.engine.cache import SlotCache
from app.engine.detokenizer import Detokenize
from app.engine.drafts import MAX_TOKENS, Drafter
from app.engine.events import Columns, Delta, Event, Failed, Report, Scored
from app.engine.flat import FlatModel
from app.engine.grammar import GrammarCompiler, GrammarState
from app.engine.graphs import create_graphs
from app.engine.group import SearchGroup, create_search_group
from app.engine.jobcheck import JobCheck
from app.engine.layout import layout_of
from app.engine.lora import AdapterReader, LoadedAdapter
from app.engine.pages import PagePool
from app.engine.plan import Plan
from app.engine.recorded import RecordedSteps, RunningStep
from app.engine.request import Generate, Job
from app.engine.sampler import token_logprobs
from app.engine.scheduler import Scheduler
from app.engine.slot import Slot
from app.engine.texts import Texts
from app.engine.threads import create_thread_count
from app.errors import EngineFailed, InvalidRequest, LitmusError, NotReady, SetupError
from app.scoring.statistics import CHUNK_ROWS

QUEUE_EVENT_INTERVAL_S = 0.5  # waiting requests get their position in the queue this often
UNLOADED = "the adapter was unloaded before the answer was complete"
OUT_OF_MEMORY = "the device ran out of memory in this step; send the request again, with a shorter prompt or a smaller max_tokens"
GRAMMAR_WAIT_S = 0.01  # a step waits at most this long for a grammar when there is nothing else to do


@dataclass(frozen=True, slots=True)
class EngineLimits:
    slots: int
    context: int  # tokens of a prompt and its answer together
    step_tokens: int  # prefill and score tokens that may join a step
    stretch: float = 1.9  # a decode step may last this many times as long when they join
    drafts: bool = True  # draft tokens where it makes answers faster


class Engine:
    """`performer` chats, scores and embeds. `observer`, if there is one, only computes statistics of texts (for `Score.observe`)."""

    def __init__(
        self,
        performer: FlatModel,
        detokenize: Detokenize,
        end_tokens: frozenset[int],
        limits: EngineLimits,
        observer: FlatModel | None = None,
        grammar_compiler: GrammarCompiler | None = None,
    ) -> None:
        self.performer = performer
        self.observer = observer
        self.limits = limits
        slots, budget = [Slot(index) for index in range(limits.slots)], StepBudget(limits.step_tokens, limits.stretch)
        self.scheduler = Scheduler(slots, budget, SlotCache(PagePool(performer.pages, performer.page_tokens), performer.has_states))
        vocabulary = min(model.vocabulary for model in (performer, observer) if model is not None)
        has_grammars = grammar_compiler is not None
        self._check = JobCheck(limits.context, vocabulary, performer, self.scheduler, has_grammars)
        self._texts = Texts(performer, observer)
        self._detokenize = detokenize
        self._end_tokens = end_tokens  # of the model; a request may add stop tokens
        self._grammar_compiler = grammar_compiler
        self._compiling: dict[str, tuple[Generate, Future[GrammarState]]] = {}  # by the request's id
        self._grammar_states: dict[str, GrammarState] = {}  # by the request's id
        self._groups: dict[str, SearchGroup] = {}  # by the request's id
        self.drafter = Drafter(self.scheduler.budget, self._grammar_states, self._end_tokens_of)
        self.drafter.is_on = limits.drafts
        self.scheduler.draft = self.drafter.draft
        self._answers = Answers(self._grammar_states, self.drafter, self._end_tokens_of)
        self.recorded: RecordedSteps | None = None  # of steps that are recorded
        self._ahead: RunningStep | None = None  # the step that follows the latest one, whose tokens are not read yet
        self._ended_s = self._step_s = 0.0  # when the latest step ended, by `time.perf_counter`, and how long it took
        self._pending_events: list[Event] = []  # returned by the next step, before its own
        self._thread_count = create_thread_count() if performer.is_on_kernel else None
        self.reader: AdapterReader | None = None  # of adapters that are to be added
        self.rows = 0  # tokens that the running step computes, or the latest one did
        self._last_queue_report_s = 0.0  # when the waiting requests last got their positions

    def submit(self, job: Job) -> None:
        """Accept a job. One that can never be served fails with an event of the next step."""
        job = job.within(self.limits.context) if isinstance(job, Generate) else job
        error = self._check.error_of(job)
        if error is not None:
            self._pending_events.append(Failed(job.id, error))
        elif isinstance(job, Generate) and job.grammar is not None and self._grammar_compiler is not None:
            self._compiling[job.id] = job, self._grammar_compiler.compile(job.grammar, job.max_tokens, job.sampled)
        elif isinstance(job, Generate) or job.windows:
            self.scheduler.add(job)
        else:  # the text has fewer than two tokens, so there is nothing to predict
            self._pending_events.append(Scored(job.id, Columns()))

    def cancel(self, id: str) -> bool:
        """Drop a job; returns whether it was found."""
        self._forget(id)
        if id in self._compiling:
            _, future = self._compiling.pop(id)
            future.cancel()
            return True
        return self.scheduler.cancel(id)

    def fail_all(self, error: LitmusError) -> list[Event]:
        """Fail every job with `error`; the engine itself stays usable."""
        ids = [*self._compiling, *self.scheduler.clear()]
        for by_id in (self._compiling, self._grammar_states, self._groups):
            by_id.clear()
        self.drafter.clear()
        self._ahead = None
        return [Failed(id, error) for id in ids]

    def add_adapter(self, loaded: LoadedAdapter) -> None:
        """Raises `SetupError` if the model does not compute with it, or has one of that name."""
        if loaded.facts.name in self.performer.adapters.names:
            raise SetupError(f"adapter '{loaded.facts.name}' is there already")
        self.performer.add_adapter(loaded.facts.name, loaded.changes)

    def remove_adapter(self, name: str) -> list[Event]:
        """Forget an adapter, and fail the jobs that it still has."""
        compiling = [id for id, (job, _) in self._compiling.items() if job.adapter == name]
        ids = [*compiling, *self.scheduler.forget(name)]
        for id in ids:
            self.cancel(id)
        self.performer.adapters.remove(name)
        return [Failed(id, NotReady(UNLOADED, code="adapter_unloaded")) for id in ids]

    def report(self, id: str) -> Report:
        slots = tuple(slot.report() for slot in self.scheduler.slots)
        scheduler = self.scheduler
        return Report(
            id, slots, tuple(scheduler.waiting.report()), scheduler.text_count, tuple(scheduler.decisions), scheduler.cache_report()
        )

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._pending_events and not self._compiling

    def record_steps(self) -> None:
        """Record the steps that only decode as CUDA graphs, where the device has them. Call this before anything is submitted."""
        graphs = create_graphs(self.performer, self.limits.slots + MAX_TOKENS)
        if graphs is not None:
            self.recorded = RecordedSteps(graphs, self.scheduler, self._answers, self.drafter)
            self.scheduler.budget.min_tokens = min(MIN_TOKENS_RECORDED, self.limits.step_tokens)

    def step(self) -> list[Event]:
        """Schedule, run, account. Returns at most one delta a decoding slot; without a plan, only events that were pending."""
        self._add_compiled()
        events, self._pending_events = self._pending_events, []
        running, self._ahead = self._ahead, None
        if running is not None and not running.counts:  # all of its requests were cancelled
            running = None
        plan = self.scheduler.schedule(self._detokenize) if running is None else running.plan
        events += [*self.scheduler.take_notices(), *self._queue_events()]
        if plan.empty:
            return events
        now_s = time.perf_counter()  # a step launched ahead began when the one before ended, but for a pause since then
        start_s = now_s if running is None else max(self._ended_s, now_s - self._step_s)
        try:
            running = running or self._run(plan, events)
            if running is not None:
                self._account(running, events)
            else:
                self.performer.wait()  # a step that samples nothing would seem to take no time
        except torch.OutOfMemoryError:
            return events + self._fail_step(plan)
        self._ended_s = time.perf_counter()
        self._step_s = self._ended_s - start_s
        self.scheduler.record(plan, self._step_s)
        if self._thread_count is not None:
            self._thread_count.step_ended(self._step_s)
        return events

    def _fail_step(self, plan: Plan) -> list[Event]:
        """Fail what a step was for that ran out of memory; the rest waits on. If the step's copies were not made, or states may be half
        written, everything fails: what the pages hold is unknown.
        """
        error = EngineFailed(OUT_OF_MEMORY)
        if plan.copies or self.performer.has_states:
            return self.fail_all(error)
        ids = plan.job_ids(self.scheduler.texts.texts)
        for id in ids:
            self.cancel(id)
        return [Failed(id, error) for id in ids]

    def _add_compiled(self) -> None:
        """Pass the requests whose grammars are compiled to the scheduler."""
        if self._compiling and self.scheduler.idle and not self._pending_events:
            wait([future for _, future in self._compiling.values()], GRAMMAR_WAIT_S, "FIRST_COMPLETED")
        for id in [id for id, (_, future) in self._compiling.items() if future.done()]:
            job, future = self._compiling.pop(id)
            try:
                self._grammar_states[id] = future.result()
            except InvalidRequest as error:
                self._pending_events.append(Failed(id, error))
            else:
                self.scheduler.add(job)

    def _forget(self, id: str) -> None:
        self._grammar_states.pop(id, None)
        self._groups.pop(id, None)
        self.drafter.forget(id)

    def _queue_events(self) -> list[Event]:
        now_s = time.monotonic()
        if now_s - self._last_queue_report_s < QUEUE_EVENT_INTERVAL_S:
            return []
        self._last_queue_report_s = now_s
        return list(self.scheduler.waiting.report())

    def _run(self, plan: Plan, events: list[Event]) -> RunningStep | None:
        """Run the plan, or give it to the device as a recorded step. Appends to `events` bit by bit, so that events survive when the device
        runs out of memory after them.
        """
        model = self.performer
        model.copy(plan.copies)
        plan.copies = []
        batch = flatten_plan(plan, model.scoring_pages, model.decodes_on_kernel)
        self.rows = len(batch.ids)
        if self.recorded is not None and (running := self.recorded.launch(plan, batch)) is not None:
            return running
        layout = layout_of(batch.decodes, batch.spans, model.page_tokens, model.device)
        hidden = model.forward(batch.ids, batch.positions, layout, batch.adapted)
        self._finish_slots(plan, batch, hidden, events)
        for text, event in self._texts.account(batch, hidden):
            self.scheduler.texts.finish(text)
            events.append(event)
        return None

    def _account(self, running: RunningStep, events: list[Event]) -> None:
        """Account for a recorded step. The one after it is on its way before this one's tokens are read, if that can be."""
        assert self.recorded is not None
        self.rows = running.row_count
        following = self.recorded.follow(running)
        own, outputs = self.recorded.read(running, following is not None)
        for slot in own:
            slot.length += 1
        self._go_on(own, outputs, events)
        self._ahead = following if following is not None and following.counts else None

    def _go_on(self, own: Mapping[Slot, Sequence[Row]], outputs: Outputs, events: list[Event]) -> None:
        """Go on with the answers of slots, from what the step has computed for their rows."""
        for slot, event in self._answers.advance(own, outputs) if own else ():
            if isinstance(event, Failed) or event.finish is not None:
                self._release(slot, event.id)
            events.append(event)

    def _finish_slots(self, plan: Plan, batch: FlatBatch, hidden: torch.Tensor, events: list[Event]) -> None:
        """`hidden` are the states `[rows, hidden]` of the whole step."""
        for slot in plan.decodes:
            slot.length += 1
        for rows, chunk in batch.prefill_chunks:
            chunk.slot.length = chunk.end
            self._account_prompt(chunk.slot, chunk.start, hidden[rows])
            events += chunk.slot.progress(time.monotonic())
        if not batch.sampled:
            return
        answers = [(row, slot) for row, slot in batch.sampled if not slot.group]
        self._go_on(self._answers.rows(answers, plan.drafts), States(self.performer, hidden), events)
        row_of = {slot: row for row, slot in batch.sampled if slot.group}
        for lead in [slot for slot in row_of if not slot.is_follower]:
            states = hidden[[row_of[member] for member in lead.group if member in row_of]]
            events += self._advance_search(lead, self.performer.head(states), states)

    def _account_prompt(self, slot: Slot, start: int, hidden: torch.Tensor) -> None:
        """Compute what the request needs of its prompt itself. `hidden` are the states of the prompt's tokens from `start`."""
        request = slot.request
        assert request is not None
        if slot.group:
            group = self._groups.get(request.id) or create_search_group(request, self.scheduler.cache.fork, self._end_tokens_of(request))
            self._groups[request.id] = group
            group.add_prompt_states(hidden)
        if request.prompt_logprobs is None:
            return
        targets = request.prompt[start + 1 : start + 1 + len(hidden)]
        for first in range(0, len(targets), CHUNK_ROWS):
            tokens = targets[first : first + CHUNK_ROWS]
            logits = self.performer.head(hidden[first : first + len(tokens)])
            logprobs = token_logprobs(logits, tokens, [request.prompt_logprobs] * len(tokens))
            slot.prompt_logprobs += [logprob for logprob in logprobs if logprob is not None]

    def _release(self, slot: Slot, id: str) -> None:
        self.scheduler.release(slot)
        self._forget(id)

    def _advance_search(self, lead: Slot, logits: torch.Tensor, hidden: torch.Tensor) -> list[Event]:
        request = lead.request
        assert request is not None
        group = self._groups[request.id]
        has_started = lead.generated > 0
        if not has_started:
            lead.prefill_s = time.monotonic() - lead.admitted_s
        event = group.advance(lead.group, logits, hidden) if has_started else group.start(lead.group, logits)
        if isinstance(event, Delta) and event.finish is not None:
            self._release(lead, request.id)
        return [event] if event is not None else []

    def _end_tokens_of(self, request: Generate) -> frozenset[int]:
        if request.ignore_eos:
            return request.stop_tokens
        return self._end_tokens | request.stop_tokens if request.stop_tokens else self._end_tokens
