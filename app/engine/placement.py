"""Which slot a request gets, and how much of its prompt is in the cache already. Policy from lengths and prefixes; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.request import Contrast, Generate
from app.engine.slot import Share, Slot, common_prefix

LEAST = 16  # a common prefix shorter than this is computed anew


@dataclass(frozen=True, slots=True)
class Placement:
    """`slots`, the leading one first; `kept` tokens of the prompt are in its cache, or those of `share` will be copied there."""

    slots: tuple[Slot, ...]
    kept: int
    share: Share | None
    reason: str


def continues(job: Generate, idle: Sequence[Slot]) -> bool:
    """Whether one of the idle slots holds this conversation."""
    return any(_continued(slot, _common(job, slot)) for slot in idle)


def place(job: Generate, slots: Sequence[Slot]) -> Placement | None:
    """The slot that holds the conversation, else the one idle longest; None when too few are free."""
    idle = sorted((slot for slot in slots if slot.request is None), key=lambda slot: slot.released)
    if len(idle) < job.width:
        return None
    common, best = max(((_common(job, slot), slot) for slot in slots), key=lambda pair: (pair[0], pair[1].request is None))
    if common and best.request is None and (_continued(best, common) or len(idle) == 1):
        reason = f"holds {common} of the prompt's {len(job.prompt)} tokens"
        return Placement(_group(best, idle, job.width), common, None, reason)
    others = [slot for slot in idle if not common or slot is not best] or idle
    reason = "idle longest" if others[0].released else "never used"
    if not common:
        return Placement(_group(others[0], idle, job.width), 0, None, reason)
    share = Share(best, best.turn, common)
    return Placement(_group(others[0], idle, job.width), 0, share, f"{reason}; {common} tokens copied from slot {best.index}")


def _group(lead: Slot, idle: Sequence[Slot], width: int) -> tuple[Slot, ...]:
    return (lead, *[slot for slot in idle if slot is not lead][: width - 1])


def _continued(slot: Slot, common: int) -> bool:
    """The prefix is most of what the slot holds: little is lost when the rest is overwritten."""
    return common > 0 and 2 * common >= slot.length


def _common(job: Generate, slot: Slot) -> int:
    """Tokens of the prompt whose keys and values the slot holds or will soon; at least the prompt's last token is computed."""
    if job.prompt_logprobs is not None or isinstance(job.search, Contrast):
        return 0  # every hidden state of the prompt is needed
    if slot.follows or job.prompt[:LEAST] != tuple(slot.tokens[:LEAST]):
        return 0
    held = len(slot.tokens) if slot.stage == "prefill" else slot.length
    common = min(common_prefix(job.prompt, slot.tokens), held, len(job.prompt) - 1)
    return common if common >= LEAST else 0
