"""Drives a scheduler without an engine, for tests of its policy."""

from app.engine.budget import StepBudget
from app.engine.cache import SlotCache
from app.engine.pages import PagePool
from app.engine.plan import Plan
from app.engine.request import Generate
from app.engine.scheduler import Scheduler
from app.engine.slot import Slot

CONTEXT_PAGES = 16  # for each slot


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def detokenize(ids: list[int]) -> str:
    return "x" * len(ids)


def create(slots: int, step_tokens: int, clock: Clock | None = None) -> Scheduler:
    cache = SlotCache(PagePool(slots * CONTEXT_PAGES))
    return Scheduler([Slot(index) for index in range(slots)], StepBudget(step_tokens, 2.0), cache, clock or Clock())


def generate(name: str, length: int, first: int = 0) -> Generate:
    return Generate(name, tuple(range(first, first + length)), 8)


def run(scheduler: Scheduler) -> Plan:
    """Do what the engine does with a plan: the caches grow, and each slot that decodes or has finished its prefill gets a token."""
    plan = scheduler.schedule(detokenize)
    for slot in plan.decodes:
        slot.length += 1
        slot.tokens.append(7)
    for chunk in plan.prefill_chunks:
        chunk.slot.length = chunk.end
        if chunk.end == len(chunk.slot.tokens):
            chunk.slot.tokens.append(7)
    for chunk in plan.score_chunks:
        if not chunk.text.windows and chunk.end == chunk.window.end:
            scheduler.texts.finish(chunk.text)
    return plan


def request_in(slot: Slot) -> str | None:
    """The id of the request that runs in the slot."""
    return slot.request.id if slot.request else None
