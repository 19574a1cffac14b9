"""The text of a result in one of three views, chosen by radio buttons: tokens, sentences, passages with their curve. Pure.

`score.css` shows the panel whose button is chosen, so it works without a script.
"""

from app.schemas import Score
from ui.score.curve import curve_html
from ui.score.highlight import passages_html, sentences_html, tokens_html

NAMES = {"token": "Tokens", "sentence": "Sentences", "passage": "Passages"}


def views_html(score: Score, text: str) -> str:
    """Blank if nothing was scored. A long text shows its passages first: one look tells where it changes."""
    panels = _panels(score, text)
    if not panels:
        return ""
    chosen = "passage" if "passage" in panels else next(iter(panels))
    buttons = "".join(
        f'<label><input type="radio" name="view" value="{name}"{" checked" if name == chosen else ""}> {NAMES[name]}</label>'
        for name in panels
    )
    content = "".join(f'<div class="panel {name}">{html}</div>' for name, html in panels.items())
    return f'<div class="views"><fieldset class="switch"><legend>The text by its</legend>{buttons}</fieldset>{content}</div>'


def _panels(score: Score, text: str) -> dict[str, str]:
    panels = {}
    if score.tokens:
        panels["token"] = tokens_html(score.tokens, text)
    if score.sentences and len(score.sentences) > 1:
        panels["sentence"] = sentences_html(score, score.sentences, text)
    if score.passages:
        panels["passage"] = curve_html(score, score.passages, len(text)) + passages_html(score, score.passages, text)
    return panels
