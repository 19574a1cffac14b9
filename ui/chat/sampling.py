"""Turns the settings form of the chat tab into request fields. Blank fields are not sent, so the model's defaults apply.

Knows the wire's field names and nothing else; the server checks the bounds.
"""

import math
from dataclasses import dataclass

from ui.client import RequestFields


class FormError(ValueError):
    """A field of the form is not a number where it has to be one. The text is a sentence for the visitor."""


@dataclass(frozen=True, slots=True)
class Form:
    """Every field as the visitor typed it; blank means the model's default.

    The fields are text, not numbers: Gradio shows a blank number field as 0, and a browser rounds whole numbers above 2^53.
    """

    max_tokens: str = ""
    temperature: str = ""
    top_p: str = ""
    top_k: str = ""
    min_p: str = ""
    seed: str = ""
    stop: str = ""
    system: str = ""

    def request_fields(self) -> RequestFields:
        """The sampling parameters that are set. Raises `FormError`."""
        values = {
            "max_tokens": _parse_int("Max tokens", self.max_tokens),
            "temperature": _parse_float("Temperature", self.temperature),
            "top_p": _parse_float("Top-p", self.top_p),
            "top_k": _parse_int("Top-k", self.top_k),
            "min_p": _parse_float("Min-p", self.min_p),
            "seed": _parse_int("Seed", self.seed),
            "stop": _parse_stop_strings(self.stop) or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def system_messages(self) -> list[RequestFields]:
        """The system prompt as a list of one message, or an empty list."""
        return [{"role": "system", "content": self.system}] if self.system.strip() else []


def _parse_int(label: str, text: str) -> int | None:
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise FormError(f"{label} must be a whole number, not “{text.strip()}”. Leave it blank for the default.") from None


def _parse_float(label: str, text: str) -> float | None:
    try:
        value = float(text) if text.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise FormError(f"{label} must be a number, not “{text.strip()}”. Leave it blank for the default.")
    return value


def _parse_stop_strings(text: str) -> list[str]:
    r"""One stop string per line; `\n` stands for a line break."""
    return [line.replace("\\n", "\n") for line in text.splitlines() if line]
