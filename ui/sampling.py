"""The sampling settings of the chat form as request fields: only what the user set is sent, so the model's defaults hold.

Knows the wire's field names and nothing else; bounds are the server's to check.
"""

import math
from dataclasses import dataclass

from ui.client import Fields


class FormError(ValueError):
    """A field of the form cannot be read. Its text is a sentence."""


@dataclass(frozen=True, slots=True)
class Form:
    """Every field as the user typed it, blank for the model's default. Text and not number fields, because Gradio's show a blank as 0
    and a browser rounds whole numbers above 2^53."""

    max_tokens: str = ""
    temperature: str = ""
    top_p: str = ""
    top_k: str = ""
    min_p: str = ""
    seed: str = ""
    stop: str = ""
    system: str = ""

    def fields(self) -> Fields:
        """Raises `FormError`."""
        values = {
            "max_tokens": _whole("Max tokens", self.max_tokens),
            "temperature": _number("Temperature", self.temperature),
            "top_p": _number("Top-p", self.top_p),
            "top_k": _whole("Top-k", self.top_k),
            "min_p": _number("Min-p", self.min_p),
            "seed": _whole("Seed", self.seed),
            "stop": _stops(self.stop) or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def opening(self) -> list[Fields]:
        """The messages before the conversation: the system prompt, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system.strip() else []


def _whole(label: str, text: str) -> int | None:
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise FormError(f"{label} must be a whole number, not “{text.strip()}”. Leave it blank for the default.") from None


def _number(label: str, text: str) -> float | None:
    try:
        value = float(text) if text.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise FormError(f"{label} must be a number, not “{text.strip()}”. Leave it blank for the default.")
    return value


def _stops(text: str) -> list[str]:
    r"""One stop string a line; `\n` stands for a line break."""
    return [line.replace("\\n", "\n") for line in text.splitlines() if line]
