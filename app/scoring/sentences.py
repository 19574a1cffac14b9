"""Splits a text into sentences by a few rules, good enough to point at one. Knows only English abbreviations.

Runs in linear time whatever the text is, for example a megabyte of full stops: each character is read once or twice.
"""

import re
from collections.abc import Iterator

WHITE_SPACE = re.compile(r"\s+")
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*$""")
ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Fig|cf)|\b[A-Z])\.$")
LOOK_BACK_CHARACTERS = 16  # read before white space to decide whether a sentence ends there


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans `[start, end)` of the sentences, in order. They leave out only the white space between sentences and at the ends."""
    spans, start = [], len(text) - len(text.lstrip())
    for end, next_start in _boundaries(text, start):
        spans.append((start, end))
        start = next_start
    end = len(text.rstrip())
    return [*spans, (start, end)] if start < end else spans


def _boundaries(text: str, start: int) -> Iterator[tuple[int, int]]:
    """`(end of a sentence, start of the next)` from the index `start` on."""
    for gap in WHITE_SPACE.finditer(text, start):
        before = text[max(start, gap.start() - LOOK_BACK_CHARACTERS) : gap.start()]
        after = text[gap.end() : gap.end() + 1]
        is_paragraph_break = gap[0].count("\n") > 1
        is_sentence_end = SENTENCE_END.search(before) and not ABBREVIATION.search(before) and not after.islower()
        if after and (is_paragraph_break or is_sentence_end):
            yield gap.start(), gap.end()
