"""The loop that serves: `step` schedules, runs one forward, and accounts for it. Chat and scoring share every step.

Single-threaded; knows nothing of processes, queues and HTTP. Text leaves it only in events.
"""

import time
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from app.engine.batch import Rows, lay_out, lay_out_passages
from app.engine.budget import Pace
from app.engine.detokenizer import Decode
from app.engine.flat import FlatModel
from app.engine.grammar import Grammar, Grammars
from app.engine.group import Group, group_of
from app.engine.layout import layout_of
from app.engine.request import Columns, Delta, Event, Failed, Generate, Job, Report, Scored, TokenLogprob, joined
from app.engine.sampler import Draw, logprobs, sample
from app.engine.scheduler import Passage, Plan, Scheduler
from app.engine.slot import Slot
from app.errors import ContextTooLong, EngineFailed, InvalidRequest, LitmusError
from app.scoring.statistics import CHUNK, columns

NEWS_S = 0.5  # who waits hears this often how it stands
COMPILE_S = 0.01  # with nothing else to do, a step waits this long for a grammar


@dataclass(frozen=True, slots=True)
class Limits:
    slots: int
    context: int  # tokens a slot holds
    step_tokens: int  # prompt and text tokens that may join a step
    stretch: float = 1.9  # how many times its usual length a decoding step may last for their sake


