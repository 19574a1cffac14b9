"""Example prompts, written for this page."""

PROMPTS = (
    "Tell me a story about a fox and a crow.",
    "Tell me a story about a princess and a dragon.",
    "Continue: Once upon a time there was a poor woodcutter who",
)
