"""Translates the versions of the served models, and what becomes of a change, into HTML. Pure; every name is escaped."""

from collections.abc import Sequence

from app.schemas import AdminModel
from ui.markup import escape_html
from ui.system.units import bytes_text, count_text, share_text

MEANINGS = {
    "served": "served",
    "loading": "loading",
    "draining": "draining: finishes what it has",
    "unloaded": "unloaded",
    "failed": "failed",
}


def versions_html(models: Sequence[AdminModel]) -> str:
    if not models:
        return '<p class="hint">No model is listed. Load one below.</p>'
    return f'<ul class="versions" aria-label="Models">{"".join(map(_version_html, models))}</ul>'


def _version_html(model: AdminModel) -> str:
    facts = [MEANINGS[model.status]]
    if model.in_flight:
        facts.append(f"{count_text(model.in_flight, 'request')} in flight")
    if model.bytes is not None:
        facts.append(bytes_text(model.bytes))
    if model.revision:
        facts.append(f"revision {model.revision[:12]}")
    message = f'<span class="message">{escape_html(model.message)}</span>' if model.message else ""
    return (
        f'<li class="{model.status}"><b>{escape_html(model.id)}</b> {escape_html(" · ".join(facts))} {_progress_html(model)}'
        f'<span class="path">{escape_html(model.path)}</span>{message}</li>'
    )


def _progress_html(model: AdminModel) -> str:
    if model.status != "loading" or model.loaded is None:
        return ""
    label = escape_html(f"{model.id} is loading")
    return f'<progress max="1" value="{model.loaded:.2f}" aria-label="{label}"></progress> {share_text(model.loaded)}'


def question_html(name: str, models: Sequence[AdminModel]) -> str:
    """Asks whether a model is to be unloaded, and says what it has in flight."""
    in_flight = sum(model.in_flight for model in models if model.id == name)
    first = "It has nothing in flight." if not in_flight else f"It first finishes the {count_text(in_flight, 'request')} that it has."
    return (
        f'<p role="alert">Unload <b>{escape_html(name)}</b>? {first} From now on, requests for it are refused until it is loaded again.</p>'
    )


def done_html(sentence: str) -> str:
    return f'<p class="status" role="status">{escape_html(sentence)}</p>'