class Engine:
    """`performer` chats and scores; `observer`, if there is one, only reads (for `Score.observe`)."""

    def __init__(
        self,
        performer: FlatModel,
        decode: Decode,
        ends: frozenset[int],
        limits: Limits,
        observer: FlatModel | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.performer = performer
        self.observer = observer
        self.limits = limits
        self.scheduler = Scheduler([Slot(index) for index in range(limits.slots)], Pace(limits.step_tokens, limits.stretch))
        self._vocabulary = min(model.vocabulary for model in (performer, observer) if model is not None)
        self._decode = decode
        self._ends = ends
        self._grammars = grammars
        self._compiling: dict[str, tuple[Generate, Future[Grammar]]] = {}
        self._forms: dict[str, Grammar] = {}  # of the answers that have one, by the request's id
        self._groups: dict[str, Group] = {}
        self._due: list[Event] = []  # what the next step has to say beside its own
        self._news_s = 0.0

    def submit(self, job: Job) -> None:
        """What can never fit is refused at once, by an event of the next step."""
        error = self._refusal(job)
        if error is not None:
            self._due.append(Failed(job.id, error))
        elif isinstance(job, Generate) and job.grammar is not None and self._grammars is not None:
            self._compiling[job.id] = job, self._grammars.start(job.grammar)
        elif isinstance(job, Generate) or job.windows:
            self.scheduler.add(job)
        else:  # too short for a single prediction
            self._due.append(Scored(job.id, Columns()))

    def cancel(self, id: str) -> bool:
        self._forget(id)
        if id in self._compiling:
            _, coming = self._compiling.pop(id)
            return coming.cancel() or True
        return self.scheduler.cancel(id)

    def fail_all(self, error: LitmusError) -> list[Event]:
        """Give up every job with `error`; the engine itself stays usable."""
        ids = [*self._compiling, *self.scheduler.clear()]
        for held in (self._compiling, self._forms, self._groups):
            held.clear()
        return [Failed(id, error) for id in ids]

    def report(self, id: str) -> Report:
        slots = tuple(slot.residence() for slot in self.scheduler.slots)
        return Report(id, slots, tuple(self.scheduler.queue()), self.scheduler.texts, tuple(self.scheduler.decisions))

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._due and not self._compiling

    def step(self) -> list[Event]:
        """Schedule, run, account. At most one delta a decoding slot; nothing when there is nothing to do."""
        self._collect()
        events, self._due = self._due, []
        plan = self.scheduler.schedule(self._decode)
        events += self._news()
        if plan.empty:
            return events
        start_s = time.perf_counter()
        try:
            self._serve(plan, events)
        except torch.OutOfMemoryError:
            return events + self.fail_all(EngineFailed("the device ran out of memory on this step; send the request again, or less"))
        took_s = time.perf_counter() - start_s
        self.scheduler.pace.learn(len(plan.decodes), plan.prompt_tokens, plan.text_tokens, took_s)
        return events

    def _collect(self) -> None:
        """Requests whose grammars are compiled join the others."""
        if self._compiling and self.scheduler.idle and not self._due:
            wait([coming for _, coming in self._compiling.values()], COMPILE_S, "FIRST_COMPLETED")
        for id in [id for id, (_, coming) in self._compiling.items() if coming.done()]:
            job, coming = self._compiling.pop(id)
            try:
                self._forms[id] = coming.result()
            except InvalidRequest as error:
                self._due.append(Failed(id, error))
            else:
                self.scheduler.add(job)

    def _forget(self, id: str) -> None:
        self._forms.pop(id, None)
        self._groups.pop(id, None)

    def _refusal(self, job: Job) -> LitmusError | None:
        tokens, field = (job.prompt, "prompt") if isinstance(job, Generate) else (job.tokens, "input")
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
            return InvalidRequest(f"a token of the {field} is none of the {self._vocabulary} the model has", param=field)
        return self._misfit(job) if isinstance(job, Generate) else None

    def _misfit(self, job: Generate) -> LitmusError | None:
        if not job.prompt or job.max_tokens < 1:
            return InvalidRequest("there is nothing to continue, or nothing may be added to it", param="prompt")
        if len(job.prompt) + job.max_tokens > self.limits.context:
            return ContextTooLong(
                f"prompt {len(job.prompt)} + max_tokens {job.max_tokens} are more than the {self.limits.context} tokens of a slot"
            )
        if not 1 <= job.width <= min(self.limits.slots, self._vocabulary):
            return InvalidRequest(f"the search needs {job.width} slots at once and there are {self.limits.slots}")
        if job.search is not None and (job.logprobs is not None or job.prompt_logprobs is not None):
            return InvalidRequest("a search has no log-probabilities to give", param="logprobs")
        return self._formless(job) if job.grammar is not None else None

    def _formless(self, job: Generate) -> LitmusError | None:
        """Why the answer cannot be held to a grammar."""
        if self._grammars is None:
            return InvalidRequest("this model has no tokenizer that a grammar could be applied to", param="response_format")
        if job.search is not None or job.sampling.bad_words or job.sampling.min_tokens or job.ignore_eos or job.stop_tokens:
            return InvalidRequest("what decides by itself which tokens may come, or end the answer, does not go with a grammar")
        return None

    def _news(self) -> list[Event]:
        now_s = time.monotonic()
        if now_s - self._news_s < NEWS_S:
            return []
        self._news_s = now_s
        return list(self.scheduler.queue())

    def _serve(self, plan: Plan, events: list[Event]) -> None:
        """Adds to `events` as it goes: what has been accounted for is said, even if the device runs out of memory behind it."""
        for source, target, tokens in plan.copies:
            self.performer.copy([source.index], [target.index], 0, tokens)
        rows = lay_out(plan, self.performer.reading_slot)
        layout = layout_of([(slot.index, slot.length) for slot in plan.decodes], rows.spans, self.limits.context, self.performer.device)
        hidden = self.performer.forward(rows.ids, rows.positions, layout)
        self._account_slots(plan, rows, hidden, events)
        self._account_readings(rows, hidden, events)

    def _account_slots(self, plan: Plan, rows: Rows, hidden: torch.Tensor, events: list[Event]) -> None:
        for slot in plan.decodes:
            slot.length += 1
        for span, chunk in rows.chunks:
            chunk.slot.length = chunk.end
            self._read_prompt(chunk.slot, chunk.start, hidden[span.first : span.last])
        if not rows.sampling:
            return
        hidden = hidden[[row for row, _ in rows.sampling]]
        logits = self.performer.head(hidden)
        slots = [slot for _, slot in rows.sampling]
        single = [place for place, slot in enumerate(slots) if not slot.group]
        events += self._draw([slots[place] for place in single], logits if len(single) == len(slots) else logits[single])
        for lead in [slot for slot in slots if slot.group and not slot.follows]:
            places = [slots.index(member) for member in lead.group if member in slots]
            events += self._search(lead, logits[places], hidden[places])

    def _read_prompt(self, slot: Slot, start: int, hidden: torch.Tensor) -> None:
        """What is asked of the prompt itself: `hidden` are the states of its tokens from `start`."""
        request = slot.request
        assert request is not None
        if slot.group:
            group = self._groups.get(request.id) or group_of(request, self.performer, self._ends_of(request))
            self._groups[request.id] = group
            group.read(hidden)
        if request.prompt_logprobs is None:
            return
        targets = request.prompt[start + 1 : start + 1 + len(hidden)]
        for first in range(0, len(targets), CHUNK):
            part = targets[first : first + CHUNK]
            given = logprobs(self.performer.head(hidden[first : first + len(part)]), part, [request.prompt_logprobs] * len(part))
            slot.prompt_logprobs += [each for each in given if each is not None]

    def _draw(self, slots: list[Slot], logits: torch.Tensor) -> list[Event]:
        """One token for each of the slots, whose next tokens have `logits` `[slots, vocab]`."""
        if not slots:
            return []
        requests = [slot.request for slot in slots if slot.request is not None]
        draws = [self._draw_of(slot, request) for slot, request in zip(slots, requests, strict=True)]
        tokens = sample(logits, draws)
        asked = [request.logprobs for request in requests]
        given = logprobs(logits, tokens, asked) if any(top is not None for top in asked) else [None] * len(slots)
        return [self._tell(slot, draw, token, said) for slot, draw, token, said in zip(slots, draws, tokens, given, strict=True)]

    def _draw_of(self, slot: Slot, request: Generate) -> Draw:
        allowed = self._forms[request.id].allowed() if request.grammar is not None else None
        return Draw(request.sampling, slot.tokens, len(request.prompt), self._ends_of(request), allowed)

    def _tell(self, slot: Slot, draw: Draw, token: int, said: TokenLogprob | None) -> Event:
        """Account for a drawn token."""
        request = slot.request
        assert request is not None
        try:
            complete = draw.allowed is not None and self._forms[request.id].take(token)
        except InvalidRequest as error:
            self._release(slot, request)
            return Failed(request.id, error)
        text, finish = slot.push(token, draw.ends, complete)
        first = slot.generated == 1
        prompt = tuple(slot.prompt_logprobs) if first else ()
        if finish is not None:
            self._release(slot, request)
        told = (said,) if said is not None else ()
        return Delta(request.id, text, 1, finish, told, prompt, slot.cached if first else 0)

    def _release(self, slot: Slot, request: Generate) -> None:
        self.scheduler.release(slot)
        self._forget(request.id)

    def _search(self, lead: Slot, logits: torch.Tensor, hidden: torch.Tensor) -> list[Event]:
        request = lead.request
        assert request is not None
        group = self._groups[request.id]
        started = lead.generated > 0
        event = group.advance(lead.group, logits, hidden) if started else group.start(lead.group, logits)
        if isinstance(event, Delta) and event.finish is not None:
            self._release(lead, request)
        return [event] if event is not None else []

    def _ends_of(self, request: Generate) -> frozenset[int]:
        if request.ignore_eos:
            return request.stop_tokens
        return self._ends | request.stop_tokens if request.stop_tokens else self._ends

    def _account_readings(self, rows: Rows, hidden: torch.Tensor, events: list[Event]) -> None:
        seen = self._observe([passage for _, passage in rows.passages])
        for span, passage in rows.passages:
            reading, window = passage.reading, passage.window
            first, last = max(window.keep, passage.start + 1), min(passage.end + 1, window.end)
            if first < last:  # statistics of tokens [first, last), each from the hidden state of the token before it
                before = slice(first - 1 - passage.start, last - 1 - passage.start)
                targets = torch.tensor(reading.job.tokens[first:last], device=hidden.device)
                other = seen.get(id(passage))
                observed = (other[before], self.observer.head) if other is not None and self.observer is not None else None
                reading.parts.append(columns(hidden[span.first : span.last][before], targets, self.performer.head, observed))
            if not reading.waiting and passage.end == window.end:
                self.scheduler.finish(reading)
                events.append(Scored(reading.job.id, joined(reading.parts)))

    def _observe(self, passages: list[Passage]) -> dict[int, torch.Tensor]:
        """The observer's hidden states of the passages that ask for them, by the passages' `id`."""
        wanted = [passage for passage in passages if passage.reading.job.observe]
        if not wanted or self.observer is None:
            return {}
        rows = lay_out_passages(wanted, self.observer.reading_slot)
        layout = layout_of([], rows.spans, self.limits.context, self.observer.device)
        hidden = self.observer.forward(rows.ids, rows.positions, layout)
        return {id(passage): hidden[span.first : span.last] for span, passage in rows.passages}
