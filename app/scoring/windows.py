"""Splits a text that is longer than the context into overlapping windows. Pure arithmetic."""

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
