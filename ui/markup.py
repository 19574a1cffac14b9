"""Turns text into HTML that shows it as it is. Knows neither Gradio nor HTTP."""

import html

TEMPLATE_ESCAPES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def escape_html(text: str) -> str:
    """Escapes text for an HTML body or attribute. Braces too: `gr.HTML` reads its value as a template."""
    return html.escape(text).translate(TEMPLATE_ESCAPES)


def alert_html(sentence: str) -> str:
    """A paragraph for an error or a warning, announced by screen readers."""
    return f'<p class="status problem" role="alert">{escape_html(sentence)}</p>'
