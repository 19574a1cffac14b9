import re

import pytest

from ui.chat.answer import Answer
from ui.chat.conversation import Conversation, Facts
from ui.chat.messages import ChatMessage, chat_messages, note_text
from ui.flags.flag import hash_of

EMPTY = Conversation(id="c")
FACTS = Facts(model="story_teller_x", precision="nf4", seed=7, ttft_ms=210.0, tokens_per_s=41.0, prompt_tokens=5, completion_tokens=42)


def answered(text: str = "Once.", facts: Facts = FACTS, thought: str = "") -> Conversation:
    return EMPTY.ask("Who?").answer(text, thought, facts)


def texts(message: ChatMessage) -> list[str]:
    return [part["text"] for part in message["content"]]


def buttons(message: ChatMessage) -> list[str]:
    return re.findall(r'class="do do-([\w-]+)"', texts(message)[-1])


def test_a_note_says_who_answered_how_fast_and_with_which_seed():
    assert note_text(FACTS) == "story_teller_x · nf4 · 42 tokens · 41.0 tokens/s · first token after 210 ms · seed 7"
    assert note_text(Facts(completion_tokens=1)) == "1 token"
    assert "&#95;teller" in texts(chat_messages(answered())[1])[-1], "an underscore is no emphasis"


def test_each_turn_has_the_buttons_that_make_sense_there():
    question, answer = chat_messages(answered())
    assert (buttons(question), buttons(answer)) == (["edit-0", "copy-0"], ["retry-1", "copy-1", "score-1", "undo-1", "good-1", "bad-1"])
    unanswered = chat_messages(EMPTY.ask("Who?"))[0]
    assert buttons(unanswered) == ["edit-0", "copy-0", "retry-0"] and "No answer has come" in texts(unanswered)[-1]
    assert all("No answer" not in texts(message)[-1] for message in (question, chat_messages(EMPTY.ask("Who?"), Answer(0.0))[0]))
    assert f'class="thumbs hash-{hash_of("Once.")}"' in texts(answer)[-1]
    older = chat_messages(answered().ask("Why?").answer("So.", "", FACTS))[1]
    assert buttons(older) == ["retry-1", "copy-1", "score-1", "good-1", "bad-1"]


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (Facts(finish="length"), "it reached the limit of tokens"),
        (Facts(finish="stopped"), "You stopped this answer"),
        (Facts(finish="failed", problem="The worker died."), "⚠ The worker died"),
    ],
)
def test_an_answer_that_was_cut_says_so_and_can_go_on(facts: Facts, sentence: str):
    message = chat_messages(answered(facts=facts))[1]
    assert sentence.replace(".", "&#46;") in texts(message)[-1]
    assert buttons(message)[0] == "continue-1"
    assert "continue-1" not in buttons(chat_messages(answered("", facts=facts))[1])


def test_an_answer_that_fills_the_context_says_so_and_cannot_go_on():
    answer = Answer(0.0, "Once.", finish_reason="length", prompt_tokens=1015, completion_tokens=9, context=1024)
    message = chat_messages(answered(facts=answer.facts()))[1]
    assert "the context is full" in texts(message)[-1] and "continue-1" not in buttons(message)
    answer.context = 1025
    assert answer.facts().finish == "length"


def test_branches_have_a_pager():
    conversation = answered().retry(1).answer("Twice.", "", FACTS)
    assert buttons(chat_messages(conversation)[1])[:1] == ["show-1"]
    assert buttons(chat_messages(conversation.show(1))[1])[:1] == ["show-2"]
    assert "2 of 2" in texts(chat_messages(conversation)[1])[-1]


def test_an_answer_on_its_way_has_no_buttons_and_takes_the_place_of_the_one_it_continues():
    running = chat_messages(answered(), Answer(0.0, " More", begun="Once."))
    assert [texts(message)[0] for message in running] == ["Who&#63;", "Once. More"]
    assert all(not buttons(message) for message in running)
    assert len(chat_messages(EMPTY.ask("Who?"), Answer(0.0))) == 2


def test_a_thought_is_open_until_the_answer_begins_and_as_harmless():
    thinking = texts(chat_messages(EMPTY.ask("Who?"), Answer(0.0, thought="<b> hm"))[1])[0]
    assert '<details class="thought" open><summary>Thinking</summary>\n\n&lt;b> hm' in thinking
    assert '<details class="thought"><summary>Thought</summary>' in texts(chat_messages(answered(thought="hm"))[1])[0]


def test_a_question_is_literal_and_an_answer_markdown_without_html():
    question, answer = chat_messages(EMPTY.ask("*a* <b>").answer("*a* <b>", "", FACTS))
    assert texts(question)[0] == "&#42;a&#42; &#60;b&#62;"
    assert texts(answer)[0] == "*a* &lt;b>"
