"""Where the sentences of a text begin and end. A few rules, good enough to point at one; knows no language but English abbreviations.

Each character is looked at once or twice, whatever the text: it may be a megabyte of full stops.
"""

import re
from collections.abc import Iterator

BREAK = re.compile(r"\s+")
ENDED = re.compile(r"""[.!?…]["'”’»)\]]*$""")
SHORT = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Fig|cf)|\b[A-Z])\.$")
LOOK_BACK = 16  # characters before a blank that may end a sentence


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans `[start, end)` in order, without the blanks between them; together they hold all else."""
    spans, start = [], len(text) - len(text.lstrip())
    for end, following in _ends(text, start):
        spans.append((start, end))
        start = following
    end = len(text.rstrip())
    return [*spans, (start, end)] if start < end else spans


def _ends(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where a sentence ends, and where the next one begins."""
    for blank in BREAK.finditer(text, start):
        before, after = text[max(start, blank.start() - LOOK_BACK) : blank.start()], text[blank.end() : blank.end() + 1]
        paragraph = blank[0].count("\n") > 1
        ended = ENDED.search(before) and not SHORT.search(before) and not after.islower()
        if after and (paragraph or ended):
            yield blank.start(), blank.end()
