"""Where the sentences of a text begin and end. A few rules, good enough to point at one; knows no language but English abbreviations."""

import re
from collections.abc import Iterator

ENDS = re.compile(r"""(?:[.!?…]+["'”’»)\]]*(?=\s)|\n\s*\n)""")
SHORT = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Fig|cf)|\b[A-Z])\.$")


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans `[start, end)` in order, without the blanks between them; together they hold all else."""
    spans, start = [], 0
    for end in [*_ends(text), len(text)]:
        piece = text[start:end]
        if piece.strip():
            spans.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
        start = end
    return spans


def _ends(text: str) -> Iterator[int]:
    for found in ENDS.finditer(text):
        follows = text[found.end() :].lstrip()[:1]
        if not found[0].startswith("\n") and (SHORT.search(text[: found.start() + 1][-12:]) or follows.islower()):
            continue
        yield found.end()
