"""Cuts a text into messages that Telegram takes: at most 4,096 UTF-16 units each. Pure.

A piece that another one follows does not change when the text grows, so it can be sent before the text is complete.
"""

MAX_UNITS = 4096


def units(text: str) -> int:
    """How Telegram counts: a character beyond the first 65,536, such as an emoji, is two."""
    return len(text) + sum(character > "\uffff" for character in text)


def clean(text: str) -> str:
    """Joins surrogates that came apart and replaces single ones, which no message can hold; leaves out NUL."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split(text: str, limit: int = MAX_UNITS) -> list[str]:
    """The pieces in order. None of them is blank, as Telegram refuses a blank message."""
    pieces = []
    while units(text) > limit:
        end = _end(text, limit)
        pieces.append(text[:end])
        text = text[end:].lstrip("\n")
    return [piece.rstrip() for piece in [*pieces, text] if piece.strip()]


def _end(text: str, limit: int) -> int:
    """Where the first piece ends: behind the last line break or blank of its second half, else where the limit is."""
    end, count = 0, 0
    while count + (size := 1 + (text[end] > "\uffff")) <= limit:
        end, count = end + 1, count + size
    for mark in ("\n", " "):
        if (found := text.rfind(mark, end // 2, end)) >= 0:
            return found + 1
    return end
