"""What to change where a model does not fit: each change is computed, and named only if the model then fits."""

from collections.abc import Iterator
from dataclasses import replace

from app.engine.ledger import gib
from app.estimate.device import Device
from app.estimate.plan import QUANTIZATIONS, FineTune, Plan, Question, is_supported
from app.models.cache import page_tokens

CONTEXTS = tuple(256 << power for power in range(12))  # 256 to 524,288 tokens
LEAST_CONTEXT = 256


def advice(plan: Plan, device: Device) -> list[str]:
    """Sentences for a device on which the question does not fit; one that says so if nothing helps; none if it fits."""
    if plan.fits(device):
        return []
    asked = plan.question
    found = list(_for_training(plan, device) if asked.fine_tune is not None else _for_serving(plan, device))
    return found or [_nothing_helps(plan, device)]


def _for_serving(plan: Plan, device: Device) -> Iterator[str]:
    asked = plan.question
    if not is_supported(asked, device.kind):
        on_cuda, on_cpu = "a cache in int8 runs on a CPU only", "a CPU rounds no weights to compute in float16"
        yield f"{device.name}: {on_cuda if device.kind == 'cuda' else on_cpu}"
    else:
        yield from _smaller_cache(plan, device)
        context = _longest_context(plan, device, asked)
        if context:
            yield f"{device.name}: a context of {context} tokens would fit with {_count(asked.slots)}"
    yield from _smaller_quantizations(plan, device)


def _smaller_cache(plan: Plan, device: Device) -> Iterator[str]:
    """In 8 bits, then with fewer slots, or tokens that they share."""
    asked, need = plan.question, plan.need(device.kind)
    if device.kind == "cpu" and asked.cache_dtype == "auto" and plan.fits(device, replace(asked, cache_dtype="int8")):
        yield f"{device.name}: with a cache in int8 it fits as asked"
    if asked.cache_tokens is None and (fewer := _slots_that_fit(plan, device, asked)):
        yield f"{device.name}: {fewer} would fit instead of {asked.slots}"
    if asked.cache_tokens is not None and need.shared:
        page = page_tokens(plan.config, device.kind)
        tokens = need.ledger(device.free).most_cache * asked.cache_tokens // need.shared // page * page
        if tokens >= plan.context_of(asked):
            yield f"{device.name}: a cache of {tokens} tokens would fit instead of {asked.cache_tokens}"


def _smaller_quantizations(plan: Plan, device: Device) -> Iterator[str]:
    """Other quantizations, from the one that changes least; after the first that fits as asked, the rest would only lose quality."""
    asked = plan.question
    if plan.source.gguf is not None:
        yield from _smaller_file(plan, device)
        return
    if plan.source.own_precision is not None:
        return
    names = QUANTIZATIONS[device.kind]
    later = names[names.index(asked.quantize) + 1 :] if asked.quantize in names else names[1:]
    for quantize in later:
        other = replace(asked, quantize=quantize, dtype="auto")
        need = plan.need(device.kind, other)
        if need.fits(device.free):
            yield f"{device.name}: with {quantize} it fits as asked ({gib(need.total)} of {gib(device.free)})"
            return
        if asked.cache_tokens is None and (fewer := _slots_that_fit(plan, device, other)):
            yield f"{device.name}: with {quantize}, {fewer} would fit"


def _slots_that_fit(plan: Plan, device: Device, asked: Question) -> str | None:
    """How many slots there would be, if not as many as asked for, and their context; None if the context does not fit."""
    need = plan.need(device.kind, asked)
    ledger = need.ledger(device.free)
    slots = ledger.max_slots
    if not slots or (asked.context is not None and need.context_bytes > ledger.most_cache):
        return None
    slots = min(slots, asked.slots)
    return f"{_count(slots)} with a context of {plan.need_on(device, replace(asked, slots=slots)).context} tokens"


def _smaller_file(plan: Plan, device: Device) -> Iterator[str]:
    need, parameters = plan.need(device.kind), plan.parameters
    left = need.ledger(device.free).weights_that_fit(plan.question.slots)
    if left > 0:
        yield (
            f"{device.name}: a file of the same model would fit if its weights took {8 * left / parameters:.1f} bits each; these take "
            f"{8 * need.weights.total() / parameters:.1f}"
        )


def _for_training(plan: Plan, device: Device) -> Iterator[str]:
    asked = plan.question
    if plan.source.own_precision is None and asked.fine_tune == "lora" and plan.fits(device, qlora := replace(asked, fine_tune="qlora")):
        yield f"{device.name}: qlora fits as asked ({gib(plan.need(device.kind, qlora).total)} of {gib(device.free)})"
    context = _longest_context(plan, device, asked)
    if context:
        yield f"{device.name}: {asked.fine_tune} fits with sequences of {context} tokens"


def _longest_context(plan: Plan, device: Device, asked: Question) -> int:
    """The longest of `CONTEXTS` below the one asked for that fits; 0 if none does."""
    shorter = [context for context in CONTEXTS if context < plan.context_of(asked)]
    return next((context for context in reversed(shorter) if plan.fits(device, replace(asked, context=context))), 0)


def _nothing_helps(plan: Plan, device: Device) -> str:
    asked = plan.question
    kinds = ("none",) if plan.source.own_precision is not None else QUANTIZATIONS[device.kind]
    if asked.fine_tune is not None:
        method: FineTune = "lora" if plan.source.own_precision is not None else "qlora"
        least = plan.need(device.kind, replace(asked, fine_tune=method, context=min(LEAST_CONTEXT, plan.longest)))
        what = f"{method} with sequences of {LEAST_CONTEXT} tokens"
    else:
        small = [replace(asked, quantize=kind, dtype="auto", slots=1, context=min(LEAST_CONTEXT, plan.longest)) for kind in kinds]
        least, what = min(((plan.need(device.kind, each), each.quantize) for each in small), key=lambda pair: pair[0].total)
        what = f"one slot of {LEAST_CONTEXT} tokens, quantize={what}"
    return f"{device.name}: no setting fits: the least, {what}, needs {gib(least.total)} of {gib(device.free)}"


def _count(slots: int) -> str:
    return "1 slot" if slots == 1 else f"{slots} slots"
