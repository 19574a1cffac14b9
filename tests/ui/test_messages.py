import html

import pytest

from ui import messages
from ui.answer import Answer

DONE = Answer(0.0, "Once upon a time.", first_s=0.21, last_s=1.21, finish_reason="stop", tokens=42)
UNKIND = "<img src=http://evil.example/x.png onerror=alert(1)> & “don't” {{value}} ${value} `x` &lt;"


def note(message: messages.ChatMessage) -> str:
    return message["content"][1]["text"]


def test_escaped_leaves_nothing_a_browser_or_a_template_would_act_on():
    shown = messages.escaped(UNKIND)
    assert not set('<>"{}$`') & set(shown)
    assert html.unescape(shown) == UNKIND


def test_a_message_is_escaped_and_comes_back_as_it_was():
    history = [messages.question(UNKIND), messages.answered(Answer(0.0, UNKIND))]
    assert all("<" not in part["text"] for message in history for part in message["content"])
    assert messages.conversation(history) == [{"role": "user", "content": UNKIND}, {"role": "assistant", "content": UNKIND}]


def test_apostrophes_stay_readable_for_a_screen_reader():
    assert messages.question("don't")["content"][0]["text"] == "don't"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (DONE, "42 tokens · 41.0 tokens/s · TTFT 210 ms · finished (stop)"),
        (Answer(0.0, "a", 1.5, 1.5, "length", 1), "1 token · TTFT 1,500 ms · cut at the token limit (length)"),
        (Answer(0.0), "finished"),
        (Answer(0.0, "a", model="base"), "base · finished"),
    ],
)
def test_the_note_under_an_answer(answer: Answer, words: str):
    assert note(messages.answered(answer)) == words


def test_notes_are_not_sent():
    history = [messages.question("Hello"), messages.answered(DONE), messages.question("And then?")]
    assert messages.conversation(history) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Once upon a time."},
        {"role": "user", "content": "And then?"},
    ]


def test_a_question_without_an_answer_is_given_back_and_not_sent():
    history = [messages.question("Who < are you?"), messages.failed(Answer(0.0), "The queue is full.")]
    assert messages.lost_question(history) == "Who < are you?"
    assert messages.conversation([*history, messages.question("Next")]) == [{"role": "user", "content": "Next"}]


def test_a_broken_answer_is_kept_and_its_question_not_given_back():
    history = [messages.question("Hello"), messages.failed(DONE, "The worker died.")]
    assert messages.lost_question(history) == ""
    assert len(messages.conversation(history)) == 2
    assert "The worker died." in note(history[1])


@pytest.mark.parametrize("history", [[], [messages.question("Hello")]])
def test_nothing_is_lost_before_an_answer(history: list[messages.ChatMessage]):
    assert messages.lost_question(history) == ""


def test_only_an_answer_on_its_way_is_live():
    question = messages.question("Hello")
    assert messages.live([question, messages.answering(Answer(0.0))])
    assert messages.live([question, messages.answering(DONE)])
    assert not messages.live([question, messages.answered(DONE)])
    assert not messages.live([question])
    assert not messages.live([])


def test_stop_keeps_the_text_so_far_and_says_so():
    told = messages.stopped([messages.question("Hello"), messages.answering(DONE)])
    assert messages.conversation(told)[1]["content"] == "Once upon a time."
    assert note(told[1]) == "stopped · TTFT 210 ms"
    assert not messages.live(told)


def test_stop_before_the_first_token_gives_the_question_back():
    told = messages.stopped([messages.question("Hello"), messages.answering(Answer(0.0))])
    assert note(told[1]) == "stopped before the first token"
    assert messages.lost_question(told) == "Hello"
    early = messages.stopped([messages.question("Hello")])
    assert (messages.lost_question(early), note(early[1])) == ("Hello", "stopped before it began")


def test_an_answer_that_talks_about_streaming_is_not_rewritten_by_a_stop():
    told = messages.stopped([messages.question("Hello"), messages.answering(Answer(0.0, "streaming water…", 0.1, 0.1))])
    assert messages.conversation(told)[1]["content"] == "streaming water…"


@pytest.mark.parametrize("history", [[], [messages.question("Hello"), messages.answered(DONE)]])
def test_stop_with_nothing_under_way_changes_nothing(history: list[messages.ChatMessage]):
    assert messages.stopped(history) == history
