"""From the bytes of a text file to its text, in the encodings that programs write. Knows no file and no page."""

import codecs
import re

BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LEGACY = "cp1252"  # Windows' own for western languages
MAX_FOREIGN = 0.25  # of its letters may lie beyond ASCII; in text of another alphabet nearly all do
LETTERS = "A-Za-zÀ-ÖØ-öø-ÿŠŽŒšžœŸ"  # that western languages write
QUOTES = "“”‘’«»‹›„‚¡¿"
BETWEEN = re.compile(rf"(?<=[{LETTERS}])[^\x00-\x7f{LETTERS}]+(?=[{LETTERS}])")  # signs between two letters
JOINS = re.compile(rf"[®™°ªº]*[’‘´·\xad¬×÷±®™°ªº][{QUOTES}]?|[{QUOTES}]*[–—…]+[{QUOTES}]*")  # signs that may stand there
LOW_QUOTE = re.compile(rf"[{LETTERS}][‚„]")  # one that follows a letter; it is é or ä in DOS's encodings
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")
MAX_STRANGE = 0.1  # of the words with characters beyond ASCII may look like another encoding's
NO_TEXT = "it holds no plain text"
UNKNOWN = "how it is encoded cannot be told; save it as UTF-8"


class NotText(Exception):
    """The bytes are no text. The words are a clause about the file."""


class UnknownEncoding(NotText):
    """They may be text, in an encoding that cannot be told."""


def decode(content: bytes) -> str:
    """The text alone, of `recognize`."""
    return recognize(content)[0]


def recognize(content: bytes) -> tuple[str, str]:
    """The text and the encoding's name: UTF-8, UTF-16 and UTF-32 by their byte order marks, UTF-8 without one, and Windows-1252 where it is
    plainly a western language. Raises `NotText`.
    """
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return _legacy(content), LEGACY
    if "\0" in text:
        raise NotText(NO_TEXT)
    return text, encoding


def has_controls(text: str) -> bool:
    """Whether it has control characters other than white space."""
    return CONTROLS.search(text.rstrip("\x1a")) is not None  # it ends a file of DOS


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
    words = [word for word in text.split() if not word.isascii()]
    if sum(map(_is_strange, words)) > MAX_STRANGE * len(words):
        raise UnknownEncoding(UNKNOWN)
    return text


def _is_strange(word: str) -> bool:
    """Whether it has signs between letters, or more than two letters beyond ASCII (one alone is a word) for each of ASCII (as in été):
    words in GBK, Shift-JIS and cp437 do.
    """
    if LOW_QUOTE.search(word) or not all(JOINS.fullmatch(signs) for signs in BETWEEN.findall(word)):
        return True
    letters = [character for character in word if character.isalpha()]
    beyond = sum(not letter.isascii() for letter in letters)
    return beyond >= 2 and beyond > 2 * (len(letters) - beyond)
