"""Which slot a request gets, and how much of its prompt is already in the cache. Policy from lengths and prefixes; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.request import ContrastiveSearchParams, Generate
from app.engine.slot import SharedPrefix, Slot, common_prefix_length

MIN_PREFIX_TOKENS = 16  # a shorter common prefix is not reused but computed again


@dataclass(frozen=True, slots=True)
class Placement:
    """`slots` has the leading slot first. The first `cached` tokens of the prompt are in its cache; those of `shared_prefix`, if any,
    will be copied there from another slot.
    """

    slots: tuple[Slot, ...]
    cached: int
    shared_prefix: SharedPrefix | None
    reason: str


def continues_conversation(job: Generate, idle_slots: Sequence[Slot]) -> bool:
    """Whether one of the idle slots holds the conversation that `job` continues."""
    return any(_is_mostly_prefix(slot, _reusable_tokens(job, slot)) for slot in idle_slots)


def place(job: Generate, slots: Sequence[Slot]) -> Placement | None:
    """Choose the idle slot that holds the conversation, else the one that has been idle longest; None when too few are idle."""
    idle = sorted((slot for slot in slots if slot.request is None), key=lambda slot: slot.release_order)
    if len(idle) < job.slots_needed:
        return None
    reusable, best = max(((_reusable_tokens(job, slot), slot) for slot in slots), key=lambda pair: (pair[0], pair[1].request is None))
    if reusable and best.request is None and (_is_mostly_prefix(best, reusable) or len(idle) == 1):
        reason = f"holds {reusable} of the prompt's {len(job.prompt)} tokens"
        return Placement(_slots_led_by(best, idle, job.slots_needed), reusable, None, reason)
    candidates = [slot for slot in idle if not reusable or slot is not best] or idle
    lead = candidates[0]
    reason = "idle longest" if lead.release_order else "never used"
    if not reusable:
        return Placement(_slots_led_by(lead, idle, job.slots_needed), 0, None, reason)
    prefix = SharedPrefix(best, best.admission, reusable)
    reason = f"{reason}; {reusable} tokens copied from slot {best.index}"
    return Placement(_slots_led_by(lead, idle, job.slots_needed), 0, prefix, reason)


def _slots_led_by(lead: Slot, idle: Sequence[Slot], count: int) -> tuple[Slot, ...]:
    return (lead, *[slot for slot in idle if slot is not lead][: count - 1])


def _is_mostly_prefix(slot: Slot, reusable: int) -> bool:
    """Whether the reusable prefix is at least half of what the slot holds: little is lost when the rest is overwritten."""
    return reusable > 0 and 2 * reusable >= slot.length


def _reusable_tokens(job: Generate, slot: Slot) -> int:
    """Tokens of the prompt whose keys and values the slot holds or is about to compute. Never the whole prompt: its last token has to
    be computed to predict the next one.
    """
    if job.prompt_logprobs is not None or isinstance(job.search, ContrastiveSearchParams):
        return 0  # both need the hidden states of the whole prompt
    if slot.adapter != job.adapter:
        return 0
    if slot.is_follower or job.prompt[:MIN_PREFIX_TOKENS] != tuple(slot.tokens[:MIN_PREFIX_TOKENS]):
        return 0
    available = len(slot.tokens) if slot.stage == "prefill" else slot.length
    reusable = min(common_prefix_length(job.prompt, slot.tokens), available, len(job.prompt) - 1)
    return reusable if reusable >= MIN_PREFIX_TOKENS else 0
