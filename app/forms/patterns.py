"""How large a regular expression is, before it is given to a library that takes each repetition apart. Knows no schema."""

import re
from functools import reduce
from typing import NamedTuple

# Each begins to be read once: what is not closed goes to the end.
TOKEN = re.compile(
    r"\\[pPx]\{[^}]*(?:\}|\Z)|\\.?|(?P<set>\[\^?\]?(?:\\.?|[^\]\\])*(?:\]|\Z))|\{(?P<low>\d{0,9})(?:,(?P<high>\d{0,9}))?\}|.", re.S
)
ESCAPE = re.compile(r"\\.", re.S)
COMBINED = re.compile(r"\[|&&|--|~~")


class Regex(NamedTuple):
    """A part of a pattern, measured from above: things in a row, and how many of them are in repetitions whose number may vary. `several`
    such repetitions stand in or behind each other. Alternatives are added up; `*` and `+` need no counting.
    """

    things: int = 0
    varying: int = 0
    several: bool = False

    def then(self, other: "Regex") -> "Regex":
        both = self.several or other.several or (self.varying > 0 and other.varying > 0)
        return Regex(self.things + other.things, self.varying + other.varying, both)

    def times(self, low: int, high: int) -> "Regex":
        if self.varying:
            return Regex(high * self.things, high * self.varying, self.several or high > 1)
        return Regex(high * self.things, high if high > low else 0, self.several)


def measured(pattern: str) -> Regex:
    """Of any text: what is no regular expression has some size as well."""
    groups, last = [Regex()], Regex()  # what was read of each open group, but for its last thing
    for found in TOKEN.finditer(pattern):
        if found["low"] is not None:
            low = int(found["low"] or 0)
            last = last.times(low, max(low, int(found["high"] or 0), 1))
        elif found[0] == ")" and len(groups) > 1:
            last = groups.pop().then(last)
        elif found[0] not in "*+?|":
            groups[-1] = groups[-1].then(last)
            last = Regex(1)
            if found[0] == "(":
                groups.append(Regex())
                last = Regex()
    return reduce(Regex.then, [*groups, last])


def foreign(pattern: str) -> bool:
    """Whether a set holds a set, or `&&`, `--` or `~~`: Rust's expressions combine sets by them, JavaScript's (JSON Schema's) do not."""
    sets = (found["set"] for found in TOKEN.finditer(pattern) if found["set"])
    return any(COMBINED.search(ESCAPE.sub("", one[1:-1])) for one in sets)
