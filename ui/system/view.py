"""Translates the state of the server into the HTML of the System tab: a line on the whole, a card for each model, the plots.

Pure: no Gradio component, no HTTP. Every name is escaped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from app.schemas import SlotState
from app.schemas.overview import ModelOverview, Overview
from ui.markup import escape_html
from ui.system.history import History, Sample, Series, latest, levels, rates, running_of
from ui.system.plot import Plot, span_of
from ui.system.units import bytes_text, count_text, duration_text, number_text, seconds_text, share_text

ASKING = '<p class="status busy">Asking the server what it is doing</p>'
NO_ANSWERS = "No answer began in the last five minutes."
STAGES = {"idle": "kept", "prefill": "reading", "decode": "writing"}  # words of the page for what a slot does


def state_html(overview: Overview, history: History) -> str:
    speeds = rates(history, lambda sample: {name: model.generated_tokens for name, model in sample.models.items()})
    cards = "".join(_model_html(model, latest(speeds.get(model.id, []))) for model in overview.models)
    span_s = span_of(history)
    plots = "".join(replace(plot, span_s=span_s).html() for plot in plots_of(overview, history))
    return f'{_server_html(overview)}<div class="model-cards">{cards}</div><div class="timelines">{plots}</div>'


def _server_html(overview: Overview) -> str:
    ready = sum(model.status == "ready" for model in overview.models)
    total = overview.memory_total_bytes
    facts = [
        f"{ready} of {count_text(len(overview.models), 'model')} ready",
        f"up {duration_text(max(0.0, overview.at - overview.started))}",
        count_text(overview.cpus, "CPU"),
        f"{bytes_text(overview.memory_available_bytes)} of {bytes_text(total)} memory available",
        *(f"GPU {gpu.index}: {bytes_text(gpu.used_bytes)} of {bytes_text(gpu.total_bytes)} used" for gpu in overview.gpus),
    ]
    return f'<p class="status">{escape_html(" · ".join(facts))}</p>'


def _model_html(model: ModelOverview, tokens_per_s: float | None) -> str:
    status = model.status if model.alive == model.replicas else f"{model.status}, {model.alive} of {model.replicas} replicas"
    facts = "".join(f"<div><dt>{name}</dt><dd>{escape_html(value)}</dd></div>" for name, value in _facts(model, tokens_per_s))
    engines = "".join(_slots_html(model, engine.replica, engine.slots, engine.age_s) for engine in model.engines)
    return (
        f'<section class="model-card"><h2>{escape_html(model.id)} <span class="mark">{escape_html(status)}</span></h2>'
        f'<dl class="facts">{facts}</dl>{engines}</section>'
    )


def _facts(model: ModelOverview, tokens_per_s: float | None) -> Iterator[tuple[str, str]]:
    slots = [slot for engine in model.engines for slot in engine.slots]
    busy = sum(slot.stage != "idle" for slot in slots)
    yield "Slots busy", f"{busy} of {len(slots)}" if slots else "not known"
    yield "Answers running", number_text(running_of(model))
    yield "Waiting", _waiting_text(model)
    yield "Texts to score", number_text(sum(engine.texts for engine in model.engines))
    yield "Tokens/s", "measuring" if tokens_per_s is None else number_text(tokens_per_s)
    first = model.first_token
    if first is None:
        yield "First token", "no answers in 5 min"
    else:
        times = " / ".join(seconds_text(value) for value in (first.p50_s, first.p90_s, first.p99_s))
        yield "First token, p50 / p90 / p99", f"{times} of {count_text(first.count, 'answer')}"


def _waiting_text(model: ModelOverview) -> str:
    waiting = [each for engine in model.engines for each in engine.waiting]
    longest = max((each.eta_s for each in waiting if each.eta_s is not None), default=None)
    return number_text(len(waiting)) + ("" if longest is None else f", the last about {seconds_text(longest)}")


def _slots_html(model: ModelOverview, replica: int, slots: list[SlotState], age_s: float) -> str:
    """What each slot of a replica holds; the empty ones are only counted."""
    held = [slot for slot in slots if slot.stage != "idle" or slot.cached_tokens]
    empty = len(slots) - len(held)
    name = ("Slots" if model.replicas == 1 else f"Slots of replica {replica}") + ", and the tokens that each holds"
    age = f" <span class=age>as of {seconds_text(age_s)} ago: the engine is in a long step</span>" if age_s >= 1 else ""
    rest = f'<li class="slot-rest">{count_text(empty, "empty slot")}</li>' if empty else ""
    items = "".join(_slot_html(slot, model.context) for slot in held)
    return f'<h3>{name}{age}</h3><ul class="slots">{items}{rest}</ul>'


def _slot_html(slot: SlotState, context: int | None) -> str:
    share = 0.0 if not context else min(1.0, slot.cached_tokens / context)
    return (
        f'<li class="slot {slot.stage}" style="--share:{100 * share:.1f}%"><b>slot {slot.slot}</b> · {STAGES[slot.stage]} · '
        f"{count_text(slot.cached_tokens, 'token')}</li>"
    )


def plots_of(overview: Overview, history: History) -> Iterator[Plot]:
    yield Plot("Tokens written", "tokens per second", _token_rates(history, "generated_tokens"))
    yield Plot("Tokens read", "prompt tokens per second", _token_rates(history, "prompt_tokens"))
    if any(model.scored_tokens for model in overview.models):
        yield Plot("Tokens scored", "tokens per second", _token_rates(history, "scored_tokens"))
    yield Plot("Time to the first token", "of the last 5 minutes", _first_tokens(history), seconds_text, NO_ANSWERS, 0.01)
    yield Plot("Requests", "running and waiting", _requests(history))
    cpu = rates(history, lambda sample: dict(sample.cpu_s))
    yield Plot("CPU use", f"cores of {overview.cpus}", cpu)
    memory = levels(history, lambda sample: _optional(sample.resident_bytes))
    yield Plot("Memory", "resident, by process", memory, bytes_text, least=1e6)
    if overview.gpus:
        yield Plot("GPU use", "share of the time", levels(history, lambda sample: _optional(sample.gpu_use)), share_text)
        yield Plot("GPU memory", "used, by all processes", levels(history, lambda s: _optional(s.gpu_bytes)), bytes_text, least=1e6)


def _token_rates(history: History, count: str) -> Series:
    return rates(history, lambda sample: {name: getattr(model, count) for name, model in sample.models.items()})


def _first_tokens(history: History) -> Series:
    def values(sample: Sample) -> dict[str, float | None]:
        return {
            f"{name} {percentile}": None if model.first_token_s is None else model.first_token_s[index]
            for name, model in sample.models.items()
            for index, percentile in ((0, "p50"), (2, "p99"))
        }

    return levels(history, values)


def _requests(history: History) -> Series:
    def values(sample: Sample) -> dict[str, float | None]:
        counts = {name: (model.running, model.waiting) for name, model in sample.models.items()}
        return {f"{name} {what}": pair[index] for name, pair in counts.items() for index, what in enumerate(("running", "waiting"))}

    return levels(history, values)


def _optional(values: Mapping[str, float]) -> dict[str, float | None]:
    return dict(values)
