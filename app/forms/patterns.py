"""Measures a regular expression before llguidance compiles it, which writes out every repetition. Knows no schema."""

import re
from functools import reduce
from typing import NamedTuple

# One element of a pattern's syntax. An unclosed set or class runs to the end, so each character is read only once.
TOKEN = re.compile(
    r"\\[pPx]\{[^}]*(?:\}|\Z)|\\.?|(?P<set>\[\^?\]?(?:\\.?|[^\]\\])*(?:\]|\Z))|\{(?P<low>\d{0,9})(?:,(?P<high>\d{0,9}))?\}|.", re.S
)
ESCAPE = re.compile(r"\\.", re.S)
RUST_SET_SYNTAX = re.compile(r"\[|&&|--|~~")


class RegexSize(NamedTuple):
    """An upper bound of a pattern's size with its `{m,n}` repetitions written out. Alternatives are added up; `*` and `+` cost nothing."""

    atoms: int = 0  # characters, escapes and sets
    variable_repeats: int = 0  # how often repetitions {m,n} with m < n repeat at most, all together
    several_variable: bool = False  # two or more repetitions {m,n} with m < n, nested or one after the other

    def then(self, following: "RegexSize") -> "RegexSize":
        several = self.several_variable or following.several_variable or (self.variable_repeats > 0 and following.variable_repeats > 0)
        return RegexSize(self.atoms + following.atoms, self.variable_repeats + following.variable_repeats, several)

    def times(self, low: int, high: int) -> "RegexSize":
        if self.variable_repeats:
            return RegexSize(high * self.atoms, high * self.variable_repeats, self.several_variable or high > 1)
        return RegexSize(high * self.atoms, high if high > low else 0, self.several_variable)


def regex_size(pattern: str) -> RegexSize:
    """Accepts any text: one that is no valid regular expression has some size, too."""
    groups, last = [RegexSize()], RegexSize()  # for each open group what precedes its last element, and the last element read
    for token in TOKEN.finditer(pattern):
        if token["low"] is not None:
            low = int(token["low"] or 0)
            last = last.times(low, max(low, int(token["high"] or 0), 1))
        elif token[0] == ")" and len(groups) > 1:
            last = groups.pop().then(last)
        elif token[0] not in "*+?|":
            groups[-1] = groups[-1].then(last)
            last = RegexSize(1)
            if token[0] == "(":
                groups.append(RegexSize())
                last = RegexSize()
    return reduce(RegexSize.then, [*groups, last])


def uses_rust_set_syntax(pattern: str) -> bool:
    """Whether a character set contains an unescaped `[`, `&&`, `--` or `~~`. Rust's regular expressions combine sets by these; in
    JavaScript's, which JSON Schema prescribes, they are plain characters.
    """
    sets = (token["set"] for token in TOKEN.finditer(pattern) if token["set"])
    return any(RUST_SET_SYNTAX.search(ESCAPE.sub("", text[1:-1])) for text in sets)
