"""What a visitor is told of an error that ended an answer. Of a context that is too short the server speaks to programs. Pure."""

import re

CODE = "context_length_exceeded"
PROMPT = re.compile(r"the prompt has (\d+) tokens")
LIMIT = re.compile(r"and \w+ is (\d+): together")
CONTEXT = re.compile(r"the context of .*? holds (\d+)")
LEFT = re.compile(r"ask for at most (\d+)")
ADVICE = "Start a new conversation, undo a question, or shorten it."


def told(error: Exception) -> tuple[str, int | None]:
    """The sentence, and the tokens of the conversation where the error says them."""
    if getattr(error, "code", None) != CODE:
        return str(error), None
    prompt, context, limit, left = (_number(each, str(error)) for each in (PROMPT, CONTEXT, LIMIT, LEFT))
    if prompt is None or context is None:
        return str(error), None
    if limit is None or left is None:
        return f"This conversation has {prompt:,} tokens; the model holds {context:,}. {ADVICE}", prompt
    return (
        f"This conversation has {prompt:,} tokens, and Max tokens is {limit:,}; the model holds {context:,} together. "
        f"Set Max tokens to at most {left:,}, or leave it blank."
    ), prompt


def _number(pattern: re.Pattern[str], sentence: str) -> int | None:
    found = pattern.search(sentence)
    return None if found is None else int(found[1])
