"""Short texts that the patterns and formats of a grammar's strings allow, and its multiples, for an answer that has to come to an end.

examples(grammar: str) -> list[str]              of a regular expression, or of a grammar with schemas as `json.dumps` writes them
has_patterns(grammar: str) -> bool               whether it has such strings
multiples(grammar: str) -> tuple[int, ...]       of which whole numbers in it may have to be multiples
digits_to_multiples(number, steps) -> list[str]  digits after which a number begun is a multiple, the fewest first
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import lcm
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

STRING = r'("(?:[^"\\]|\\.)*")'
PATTERN, FORMAT = re.compile(f'"pattern": {STRING}'), re.compile(f'"format": {STRING}')
REGEX = re.compile(r"start: /(.+)/", re.S)  # as `app.forms.lark` writes it
MULTIPLE_OF = re.compile(r'"multipleOf": ([-+.0-9eE]+)')
WHOLE_NUMBER = re.compile(rb"-?([1-9][0-9]*)?")
MORE_DIGITS = 9  # that a number begun is given
CLASS = re.compile(r"\\[pP](?:\{[^}]*\}|.)")  # of Unicode, which Python does not know: a letter may be one of it
OF_FORMATS = {"email": "a@a.a", "uri": "a:a", "hostname": "a.a"}
LETTERS = "a0A .-_/:@#"  # one of them is taken where a pattern leaves the choice
LONGEST = 64


def examples(grammar: str) -> list[str]:
    """Without repetitions; none for a pattern that Python does not read, or whose shortest text is long."""
    of_formats = (OF_FORMATS.get(json.loads(name), "") for name in FORMAT.findall(grammar))
    whole = REGEX.fullmatch(grammar)
    patterns = [*map(json.loads, PATTERN.findall(grammar)), *([whole[1]] if whole else [])]
    texts = dict.fromkeys([*map(_example, patterns), *of_formats])
    return [text for text in texts if 0 < len(text) <= LONGEST]


def has_patterns(grammar: str) -> bool:
    return is_regex(grammar) or any(kind.search(grammar) for kind in (PATTERN, FORMAT))


def is_regex(grammar: str) -> bool:
    return REGEX.fullmatch(grammar) is not None


def multiples(grammar: str) -> tuple[int, ...]:
    """Of each `multipleOf` the smallest whole number, as 5 for 2.5, and one that is a multiple of them all."""
    steps = {Fraction(step).numerator for step in MULTIPLE_OF.findall(grammar)} - {1}
    return tuple(sorted({*steps, lcm(*steps)})) if steps else ()


def digits_to_multiples(number: bytes, steps: Sequence[int]) -> list[str]:
    """For each count of digits and each step the first and the last multiple; none after a decimal point."""
    begun = WHOLE_NUMBER.fullmatch(number)
    if begun is None:
        return []
    whole, texts = (begun[1] or b"").decode(), list[str]()
    for count in range(1, MORE_DIGITS + 1):
        low, high = (f"{whole}{digit * count}" for digit in "09")
        lowest, highest = int(low) if whole else 10 ** (count - 1), int(high)
        found = (multiple for step in steps for multiple in (-(-lowest // step) * step, highest // step * step))
        texts += [str(multiple)[len(whole) :] for multiple in found if lowest <= multiple <= highest]
    return texts


def _example(pattern: str) -> str:
    try:
        return _shortest(parser.parse(CLASS.sub(r"\\w", pattern)))
    except (re.error, OverflowError, RecursionError):
        return ""


def _shortest(parts: Iterable[tuple[Any, Any]]) -> str:
    """The shortest text of a part of a pattern that Python has parsed, where what one part allows does not depend on another."""
    return "".join(_of_part(code, value) for code, value in parts)[: LONGEST + 1]


def _of_part(code: Any, value: Any) -> str:
    if code is codes.BRANCH:
        return min(map(_shortest, value[1]), key=len)
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, _, inner = value
        return _shortest(inner) * min(least, LONGEST + 1)
    if code is codes.SUBPATTERN:
        return _shortest(value[-1])
    is_set = code in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN)
    return next(_members(value if code is codes.IN else [(code, value)]), "") if is_set else ""


def _members(parts: list[tuple[Any, Any]]) -> Iterator[str]:
    """Characters of a set, in the parser's words."""
    if parts[0][0] is codes.NEGATE:
        excluded = set().union(*(_matched(*part) for part in parts[1:]))
        yield from (letter for letter in LETTERS if letter not in excluded)
    for code, value in parts:
        if code in (codes.LITERAL, codes.RANGE):
            yield chr(value if code is codes.LITERAL else value[0])
        else:
            yield from sorted(_matched(code, value), key=LETTERS.index)


def _matched(code: Any, value: Any) -> set[str]:
    """Which of `LETTERS` a member of a set matches."""
    if code is codes.RANGE:
        return {letter for letter in LETTERS if value[0] <= ord(letter) <= value[1]}
    if code is codes.CATEGORY:
        name = str(value).removeprefix("CATEGORY_")
        kind = {"DIGIT": r"\d", "WORD": r"\w", "SPACE": r"\s", "NOT_DIGIT": r"\D", "NOT_WORD": r"\W", "NOT_SPACE": r"\S"}[name]
        return set(re.findall(kind, LETTERS))
    if code is codes.LITERAL:
        return {chr(value)}
    return set(LETTERS) - ({chr(value)} if code is codes.NOT_LITERAL else set())
