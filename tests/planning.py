"""What stands for the engine where only its policy is tested."""

from app.engine.budget import Pace
from app.engine.request import Generate
from app.engine.scheduler import Plan, Scheduler
from app.engine.slot import Slot


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def decode(ids: list[int]) -> str:
    return "x" * len(ids)


def create(slots: int, step_tokens: int, clock: Clock | None = None) -> Scheduler:
    return Scheduler([Slot(index) for index in range(slots)], Pace(step_tokens, 2.0), clock or Clock())


def generate(name: str, length: int, first: int = 0) -> Generate:
    return Generate(name, tuple(range(first, first + length)), 8)


def run(scheduler: Scheduler) -> Plan:
    """What the engine does with a plan: the cache grows, who has read its prompt or decodes gets a token."""
    plan = scheduler.schedule(decode)
    for slot in plan.decodes:
        slot.length += 1
        slot.tokens.append(7)
    for chunk in plan.chunks:
        chunk.slot.length = chunk.end
        if chunk.end == len(chunk.slot.tokens):
            chunk.slot.tokens.append(7)
    for passage in plan.passages:
        if not passage.reading.waiting and passage.end == passage.window.end:
            scheduler.finish(passage.reading)
    return plan


def tenant(slot: Slot) -> str | None:
    return slot.request.id if slot.request else None
