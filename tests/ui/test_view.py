import html

import pytest

from ui import view
from ui.answer import Answer

DONE = Answer(0.0, "Once upon a time.", first_s=0.21, last_s=1.21, finish_reason="stop", tokens=42)
UNKIND = "<img src=http://evil.example/x.png onerror=alert(1)> & “don't” {{value}} ${value} `x` &lt;"


def note(message: view.ChatMessage) -> str:
    return message["content"][1]["text"]


def test_escaped_leaves_nothing_a_browser_or_a_template_would_act_on():
    shown = view.escaped(UNKIND)
    assert not set('<>"{}$`') & set(shown)
    assert html.unescape(shown) == UNKIND


def test_a_message_is_escaped_and_comes_back_as_it_was():
    history = [view.question(UNKIND), view.answered(Answer(0.0, UNKIND))]
    assert all("<" not in part["text"] for message in history for part in message["content"])
    assert view.conversation(history) == [{"role": "user", "content": UNKIND}, {"role": "assistant", "content": UNKIND}]


def test_apostrophes_stay_readable_for_a_screen_reader():
    assert view.question("don't")["content"][0]["text"] == "don't"


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
    assert note(view.answered(answer)) == words


def test_notes_are_not_sent():
    history = [view.question("Hello"), view.answered(DONE), view.question("And then?")]
    assert view.conversation(history) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Once upon a time."},
        {"role": "user", "content": "And then?"},
    ]


def test_a_question_without_an_answer_is_given_back_and_not_sent():
    history = [view.question("Who < are you?"), view.failed(Answer(0.0), "The queue is full.")]
    assert view.lost_question(history) == "Who < are you?"
    assert view.conversation([*history, view.question("Next")]) == [{"role": "user", "content": "Next"}]


def test_a_broken_answer_is_kept_and_its_question_not_given_back():
    history = [view.question("Hello"), view.failed(DONE, "The worker died.")]
    assert view.lost_question(history) == ""
    assert len(view.conversation(history)) == 2
    assert "The worker died." in note(history[1])


@pytest.mark.parametrize("history", [[], [view.question("Hello")]])
def test_nothing_is_lost_before_an_answer(history: list[view.ChatMessage]):
    assert view.lost_question(history) == ""


def test_only_an_answer_on_its_way_is_live():
    question = view.question("Hello")
    assert view.live([question, view.answering(Answer(0.0))])
    assert view.live([question, view.answering(DONE)])
    assert not view.live([question, view.answered(DONE)])
    assert not view.live([question])
    assert not view.live([])


def test_stop_keeps_the_text_so_far_and_says_so():
    told = view.stopped([view.question("Hello"), view.answering(DONE)])
    assert view.conversation(told)[1]["content"] == "Once upon a time."
    assert note(told[1]) == "stopped · TTFT 210 ms"
    assert not view.live(told)


def test_stop_before_the_first_token_gives_the_question_back():
    told = view.stopped([view.question("Hello"), view.answering(Answer(0.0))])
    assert note(told[1]) == "stopped before the first token"
    assert view.lost_question(told) == "Hello"
    early = view.stopped([view.question("Hello")])
    assert (view.lost_question(early), note(early[1])) == ("Hello", "stopped before it began")


def test_an_answer_that_talks_about_streaming_is_not_rewritten_by_a_stop():
    told = view.stopped([view.question("Hello"), view.answering(Answer(0.0, "streaming water…", 0.1, 0.1))])
    assert view.conversation(told)[1]["content"] == "streaming water…"


@pytest.mark.parametrize("history", [[], [view.question("Hello"), view.answered(DONE)]])
def test_stop_with_nothing_under_way_changes_nothing(history: list[view.ChatMessage]):
    assert view.stopped(history) == history
