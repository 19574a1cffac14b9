"""What a form of the System tab says, as fields of a request. A blank or unchanged field is not sent. Knows the wire's names only."""

from collections.abc import Sequence

from ui.client import RequestFields, ServerError

UNCHANGED = ""  # value of a dropdown
QUANTIZATIONS = ("none", "int8", "nf4", "fp4", "int4")
DTYPES = ("auto", "bfloat16", "float16", "float32")
NUMBERS = ("context", "slots")
FINE_TUNING = ("lora", "qlora")


def request_fields(names: Sequence[str], texts: Sequence[str | None]) -> RequestFields:
    """The fields that are filled in. Raises `ServerError` for a number that is none."""
    given = {name: text.strip() for name, text in zip(names, texts, strict=True) if text and text.strip()}
    return {name: _whole(name, text) if name in NUMBERS else text for name, text in given.items()}


def _whole(name: str, text: str) -> int:
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise ServerError(f"{name.capitalize()} must be a whole number, not “{text.strip()}”. Leave it blank for the default.") from None
