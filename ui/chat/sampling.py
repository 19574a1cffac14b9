"""Turns the settings form of the chat tab into request fields. Blank fields are not sent, so the model's defaults apply.

Knows the wire's field names and bounds, as the labels of the form state them.
"""

import math
from dataclasses import dataclass

from ui.client import RequestFields

SEEDS = 2**63  # one more than the largest seed
NO_SEED = -1  # for the server, too
MAX_STOP_STRINGS = 16


class FormError(ValueError):
    """A field of the form is not a number where it has to be one, or out of its bounds. The text is a sentence for the visitor."""


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
            "max_tokens": _parse_int("Max tokens", self.max_tokens, 1),
            "temperature": _parse_float("Temperature", self.temperature, 2),
            "top_p": _parse_float("Top-p", self.top_p, 1),
            "top_k": _parse_int("Top-k", self.top_k, 0),
            "min_p": _parse_float("Min-p", self.min_p, 1),
            "seed": _parse_seed(self.seed),
            "stop": _parse_stop_strings(self.stop) or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def system_messages(self) -> list[RequestFields]:
        """The system prompt as a list of one message, or an empty list."""
        return [{"role": "system", "content": self.system}] if self.system.strip() else []


def _parse_int(label: str, text: str, lowest: int, highest: float = math.inf) -> int | None:
    if not text.strip():
        return None
    try:
        value = int(text)
    except ValueError:
        raise _error(f"{label} must be a whole number", text) from None
    if not lowest <= value <= highest:
        bounds = f"of at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise _error(f"{label} must be a whole number {bounds}", text)
    return value


def _parse_seed(text: str) -> int | None:
    seed = _parse_int("Seed", text, -SEEDS, SEEDS - 1)
    return None if seed == NO_SEED else seed


def _parse_float(label: str, text: str, highest: int) -> float | None:
    """A number from 0 to `highest`."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= highest:
        raise _error(f"{label} must be a number from 0 to {highest}", text)
    return value


def _error(sentence: str, text: str) -> FormError:
    return FormError(f"{sentence}, not “{text.strip()}”. Leave it blank for the default.")


def _parse_stop_strings(text: str) -> list[str]:
    r"""One stop string per line; `\n` stands for a line break. Raises `FormError`."""
    strings = [line.replace("\\n", "\n") for line in text.splitlines() if line]
    if len(strings) > MAX_STOP_STRINGS:
        raise FormError(f"There may be at most {MAX_STOP_STRINGS} stop strings, not {len(strings)}.")
    return strings
