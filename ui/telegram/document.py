"""The text of a file that a user sent: which names are taken, and from bytes to text. Pure."""

import codecs
import unicodedata

SUFFIX = ".txt"
BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LEGACY = "cp1252"  # Windows' own for western languages
MAX_FOREIGN = 0.25  # of its letters may lie beyond ASCII; in text of another alphabet nearly all do
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
    """UTF-8, UTF-16 and UTF-32 by their byte order marks, UTF-8 without one, and Windows-1252. Raises `Unreadable`."""
    mark = next((mark for mark in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    try:
        text = content.decode("utf-8" if mark is None else BYTE_ORDER_MARKS[mark])
    except UnicodeDecodeError:
        text = _legacy(content)
    if any(unicodedata.category(character) == "Cc" and character not in "\t\n\r\f\v" for character in text):
        raise Unreadable(NOT_TEXT)
    if not text.strip():
        raise Unreadable("This file is empty.")
    return text


def _legacy(content: bytes) -> str:
    try:
        text = content.decode(LEGACY)
    except UnicodeDecodeError:
        raise Unreadable(UNKNOWN_ENCODING) from None
    letters = [character for character in text if character.isalpha()]
    if sum(not letter.isascii() for letter in letters) > MAX_FOREIGN * len(letters):
        raise Unreadable(UNKNOWN_ENCODING)
    return text
