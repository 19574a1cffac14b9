"""From the bytes of a text file to its text, in the encodings that programs write. Knows no file and no page."""

import codecs
import unicodedata

BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LEGACY = "cp1252"  # Windows' own for western languages
MAX_FOREIGN = 0.25  # of its letters may lie beyond ASCII; in text of another alphabet nearly all do
NO_TEXT = "it holds no plain text"
UNKNOWN = "how it is encoded cannot be told; save it as UTF-8"


class NotText(Exception):
    """The bytes are no text. The words are a clause about the file."""


class UnknownEncoding(NotText):
    """They may be text, in an encoding that cannot be told."""


def decode(content: bytes) -> str:
    """UTF-8, UTF-16 and UTF-32 by their byte order marks, UTF-8 without one, and Windows-1252 where it is plainly a western language.
    Raises `NotText`.
    """
    mark = next((mark for mark in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    try:
        text = content.decode("utf-8" if mark is None else BYTE_ORDER_MARKS[mark])
    except UnicodeDecodeError:
        return _legacy(content)
    if "\0" in text:
        raise NotText(NO_TEXT)
    return text


def has_controls(text: str) -> bool:
    """Whether it has characters that neither print nor space."""
    return any(unicodedata.category(character) == "Cc" and character not in "\t\n\r\f\v" for character in text)


def _legacy(content: bytes) -> str:
    try:
        text = content.decode(LEGACY)
    except UnicodeDecodeError:
        raise UnknownEncoding(UNKNOWN) from None
    if has_controls(text):
        raise NotText(NO_TEXT)
    letters = [character for character in text if character.isalpha()]
    if sum(not letter.isascii() for letter in letters) > MAX_FOREIGN * len(letters):
        raise UnknownEncoding(UNKNOWN)
    return text
