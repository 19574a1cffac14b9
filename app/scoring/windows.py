"""How a long text is cut into overlapping windows that fit the context. Pure arithmetic."""

from app.engine.request import Window


def windows(tokens: int, context: int) -> tuple[Window, ...]:
    """Windows that give every token but the first its statistics exactly once, each with at least half a context before it
    where the text has that much. Empty for fewer than two tokens.
    """
    if tokens < 2:
        return ()
    made = [Window(0, min(tokens, context), 1)]
    stride = max(1, context // 2)
    while made[-1].end < tokens:
        start = made[-1].start + stride
        made.append(Window(start, min(tokens, start + context), made[-1].end))
    return tuple(made)
