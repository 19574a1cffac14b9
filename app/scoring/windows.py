"""Cuts a text into the windows that it is scored in. Pure arithmetic."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from app.engine.request import Window


def windows(tokens: int, context: int) -> tuple[Window, ...]:
    """The windows in which a text of so many tokens is scored; empty for fewer than two tokens.

    Every token but the first gets its statistics exactly once, with at least half a context of tokens before it where the text has so many.
    """
    if tokens < 2:
        return ()
    parts = [Window(0, min(tokens, context), 1)]
    stride = max(1, context // 2)
    while parts[-1].end < tokens:
        start = parts[-1].start + stride
        parts.append(Window(start, min(tokens, start + context), parts[-1].end))
    return tuple(parts)


def passages(tokens: int, length: int, sentence_starts: Sequence[int]) -> tuple[Window, ...]:
    """Windows of about `length` tokens (0.4 to 1.8 times as many), each read without what comes before it, as a text of its own would be.

    A passage begins where a sentence does, if one begins near: `sentence_starts` are the tokens at which one begins, in order. Its first
    token is predicted from the token before it alone. Empty for fewer than two tokens.
    """
    if tokens < 2:
        return ()
    cuts = [0, *_cuts(tokens, length, sentence_starts), tokens]
    return tuple(Window(max(0, start - 1), end, max(1, start)) for start, end in zip(cuts, cuts[1:], strict=False))


def _cuts(tokens: int, length: int, sentence_starts: Sequence[int]) -> Iterator[int]:
    count = max(1, round(tokens / length))
    for number in range(1, count):
        even = number * tokens // count
        after = bisect_left(sentence_starts, even)
        near = min(sentence_starts[max(0, after - 1) : after + 1], key=lambda start: abs(start - even), default=even)
        yield near if abs(near - even) <= tokens / count / 4 else even
