"""Short texts for patterns: each matches, as Python reads the pattern."""

import json
import re

import pytest

from app.forms.examples import LONGEST, examples


def of(*patterns: str) -> list[str]:
    return examples("start: %json " + json.dumps({"anyOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("abc", "abc"),
        (r'a"\\b', 'a"\\b'),
        (r"^\S+@\S+\.(com|org|x)$", "a@a.x"),
        (r"^[A-Z]{2}-?\d{3,9}$", "AA000"),
        (r"^[^a-z@]+(?:\s|_)\D\W$", "0 a "),
        (r"^[^\s\w]x.[]y]$", ".xa]"),
        (r"^(a{3}){2}b*?$", "aaaaaa"),
    ],
)
def test_the_shortest_text(pattern: str, text: str) -> None:
    assert of(pattern) == [text] and re.search(pattern, text)


def test_none_for_what_is_empty_long_or_not_pythons() -> None:
    long = f"{'(' * 6}a{'){60}' * 6}"
    assert of("^$", "a*", f"a{{{LONGEST + 1}}}", long, "(", "b", "b") == ["b"]
    assert of(r"x\p{L}+[\pN.]") == ["xaa"]


def test_formats_have_texts_of_their_own() -> None:
    assert examples('start: %json {"type": "string", "format": "email"}') == ["a@a.a"]
    assert examples('start: %json {"type": "string", "format": "date"}') == [] == examples('start: "text"')
