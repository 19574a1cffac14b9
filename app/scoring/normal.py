"""A text as it is scored: without what only serves to mislead a detector, and where each of its characters stands in the text as sent.

Plain functions of characters; knows no model. Every change is counted, so that an answer can say what was done.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.schemas import Change

MOSTLY = 0.8  # share of ASCII among the letters of a text in which a look-alike is taken for a disguise
ZERO_WIDTH = frozenset("\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff")
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
        if letter in ZERO_WIDTH:
            changes["zero_width"] += 1
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
    """Look-alikes as the Latin letters they are taken for, in words of a text that is Latin otherwise."""
    if content.isascii():
        return content
    letters = sum(letter.isalpha() for letter in content)
    if sum(letter.isascii() and letter.isalpha() for letter in content) < MOSTLY * letters:
        return content

    def plain(found: re.Match[str]) -> str:
        word = found[0]
        foreign = [letter for letter in word if not letter.isascii()]
        if not foreign or len(word) == 1 or any(letter not in LOOKS for letter in foreign if letter in LOOKS or _foreign(letter)):
            return word
        changes["homoglyph"] += sum(letter in LOOKS for letter in foreign)
        return "".join(LOOKS.get(letter, letter) for letter in word)

    return WORD.sub(plain, content)


def _foreign(letter: str) -> bool:
    """Not of the Latin script, which has letters beyond ASCII."""
    return not unicodedata.name(letter, "").startswith("LATIN")
