"""The loop that serves: `step` schedules, runs one forward, and accounts for it. Chat and scoring share every step.

Single-threaded; knows nothing of processes, queues and HTTP. Text leaves it only in events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.engine.attention import Span, layout_of
from app.engine.flat import FlatModel
from app.engine.request import Columns, Delta, Event, Failed, Generate, Job, Score, Scored, Window
from app.engine.sampler import sample
from app.engine.scheduler import Plan, Reading, Scheduler
from app.engine.slot import Slot
from app.engine.text import Decode
from app.errors import EngineFailed, LitmusError
from app.scoring.statistics import columns


@dataclass(frozen=True, slots=True)
class Limits:
    slots: int
    context: int  # tokens a slot holds
    step_tokens: int  # prompt and text tokens that may join a step


@dataclass(slots=True)
class Rows:
    """A plan laid out as one flat row of tokens."""

    ids: list[int]
    positions: list[int]
    spans: list[Span]
    sampling: list[tuple[int, Slot]]  # rows whose logits are needed, and whose they are
    windows: list[tuple[Span, Reading, Window]]


class Engine:
    """`performer` chats and scores; `observer`, if there is one, only reads (for `Score.observe`)."""

    def __init__(
        self, performer: FlatModel, decode: Decode, ends: frozenset[int], limits: Limits, observer: FlatModel | None = None
    ) -> None:
        self.performer = performer
        self.observer = observer
        self.context = limits.context
        self.scheduler = Scheduler([Slot(index) for index in range(limits.slots)], limits.step_tokens)
        self._decode = decode
        self._ends = ends

    def submit(self, job: Job) -> None:
        self.scheduler.add(job)

    def cancel(self, id: str) -> bool:
        return self.scheduler.cancel(id)

    def fail_all(self, error: LitmusError) -> list[Event]:
        """Give up every job with `error`; the engine itself stays usable."""
        return [Failed(id, error) for id in self.scheduler.clear()]

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    def step(self) -> list[Event]:
        """Schedule, run, account. At most one delta a decoding slot; nothing when there is nothing to do."""
        plan = self.scheduler.schedule(self._decode)
        if plan.empty:
            return []
        try:
            return self._serve(plan)
        except torch.OutOfMemoryError:
            return self.fail_all(EngineFailed("the device ran out of memory on this step; send the request again, or less at a time"))

    def _serve(self, plan: Plan) -> list[Event]:
        rows = _lay_out(plan)
        hidden = self._run(rows, [(slot.index, slot.length) for slot in plan.decodes])
        return self._account_slots(plan, rows, hidden) + self._account_readings(rows, hidden)

    def _run(self, rows: Rows, decodes: list[tuple[int, int]]) -> torch.Tensor:
        layout = layout_of(decodes, rows.spans, self.context, self.performer.device)
        return self.performer.forward(rows.ids, rows.positions, layout)

    def _account_slots(self, plan: Plan, rows: Rows, hidden: torch.Tensor) -> list[Event]:
        for slot in plan.decodes:
            slot.length += 1
        for chunk in plan.chunks:
            chunk.slot.length = chunk.end
        if not rows.sampling:
            return []
        logits = self.performer.head(hidden[[row for row, _ in rows.sampling]])
        slots = [slot for _, slot in rows.sampling]
        requests = [slot.request for slot in slots if slot.request is not None]
        tokens = sample(logits, [request.sampling for request in requests], [len(slot.tokens) for slot in slots])
        return [self._advance(slot, request, token) for slot, request, token in zip(slots, requests, tokens, strict=True)]

    def _advance(self, slot: Slot, request: Generate, token: int) -> Event:
        text, finish = slot.push(token, self._ends)
        if finish is not None:
            slot.release()
        return Delta(request.id, text, 1, finish)

    def _account_readings(self, rows: Rows, hidden: torch.Tensor) -> list[Event]:
        events: list[Event] = []
        for span, reading, window in rows.windows:
            reading.columns += self._columns(reading.job, window, hidden[span.first : span.last])
            if not reading.waiting:
                self.scheduler.finish(reading)
                events.append(Scored(reading.job.id, reading.columns))
        return events

    def _columns(self, job: Score, window: Window, hidden: torch.Tensor) -> Columns:
        """Statistics of tokens `[keep, end)`, each from the hidden state of the token before it."""
        before = slice(window.keep - window.start - 1, window.end - window.start - 1)
        targets = torch.tensor(job.tokens[window.keep : window.end], device=hidden.device)
        seen = None
        if job.observe and self.observer is not None:
            seen = (self.observer.read(list(job.tokens[window.start : window.end]))[before], self.observer.head)
        return columns(hidden[before], targets, self.performer.head, seen)


def _lay_out(plan: Plan) -> Rows:
    """Decoding rows, then chunks of prompts, then windows of texts: the order `Layout` asks for."""
    rows = Rows([slot.tokens[-1] for slot in plan.decodes], [slot.length for slot in plan.decodes], [], [], [])
    rows.sampling = list(enumerate(plan.decodes))
    for chunk in plan.chunks:
        span = _append(rows, chunk.slot.tokens[chunk.start : chunk.end], chunk.start, chunk.slot.index)
        if chunk.end == len(chunk.slot.tokens):
            rows.sampling.append((span.last - 1, chunk.slot))
    for reading, window in plan.windows:
        rows.windows.append((_append(rows, reading.job.tokens[window.start : window.end], 0, None), reading, window))
    return rows


def _append(rows: Rows, tokens: Sequence[int], start: int, slot: int | None) -> Span:
    span = Span(len(rows.ids), len(rows.ids) + len(tokens), start, slot)
    rows.ids += tokens
    rows.positions += range(start, span.end)
    rows.spans.append(span)
    return span
