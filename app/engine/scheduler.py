"""Who runs in the next step: policy only, decided from lengths and limits. Standard library, no torch.

First come, first served. Every decoding slot runs in every step. What is left of the step's token budget goes to prompts and to
texts to score by turns, so that neither starves the other: an odd step serves prompts first, an even one texts.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.request import Columns, Generate, Score, Window
from app.engine.slot import Slot
from app.engine.text import Decode


@dataclass(slots=True)
class Reading:
    """A text being scored: the windows still to run and the columns so far."""

    job: Score
    waiting: deque[Window]
    columns: Columns = Columns()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `[start, end)` of a slot, to be written into the cache."""

    slot: Slot
    start: int
    end: int


@dataclass(slots=True)
class Plan:
    decodes: list[Slot] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    windows: list[tuple[Reading, Window]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.decodes or self.chunks or self.windows)


class Scheduler:
    def __init__(self, slots: Sequence[Slot], step_tokens: int) -> None:
        self.slots = slots
        self._step_tokens = step_tokens
        self._prompts: deque[Generate] = deque()
        self._readings: deque[Reading] = deque()
        self._turn = 0
        self._admitted = 0

    def add(self, job: Generate | Score) -> None:
        if isinstance(job, Generate):
            self._prompts.append(job)
        else:
            self._readings.append(Reading(job, deque(job.windows)))

    def cancel(self, id: str) -> bool:
        """Forget a job wherever it is; true if it was found. Its slot is free for the next step."""
        for slot in self.slots:
            if slot.request is not None and slot.request.id == id:
                slot.release()
                return True
        waiting = len(self._prompts) + len(self._readings)
        self._prompts = deque(job for job in self._prompts if job.id != id)
        self._readings = deque(reading for reading in self._readings if reading.job.id != id)
        return waiting > len(self._prompts) + len(self._readings)

    def clear(self) -> list[str]:
        """Forget every job; returns their ids."""
        ids = [slot.request.id for slot in self.slots if slot.request is not None]
        ids += [job.id for job in self._prompts] + [reading.job.id for reading in self._readings]
        for slot in self.slots:
            slot.release()
        self._prompts.clear()
        self._readings.clear()
        return ids

    @property
    def idle(self) -> bool:
        return not (self._prompts or self._readings or any(slot.request is not None for slot in self.slots))

    def schedule(self, decode: Decode) -> Plan:
        self._admit(decode)
        plan = Plan(decodes=[slot for slot in self.slots if slot.decoding])
        self._turn += 1
        left = self._step_tokens
        for serve in (self._fill, self._read) if self._turn % 2 else (self._read, self._fill):
            left = serve(plan, left)
        return plan

    def finish(self, reading: Reading) -> None:
        self._readings.remove(reading)

    def _admit(self, decode: Decode) -> None:
        for slot in self.slots:
            if not self._prompts:
                return
            if slot.request is None:
                slot.admit(self._prompts.popleft(), decode)
                self._admitted += 1
                slot.turn = self._admitted

    def _fill(self, plan: Plan, left: int) -> int:
        """Prompts in the order they were admitted, whichever slot each of them got."""
        for slot in sorted(self.slots, key=lambda slot: slot.turn):
            if slot.request is None or slot.decoding or left <= 0:
                continue
            end = min(len(slot.tokens), slot.length + left)
            plan.chunks.append(Chunk(slot, slot.length, end))
            left -= end - slot.length
        return left

    def _read(self, plan: Plan, left: int) -> int:
        """One window of each text in turn. A window is not cut: one larger than the whole budget runs when it is the first."""
        for reading in list(self._readings):
            window = reading.waiting[0]
            size = window.end - window.start
            if left <= 0 or (size > left and left < self._step_tokens):
                break
            plan.windows.append((reading, reading.waiting.popleft()))
            self._readings.rotate(-1)
            left -= size
        return left
