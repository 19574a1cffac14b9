"""Translates what the server serves into the HTML of the page's bar, and into the notice for a model that cannot chat.

Pure: no Gradio component, no HTTP. Every name is escaped.
"""

from collections.abc import Iterator

from app.schemas import ModelCard, Readiness
from ui.loading import sentence
from ui.markup import alert_html, escape_html
from ui.models import ModelSelection


def connecting_header(server_url: str) -> str:
    return _header_html(f'<p class="status">Asking {escape_html(server_url)} which models it serves.</p>')


def loading_header(readiness: Readiness) -> str:
    """For a server that serves no model yet."""
    return _header_html(f'<p class="status">{escape_html(sentence(readiness))} This page goes on when it is ready.</p>')


def unreachable_header(sentence: str) -> str:
    return _header_html(alert_html(sentence))


def models_header(selection: ModelSelection) -> str:
    """The selected model in a few words, what is not ready, and behind the words all that is served."""
    status = " ".join(_status_sentences(selection))
    models = _model_list(selection) if selection.has_several else "".join(map(_facts_html, selection.cards))
    card = selection.selected
    about = "" if card is None else f'<details class="about"><summary>{escape_html(_summary(card))}</summary>{models}</details>'
    return _header_html(about + (alert_html(status) if status else ""), "" if card is None else card.id)


def served(selection: ModelSelection) -> list[str | int | None]:
    """What the chat tab needs to know of the selected model: its name, its precision, and its context in tokens, if that is known."""
    card = selection.selected
    return [] if card is None else [card.id, _short_precision(card), card.context]


def no_chat_notice(selection: ModelSelection) -> str:
    """Says on the chat tab why the selected model cannot chat, and which models can. Blank if it can."""
    card = selection.selected
    if card is None or card.chat:
        return ""
    advice = [f"Choose {' or '.join(selection.chat_names)} to chat."] if selection.chat_names else []
    if "score" in card.capabilities:
        advice.append("The Score tab works.")
    return alert_html(" ".join([f"{card.id} has no chat template, so it cannot chat.", *advice]))


def _status_sentences(selection: ModelSelection) -> Iterator[str]:
    """What the visitor should know about models that are not available."""
    status = selection.readiness.status
    if status == "loading" and selection.loading_names:
        yield f"The server is still loading {', '.join(selection.loading_names)}. This page will show them when they are ready."
    elif status == "degraded":
        unreachable = [name for name, presence in selection.readiness.models.items() if presence == "unreachable"]
        yield f"No server that answers for {', '.join(unreachable)} can be reached at the moment."
    elif status != "ready":
        yield f"The server is {status}: it may refuse requests."
    if selection.is_unavailable and selection.selected is not None:
        reason = "not available yet" if selection.will_be_available else "no longer served here"
        yield f"{selection.requested} is {reason}, so {selection.selected.id} is selected."


def _model_list(selection: ModelSelection) -> str:
    items = "".join(_model_item(card, card == selection.selected) for card in selection.cards)
    return f'<ul class="models" aria-label="Models">{items}</ul>'


def _model_item(card: ModelCard, is_selected: bool) -> str:
    marks = [mark for mark, applies in {"selected": is_selected, "default": card.default}.items() if applies]
    facts = [_precision(card), card.device or "", _context(card), f"{card.slots:,} {'requests at once' if card.upstreams else 'slots'}"]
    if card.observer:
        facts.append(f"observer {card.observer}")
    if not card.chat:
        facts.append("no chat template")
    return (
        f"<li{' aria-current=true' if is_selected else ''}><b>{escape_html(card.id)}</b> "
        f"{''.join(f'<span class=mark>{mark}</span> ' for mark in marks)}{escape_html(' · '.join(filter(None, facts)))}</li>"
    )


def _facts_html(card: ModelCard) -> str:
    facts = {
        "Model": card.id,
        "Answered" if card.upstreams else "Precision": _precision(card),
        "Device": card.device or "unknown",
        "Context": _context(card) or "unknown",
        "At once" if card.upstreams else "Slots": f"{card.slots:,}",
        "Observer": card.observer or "none",
    }
    if not card.chat:
        facts["Chat"] = "no chat template"
    items = "".join(f"<div><dt>{name}</dt><dd>{escape_html(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _context(card: ModelCard) -> str:
    return "" if card.context is None else f"{card.context:,} tokens"


def _precision(card: ModelCard) -> str:
    if card.upstreams:
        return f"by {card.owned_by} at {' and '.join(upstream.url for upstream in card.upstreams)}"
    if card.quantize is None or card.dtype is None or card.weights is None:
        return "unknown"
    if card.quantize != "none":
        return f"{card.quantize}, computing in {card.dtype}"
    weights = card.weights
    return card.dtype if weights.format == "float" else f"{weights.format} {', '.join(weights.types)}, computing in {card.dtype}"


def _short_precision(card: ModelCard) -> str:
    return _precision(card).partition(", computing in ")[0].removeprefix("gguf ")


def _summary(card: ModelCard) -> str:
    return " · ".join(filter(None, (card.id, _short_precision(card), _context(card))))


def _header_html(content: str, model: str = "") -> str:
    return f'<header class="litmus" data-model="{escape_html(model)}"><h1>Litmus</h1>{content}</header>'
