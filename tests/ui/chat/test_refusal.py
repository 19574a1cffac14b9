import pytest

from ui.chat.answer import Answer
from ui.chat.conversation import Conversation
from ui.chat.line import idle_html
from ui.chat.refusal import CODE, told
from ui.client import ServerError

TOO_LONG = "the prompt has 9563 tokens, but the context of smollm2 holds 8192, one of them for the answer: send at most 8191."
LIMITED = (
    "the prompt has 8000 tokens and max_tokens is 500: together 8500, but the context of m (2) holds 8192 (by memory; "
    "the model itself could hold 131072); ask for at most 192."
)


@pytest.mark.parametrize(
    ("error", "sentence", "tokens"),
    [
        (ServerError(TOO_LONG, code=CODE), "This conversation has 9,563 tokens; the model holds 8,192. Start a new conversation, ", 9563),
        (
            ServerError(LIMITED, code=CODE),
            "has 8,000 tokens, and Max tokens is 500; the model holds 8,192 together. Set Max tokens to at most 192",
            8000,
        ),
        (ServerError("Send less.", code=CODE), "Send less.", None),
        (ServerError(TOO_LONG, code="another"), TOO_LONG, None),
    ],
)
def test_a_full_context_is_told_as_the_page_speaks(error: ServerError, sentence: str, tokens: int | None):
    said, prompt_tokens = told(error)
    assert sentence in said and prompt_tokens == tokens


def test_a_conversation_that_does_not_fit_fills_the_gauge():
    answer = Answer(0.0, prompt_tokens=9563)
    html = idle_html(Conversation(id="c").ask("Who?").answer("", "", answer.facts("failed", "It is too long.")), 8192)
    assert "9,563 of 8,192 tokens of the context (117%). It is full" in html and "width:100.0%" in html
