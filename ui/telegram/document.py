"""The text of a file that a user sent: which names are taken, and from bytes to text. Pure."""

from app import plaintext

SUFFIX = ".txt"
NOT_TEXT = "This file does not hold plain text. Please send a text, or a .txt file."
UNKNOWN_ENCODING = "I cannot tell how this file is encoded. Please save it as UTF-8 and send it again."


class Unreadable(Exception):
    """The file cannot be taken. The text is a sentence for the user."""


def check_name(name: str | None) -> None:
    if not (name or "").lower().endswith(SUFFIX):
        raise Unreadable("I read .txt files only. Please send the text itself, or save it as a .txt file.")


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Unreadable(f"This file is too large: {size:,} bytes. I read files of up to {limit:,} bytes.")


def decode(content: bytes) -> str:
    """In the encodings of `app.plaintext`. Raises `Unreadable`."""
    try:
        text = plaintext.decode(content)
    except plaintext.UnknownEncoding:
        raise Unreadable(UNKNOWN_ENCODING) from None
    except plaintext.NotText:
        raise Unreadable(NOT_TEXT) from None
    if plaintext.has_controls(text):
        raise Unreadable(NOT_TEXT)
    if not text.strip():
        raise Unreadable("This file is empty.")
    return text
