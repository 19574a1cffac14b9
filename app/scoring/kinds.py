"""Recognises texts that are no running prose, by their lines and characters. Knows no model."""

import re
from typing import Literal

Kind = Literal["code", "table", "list", "verse"]
MIN_LINES = 4
MAX_LINE_CHARACTERS = 400  # a longer one is a paragraph, and the patterns would take their time on it
CODE_LINE = re.compile(
    r"""[;{}]\s*$
    | ^\s*(?:def|class|import|from|return|for|while|if|else|elif|try|except|fn|func|function|const|let|var|public|private|static|void|int
        |use|package|end|\#include|@\w+)\b.*[:({;=]?\s*$
    | [\w\])]\s*(?:==|!=|\+=|->|=>|:=|&&|\|\|)\s*\S
    | \w+\([^()]*\)\s*[;:{]?\s*$
    | ^\s*(?://|/\*|\#!|<\/?\w+[^>]*>|--\s)
    | ^\s*[\w.\[\]]+\s*=\s*\S""",
    re.VERBOSE,
)
LIST_LINE = re.compile(r"^\s*(?:[-*+•‣▪–]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+\S")
TABLE_LINE = re.compile(r"\S(?:\s*\|\s*|\t+| {3,})\S")
CODE_CHARACTERS = frozenset("{}[]()<>=;_/\\|&$#@^~`*+")
MAX_CODE_SHARE = 0.08  # of code's characters among those that are no white space: English prose has up to 0.04
MAX_DIGIT_SHARE = 0.3  # of digits among letters and digits
VERSE_CHARACTERS = 60  # most of a line of verse, at the median


def kind_of(text: str) -> Kind | None:
    """What the text is instead of prose; None for prose. Judged by most of its lines; without line breaks by its characters alone."""
    lines = [line for line in text.splitlines() if line.strip()]
    by_lines: dict[Kind, re.Pattern[str]] = {"code": CODE_LINE, "table": TABLE_LINE, "list": LIST_LINE}
    for kind, pattern in by_lines.items():
        if _share(lines, pattern) >= 0.5:
            return kind
    if _code_share(text) > MAX_CODE_SHARE:
        return "code"
    if _digit_share(text) > MAX_DIGIT_SHARE:
        return "table"
    return "verse" if _is_verse(lines) else None


def _share(lines: list[str], pattern: re.Pattern[str]) -> float:
    """The share of the lines in which the pattern is found; 0 for too few lines to tell."""
    if len(lines) < MIN_LINES:
        return 0
    return sum(1 for line in lines if len(line) <= MAX_LINE_CHARACTERS and pattern.search(line)) / len(lines)


def _code_share(text: str) -> float:
    solid = [character for character in text if not character.isspace()]
    return sum(character in CODE_CHARACTERS for character in solid) / len(solid) if solid else 0


def _digit_share(text: str) -> float:
    known = [character for character in text if character.isalnum()]
    return sum(character.isdigit() for character in known) / len(known) if known else 0


def _is_verse(lines: list[str]) -> bool:
    """Short lines that begin with capitals and mostly end without the end of a sentence; prose that was wrapped goes on in lower case."""
    if len(lines) < 2 * MIN_LINES or sorted(map(len, lines))[len(lines) // 2] > VERSE_CHARACTERS:
        return False
    capital = sum(line.lstrip(" \"'“‘")[:1].isupper() for line in lines)
    unended = sum(line.rstrip()[-1:] not in ".!?" for line in lines)
    return capital >= 0.8 * len(lines) and unended >= 0.4 * len(lines)
