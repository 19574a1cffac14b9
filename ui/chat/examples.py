"""Example questions, written for this page. A model that tells stories gets stories, any other one gets what people ask an assistant."""

STORIES = (
    "Tell me a story about a fox and a crow.",
    "Tell me a story about a princess and a dragon.",
    "Continue: Once upon a time there was a poor woodcutter who",
)
GENERAL = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that reverses a string, with an example.",
    "What are the three states of matter? Give a list with an example of each.",
)


def prompts_for(model: str) -> tuple[str, ...]:
    return STORIES if "story" in model.lower() else GENERAL


def placeholder_html(model: str) -> str:
    """What an empty conversation shows. actions.js puts the text of a button into the message box."""
    buttons = "".join(f'<button type="button" class="do do-write-{index}">{text}</button>' for index, text in enumerate(prompts_for(model)))
    return f'<div class="empty"><p class="lead">Ask something, or pick an example.</p><div class="samples">{buttons}</div></div>'
