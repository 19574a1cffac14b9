"""A text as it is scored: without what only serves to mislead a detector, and where each of its characters stands in the text as sent.

Plain functions of characters; knows no model. Every change is counted, so that an answer can say what was done.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.schemas import Change

UNSEEN = frozenset("\u034f\u115f\u1160\u3164\uffa0")  # beside the format characters and the variation selectors
QUOTES = {**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')}  # as word processors write them
COMPATIBLE = ("<font>", "<wide>", "<narrow>")  # mathematical, full-width and half-width forms of letters
WORD = re.compile(r"[^\W\d_]+")
LOOKS = {  # letters of Cyrillic, Greek and Armenian that look like Latin ones
    **dict(zip("аеорсухіјѕһԁԛԝѵӏ", "aeopcyxijshdqwvl", strict=True)),
    **dict(zip("АВЕКМНОРСТУХІЈЅԌԜ", "ABEKMHOPCTYXIJSGW", strict=True)),
    **dict(zip("οανρυικτχγ", "oavpuiktxy", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip("օսհոց", "ouhng", strict=True)),
}


@dataclass(frozen=True, slots=True)
class Text:
    """`places[i]` is the character of the text as sent that character i of `content` stands for."""

    content: str
    places: tuple[int, ...]
    changes: dict[Change, int] = field(default_factory=dict)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Characters `[start, end)` of the content, in the text as sent."""
        if start >= end:
            at = self.places[start] if start < len(self.places) else (self.places[-1] + 1 if self.places else 0)
            return at, at
        return self.places[start], self.places[end - 1] + 1


def normal(text: str, collapse: bool = False) -> Text:
    """`collapse` makes every run of white space one blank, and leaves none at the ends."""
    changes: Counter[Change] = Counter()
    letters = _collapsed(list(_plain(text, changes)), changes) if collapse else list(_plain(text, changes))
    content, places = "".join(letter for _, letter in letters), tuple(place for place, _ in letters)
    return Text(_unmasked(content, changes), places, dict(changes))


def _plain(text: str, changes: Counter[Change]) -> Iterator[tuple[int, str]]:
    """Each character that stays, with its place; those of the presentation forms as what they stand for."""
    for place, letter in enumerate(text):
        if letter in UNSEEN or unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f":
            changes["zero_width"] += 1
        elif letter in QUOTES:
            changes["quotes"] += 1
            yield place, QUOTES[letter]
        elif unicodedata.category(letter) == "Cc" and not letter.isspace():
            changes["control"] += 1
        elif not letter.isascii() and unicodedata.decomposition(letter).startswith(COMPATIBLE):
            changes["compatibility"] += 1
            yield from ((place, one) for one in unicodedata.normalize("NFKC", letter))
        else:
            yield place, letter


def _collapsed(letters: list[tuple[int, str]], changes: Counter[Change]) -> list[tuple[int, str]]:
    made: list[tuple[int, str]] = []
    for place, letter in letters:
        if not letter.isspace():
            made.append((place, letter))
        elif made and made[-1][1] != " ":
            changes["white_space"] += letter != " "
            made.append((place, " "))
        else:
            changes["white_space"] += 1
    if made and made[-1][1] == " ":
        made.pop()
        changes["white_space"] += 1
    if not changes["white_space"]:
        del changes["white_space"]
    return made


def _unmasked(content: str, changes: Counter[Change]) -> str:
    """Look-alikes as the Latin letters they are taken for: in words of two scripts, and where there are such, in all words."""
    if content.isascii():
        return content
    words = [found[0] for found in WORD.finditer(content)]
    if not any(_mixed(word) for word in words):
        return content

    def plain(found: re.Match[str]) -> str:
        made = "".join(LOOKS.get(letter, letter) for letter in found[0])
        if not _latin(made):  # a word of another language, which only holds some letters like ours
            return found[0]
        count = sum(letter in LOOKS for letter in found[0])
        if count:
            changes["homoglyph"] += count
        return made

    return WORD.sub(plain, content)


def _mixed(word: str) -> bool:
    return any(letter in LOOKS for letter in word) and any(letter.isascii() for letter in word)


def _latin(word: str) -> bool:
    return all(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in word)
