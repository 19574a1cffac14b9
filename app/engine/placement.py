"""Which slots a request gets, and which running request has computed, or is computing, the beginning of its prompt. Policy; no torch."""

from collections.abc import Sequence

from app.engine.pages import common_prefix_length
from app.engine.request import Generate
from app.engine.slot import SharedPrefix, Slot

MIN_PREFIX_TOKENS = 16  # a shorter common prefix is not waited for


def place(job: Generate, slots: Sequence[Slot]) -> tuple[Slot, ...] | None:
    """The first idle slots, as many as the job needs, the leading one first; None when too few are idle."""
    idle = [slot for slot in slots if slot.request is None][: job.slots_needed]
    return tuple(idle) if len(idle) == job.slots_needed else None


def shared_prefix_of(job: Generate, slots: Sequence[Slot], found: int) -> SharedPrefix | None:
    """The running slot whose tokens begin like the prompt for longest; None if no one has more of it than the `found` tokens."""
    tokens, donor = max(((_common_tokens(job, slot), slot) for slot in slots), key=lambda pair: pair[0], default=(0, None))
    return None if donor is None or tokens <= max(found, MIN_PREFIX_TOKENS - 1) else SharedPrefix(donor, donor.admission, tokens)


def _common_tokens(job: Generate, slot: Slot) -> int:
    """Tokens of the prompt whose keys and values the slot has or is about to compute. Never the whole prompt: its last token has to be
    computed to predict the next one.
    """
    if slot.request is None or slot.is_follower or slot.request.space != job.space:
        return 0
    if job.prompt[:MIN_PREFIX_TOKENS] != tuple(slot.tokens[:MIN_PREFIX_TOKENS]):
        return 0
    available = len(slot.request.prompt) if slot.group else len(slot.tokens) if slot.stage == "prefill" else slot.length
    return min(common_prefix_length(job.prompt, slot.tokens), available, len(job.prompt) - 1)
