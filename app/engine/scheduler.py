"""Who runs in the next step: policy only, decided from lengths, limits and a clock. Standard library, no torch.

Every decoding slot runs in every step. What the pace leaves for guests goes to prompts and to texts to score, by turns. A free slot
goes to the request that stands first: continuing conversations, then new ones, then `flex` work; who waits longer moves up.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.engine.budget import Pace
from app.engine.detokenizer import Decode
from app.engine.placement import Placement, continues, place
from app.engine.request import Columns, Decision, Generate, Score, Waiting, Window
from app.engine.slot import Slot, common_prefix

AGE_S = 5.0  # waiting this long is worth one class
DECISIONS = 100
RECENT = 16  # releases that the expected wait is taken from


@dataclass(slots=True)
class Entry:
    """A request without a slot."""

    job: Generate
    since_s: float
    order: int

    def rank(self, now_s: float, continuing: bool) -> tuple[float, int]:
        kind = 2 if self.job.tier == "flex" else 0 if continuing else 1
        return kind - (now_s - self.since_s) / AGE_S, self.order


@dataclass(slots=True, eq=False)
class Reading:
    """A text being scored: the windows still to run, tokens of the first of them that have run, and the columns so far, in parts."""

    job: Score
    waiting: deque[Window]
    since_s: float
    done: int = 0
    parts: list[Columns] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `[start, end)` of a slot, to be written into the cache."""

    slot: Slot
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens `[start, end)` of a window of a text. One that is not read in one piece is `kept` in the slot set aside for that."""

    reading: Reading
    window: Window
    start: int
    end: int
    kept: bool


@dataclass(slots=True)
class Plan:
    decodes: list[Slot] = field(default_factory=list)
    copies: list[tuple[Slot, Slot, int]] = field(default_factory=list)  # (from, to, tokens), before anything else
    chunks: list[Chunk] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.decodes or self.chunks or self.passages)

    @property
    def prompt_tokens(self) -> int:
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def text_tokens(self) -> int:
        return sum(passage.end - passage.start for passage in self.passages)


class Scheduler:
    def __init__(self, slots: Sequence[Slot], pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.pace = pace
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self._clock = clock
        self._waiting: list[Entry] = []
        self._readings: list[Reading] = []
        self._kept: Reading | None = None  # whose window is in the slot set aside
        self._turn = 0
        self._orders = 0
        self._admissions = 0
        self._releases: deque[float] = deque(maxlen=RECENT)
        self._released = 0

    def add(self, job: Generate | Score) -> None:
        if self.idle:  # what was is no measure of what comes
            self._releases.clear()
        if isinstance(job, Generate):
            self._orders += 1
            self._waiting.append(Entry(job, self._clock(), self._orders))
        else:
            self._readings.append(Reading(job, deque(job.windows), self._clock()))

    def cancel(self, id: str) -> bool:
        """Forget a job wherever it is; true if it was found. Its slots are free for the next step."""
        for slot in self.slots:
            if slot.request is not None and slot.request.id == id:
                self.release(slot)
                return True
        for reading in self._readings:
            if reading.job.id == id:
                self.finish(reading)
                return True
        found = [entry for entry in self._waiting if entry.job.id == id]
        for entry in found:
            self._waiting.remove(entry)
        return bool(found)

    def release(self, slot: Slot) -> None:
        """Free the slot, with the others of its group; what is in its cache stays until the slot is needed."""
        self._releases.append(self._clock())
        for member in slot.group or (slot,):
            self._released += 1
            member.release(self._released)

    def clear(self) -> list[str]:
        """Forget every job and what the slots hold; returns the jobs' ids."""
        ids = [slot.request.id for slot in self.slots if slot.request is not None and not slot.follows]
        ids += [entry.job.id for entry in self._waiting] + [reading.job.id for reading in self._readings]
        for slot in self.slots:
            slot.length = 0
            slot.release(0)
        self._waiting.clear()
        self._readings.clear()
        self._kept = None
        return ids

    def forget(self) -> None:
        """Make the slots as new."""
        self.clear()
        self.decisions.clear()
        self._releases.clear()
        for slot in self.slots:
            slot.tokens = []

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._readings or any(slot.request is not None for slot in self.slots))

    @property
    def texts(self) -> int:
        return len(self._readings)

    def queue(self) -> list[Waiting]:
        """Who waits for a slot, the next one first, with the wait the recent releases let expect."""
        every_s = (self._releases[-1] - self._releases[0]) / (len(self._releases) - 1) if len(self._releases) > 1 else None
        return [
            Waiting(entry.job.id, place, None if every_s is None else round(place * every_s, 1))
            for place, entry in enumerate(self._ranked(), 1)
        ]

    def schedule(self, decode: Decode) -> Plan:
        self._admit(decode)
        plan = Plan(decodes=[slot for slot in self.slots if slot.stage == "decode"])
        filling = [slot for slot in self.slots if slot.stage == "prefill" and not slot.follows]
        prompts, texts = self.pace.room(len(plan.decodes), len(filling) + len(self._waiting))
        self._turn += 1
        prompts_first = bool(filling) and (self._turn % 2 == 1 or not any(map(self._pressing, self._readings)))
        if plan.decodes:  # one kind of guest a step: what each costs is to be known
            if prompts_first:
                self._fill(plan, filling, prompts)
            else:
                self._read(plan, texts)
        elif prompts_first:
            self._read(plan, self._fill(plan, filling, prompts))
        else:
            self._fill(plan, filling, self._read(plan, texts))
        return plan

    def finish(self, reading: Reading) -> None:
        self._readings.remove(reading)
        if self._kept is reading:
            self._kept = None

    def _ranked(self) -> list[Entry]:
        now_s = self._clock()
        idle = [slot for slot in self.slots if slot.request is None]
        return sorted(self._waiting, key=lambda entry: entry.rank(now_s, continues(entry.job, idle)))

    def _admit(self, decode: Decode) -> None:
        """Slots to those who stand first. One that needs more slots than are free holds up those behind it, or it would starve."""
        if not self._waiting or all(slot.request is not None for slot in self.slots):
            return
        for entry in self._ranked():
            found = place(entry.job, self.slots)
            if found is None:
                return
            self._waiting.remove(entry)
            self._seat(entry, found, decode)

    def _seat(self, entry: Entry, found: Placement, decode: Decode) -> None:
        self._admissions += 1
        job, lead = entry.job, found.slots[0]
        lead.admit(job, self._admissions, decode, found.kept)
        lead.share = found.share
        for follower in found.slots[1:]:
            self._admissions += 1
            follower.admit(job, self._admissions, decode, 0)
            follower.tokens = []
        if job.search is not None:
            for slot in found.slots:
                slot.group = found.slots
        if found.share is not None and found.share.donor.request is None:  # not to be taken before it has given
            self._released += 1
            found.share.donor.released = self._released
        reused = found.kept or (found.share.tokens if found.share else 0)
        waited_s = round(self._clock() - entry.since_s, 3)
        self.decisions.append(Decision(time.time(), job.id, lead.index, found.reason, waited_s, reused, len(job.prompt)))

    def _fill(self, plan: Plan, filling: list[Slot], left: int) -> int:
        """Prompts in the order they were admitted, whichever slot each of them got. Who will share a prefix waits for its donor."""
        for slot in sorted(filling, key=lambda slot: slot.turn):
            if left <= 0:
                break
            if slot.share is not None:
                if slot.share.coming:
                    continue
                _take(plan, slot)
            end = min(len(slot.tokens), slot.length + left)
            plan.chunks.append(Chunk(slot, slot.length, end))
            left -= end - slot.length
        return left

    def _read(self, plan: Plan, left: int) -> int:
        """A window of each text in turn, whole where it fits; one at a time may be read in pieces, and does not hold up short ones."""
        due = [reading for reading in self._readings if self._pressing(reading) or reading is self._kept] or list(self._readings)
        kept_last = self._turn // 2 % 2 == 0
        for reading in sorted(due, key=lambda reading: (reading is self._kept) == kept_last):
            if left <= 0:
                break
            window = reading.waiting[0]
            start = window.start + reading.done
            kept = reading.done > 0 or window.end - start > left
            if kept and self._kept not in {None, reading}:
                continue
            end = min(window.end, start + left)
            plan.passages.append(Passage(reading, window, start, end, kept))
            left -= end - start
            self._advance(reading, window, end)
        return left

    def _pressing(self, reading: Reading) -> bool:
        """Not `flex` work, or no longer."""
        return reading.job.tier == "default" or self._clock() - reading.since_s > AGE_S

    def _advance(self, reading: Reading, window: Window, end: int) -> None:
        if end < window.end:
            self._kept, reading.done = reading, end - window.start
            return
        if self._kept is reading:
            self._kept = None
        reading.waiting.popleft()
        reading.done = 0
        self._readings.remove(reading)
        self._readings.append(reading)


def _take(plan: Plan, slot: Slot) -> None:
    """What a donor holds of the slot's prompt is copied instead of computed."""
    share, slot.share = slot.share, None
    assert share is not None
    alike = common_prefix(slot.tokens, share.donor.tokens) if share.held else 0  # a search may have gone another way meanwhile
    ready = min(share.tokens, share.donor.length, alike)
    if ready > slot.length:
        plan.copies.append((share.donor, slot, ready))
        slot.length = slot.cached = ready
