"""Normalizes a text before scoring: undoes changes of characters that mislead a detector, and keeps each character's place in the original.

Plain functions of characters; knows no model. Every change is counted, so that an answer can report what was done.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.schemas import Normalisation

INVISIBLE = frozenset("\u034f\u115f\u1160\u3164\uffa0")  # besides the format characters (Cf) and the variation selectors
QUOTES = {**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')}  # typographic quotation marks
COMPATIBILITY_TAGS = ("<font>", "<wide>", "<narrow>")  # Unicode's tags of mathematical, full-width and half-width letters
WORD = re.compile(r"[^\W\d_]+")
HOMOGLYPHS = {  # Cyrillic, Greek and Armenian letters that look like Latin ones
    **dict(zip("аеорсухіјѕһԁԛԝѵӏ", "aeopcyxijshdqwvl", strict=True)),
    **dict(zip("АВЕКМНОРСТУХІЈЅԌԜ", "ABEKMHOPCTYXIJSGW", strict=True)),
    **dict(zip("οανρυικτχγ", "oavpuiktxy", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip("օսհոց", "ouhng", strict=True)),
}


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """`origins[i]` is the index in the original text of the character that became `content[i]`; `changes` counts the changed characters."""

    content: str
    origins: tuple[int, ...]
    changes: dict[Normalisation, int] = field(default_factory=dict)

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """The span `[start, end)` of the content as a span of the original text."""
        if start >= end:
            index = self.origins[start] if start < len(self.origins) else (self.origins[-1] + 1 if self.origins else 0)
            return index, index
        return self.origins[start], self.origins[end - 1] + 1


def normalize(text: str, collapse: bool = False) -> NormalizedText:
    """Removes invisible and control characters, and replaces typographic quotes, compatibility forms and homoglyphs.

    `collapse` also replaces every run of white space by one blank and strips both ends.
    """
    changes: Counter[Normalisation] = Counter()
    characters = list(_replace_characters(text, changes))  # (index in the original, character)
    if collapse:
        characters = _collapse_white_space(characters, changes)
    content, origins = "".join(character for _, character in characters), tuple(index for index, _ in characters)
    return NormalizedText(_replace_homoglyphs(content, changes), origins, dict(changes))


def _replace_characters(text: str, changes: Counter[Normalisation]) -> Iterator[tuple[int, str]]:
    """Each remaining character with its index in the text; a compatibility form may become several characters with the same index."""
    for index, character in enumerate(text):
        if character in INVISIBLE or unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f":
            changes["zero_width"] += 1
        elif character in QUOTES:
            changes["quotes"] += 1
            yield index, QUOTES[character]
        elif unicodedata.category(character) == "Cc" and not character.isspace():
            changes["control"] += 1
        elif not character.isascii() and unicodedata.decomposition(character).startswith(COMPATIBILITY_TAGS):
            changes["compatibility"] += 1
            yield from ((index, plain) for plain in unicodedata.normalize("NFKC", character))
        else:
            yield index, character


def _collapse_white_space(characters: list[tuple[int, str]], changes: Counter[Normalisation]) -> list[tuple[int, str]]:
    collapsed: list[tuple[int, str]] = []
    for index, character in characters:
        if not character.isspace():
            collapsed.append((index, character))
        elif collapsed and collapsed[-1][1] != " ":
            changes["white_space"] += character != " "
            collapsed.append((index, " "))
        else:
            changes["white_space"] += 1
    if collapsed and collapsed[-1][1] == " ":
        collapsed.pop()
        changes["white_space"] += 1
    if not changes["white_space"]:
        del changes["white_space"]
    return collapsed


def _replace_homoglyphs(content: str, changes: Counter[Normalisation]) -> str:
    """Replaces homoglyphs by Latin letters, if any word mixes homoglyphs and ASCII letters.

    Then all words are checked, but a word that also has other non-Latin letters is of another language and stays.
    """
    if content.isascii():
        return content
    words = [match[0] for match in WORD.finditer(content)]
    if not any(_mixes_scripts(word) for word in words):
        return content

    def latinize(match: re.Match[str]) -> str:
        word = "".join(HOMOGLYPHS.get(letter, letter) for letter in match[0])
        if not _is_latin(word):
            return match[0]
        count = sum(letter in HOMOGLYPHS for letter in match[0])
        if count:
            changes["homoglyph"] += count
        return word

    return WORD.sub(latinize, content)


def _mixes_scripts(word: str) -> bool:
    return any(letter in HOMOGLYPHS for letter in word) and any(letter.isascii() for letter in word)


def _is_latin(word: str) -> bool:
    return all(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in word)
