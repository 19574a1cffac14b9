"""Translates what is served into the head of the page, and into the sentence that stands where a model cannot chat.

Pure: no Gradio component, no HTTP. Escapes every name.
"""

from collections.abc import Iterator

from app.schemas import ModelCard
from ui.messages import escaped, problem
from ui.models import Choice

TAGLINE = "Chats, and tells how machine-like a text is."


def connecting(server_url: str) -> str:
    return _header(f'<p class="status">Asking {escaped(server_url)} what it serves.</p>')


def unreachable(sentence: str) -> str:
    return _header(problem(sentence))


def header(choice: Choice) -> str:
    """One model in a table of facts, several in a line each."""
    told = " ".join(_sentences(choice))
    return _header((problem(told) if told else "") + (_lines(choice) if choice.several else "".join(map(_facts, choice.cards))))


def speechless(choice: Choice) -> str:
    """For the chat tab: why the chosen model does not chat, and which one does. Blank where it does."""
    card = choice.card
    if card is None or card.chat:
        return ""
    advice = [f"Choose {' or '.join(choice.talkers)} to chat."] if choice.talkers else []
    if "score" in card.capabilities:
        advice.append("The Score tab works.")
    return problem(" ".join([f"{card.id} has no chat template, so it cannot chat.", *advice]))


def _sentences(choice: Choice) -> Iterator[str]:
    status = choice.readiness.status
    if status == "loading" and choice.loading:
        yield f"The server is still loading {', '.join(choice.loading)}. Reload this page to look again."
    elif status != "ready":
        yield f"The server is {status}: answers may be refused."
    if choice.missed and choice.card is not None:
        yield f"{choice.asked} is {'not there yet' if choice.coming else 'no longer served here'}, so {choice.card.id} is chosen."


def _lines(choice: Choice) -> str:
    return f'<ul class="models" aria-label="Models">{"".join(_line(card, card == choice.card) for card in choice.cards)}</ul>'


def _line(card: ModelCard, chosen: bool) -> str:
    marks = [word for word, holds in {"chosen": chosen, "default": card.default}.items() if holds]
    facts = [_precision(card), card.device, f"{card.context:,} tokens", f"{card.slots:,} slots"]
    if card.observer:
        facts.append(f"observer {card.observer}")
    if not card.chat:
        facts.append("no chat template")
    return (
        f"<li{' aria-current=true' if chosen else ''}><b>{escaped(card.id)}</b> "
        f"{''.join(f'<span class=mark>{mark}</span> ' for mark in marks)}{escaped(' · '.join(facts))}</li>"
    )


def _facts(card: ModelCard) -> str:
    facts = {
        "Model": card.id,
        "Precision": _precision(card),
        "Device": card.device,
        "Context": f"{card.context:,} tokens",
        "Slots": f"{card.slots:,}",
        "Observer": card.observer or "none",
    }
    if not card.chat:
        facts["Chat"] = "no chat template"
    pairs = "".join(f"<div><dt>{name}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{pairs}</dl>'


def _precision(card: ModelCard) -> str:
    return card.dtype if card.quantize == "none" else f"{card.quantize}, computing in {card.dtype}"


def _header(inside: str) -> str:
    return f'<header class="litmus"><h1>Litmus</h1><p class="tagline">{TAGLINE}</p>{inside}</header>'
