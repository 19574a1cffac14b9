import pytest

from ui.chat import messages
from ui.chat.answer import Answer

DONE = Answer(0.0, "Once upon a time.", first_text_s=0.21, last_text_s=1.21, finish_reason="stop", completion_tokens=42)
HOSTILE = "<img src=http://evil.example/x.png onerror=alert(1)> & “don't” {{value}} ${value} `x` &lt;"


def note(message: messages.ChatMessage) -> str:
    return message["content"][1]["text"]


def test_a_message_is_escaped_on_the_page_and_unescaped_in_requests():
    history = [messages.user_message(HOSTILE), messages.finished_message(Answer(0.0, HOSTILE))]
    assert all("<" not in part["text"] for message in history for part in message["content"])
    assert messages.request_messages(history) == [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]


def test_apostrophes_are_not_escaped_so_that_screen_readers_read_them():
    assert messages.user_message("don't")["content"][0]["text"] == "don't"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (DONE, "42 tokens · 41.0 tokens/s · TTFT 210 ms · finished (stop)"),
        (Answer(0.0, "a", 1.5, 1.5, "length", 1), "1 token · TTFT 1,500 ms · cut at the token limit (length)"),
        (Answer(0.0), "finished"),
        (Answer(0.0, "a", model="base"), "base · finished"),
    ],
)
def test_the_note_under_an_answer(answer: Answer, expected: str):
    assert note(messages.finished_message(answer)) == expected


def test_notes_are_not_sent():
    history = [messages.user_message("Hello"), messages.finished_message(DONE), messages.user_message("And then?")]
    assert messages.request_messages(history) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Once upon a time."},
        {"role": "user", "content": "And then?"},
    ]


def test_a_question_without_an_answer_is_returned_and_not_sent_again():
    history = [messages.user_message("Who < are you?"), messages.failed_message(Answer(0.0), "The queue is full.")]
    assert messages.unanswered_question(history) == "Who < are you?"
    assert messages.request_messages([*history, messages.user_message("Next")]) == [{"role": "user", "content": "Next"}]


def test_a_partial_answer_is_kept_and_its_question_not_returned():
    history = [messages.user_message("Hello"), messages.failed_message(DONE, "The worker died.")]
    assert messages.unanswered_question(history) == ""
    assert len(messages.request_messages(history)) == 2
    assert "The worker died." in note(history[1])


@pytest.mark.parametrize("history", [[], [messages.user_message("Hello")]])
def test_a_history_without_an_answer_has_no_unanswered_question(history: list[messages.ChatMessage]):
    assert messages.unanswered_question(history) == ""


def test_only_an_unfinished_answer_is_streaming():
    question = messages.user_message("Hello")
    assert messages.is_streaming([question, messages.streaming_message(Answer(0.0))])
    assert messages.is_streaming([question, messages.streaming_message(DONE)])
    assert not messages.is_streaming([question, messages.finished_message(DONE)])
    assert not messages.is_streaming([question])
    assert not messages.is_streaming([])


def test_stop_keeps_the_text_so_far_and_notes_it():
    history = messages.mark_stopped([messages.user_message("Hello"), messages.streaming_message(DONE)])
    assert messages.request_messages(history)[1]["content"] == "Once upon a time."
    assert note(history[1]) == "stopped · TTFT 210 ms"
    assert not messages.is_streaming(history)


def test_stop_before_the_first_token_returns_the_question():
    history = messages.mark_stopped([messages.user_message("Hello"), messages.streaming_message(Answer(0.0))])
    assert note(history[1]) == "stopped before the first token"
    assert messages.unanswered_question(history) == "Hello"
    not_started = messages.mark_stopped([messages.user_message("Hello")])
    assert (messages.unanswered_question(not_started), note(not_started[1])) == ("Hello", "stopped before it started")


def test_stop_changes_the_note_and_not_the_text_of_an_answer():
    history = messages.mark_stopped([messages.user_message("Hello"), messages.streaming_message(Answer(0.0, "streaming water…", 0.1, 0.1))])
    assert messages.request_messages(history)[1]["content"] == "streaming water…"


@pytest.mark.parametrize("history", [[], [messages.user_message("Hello"), messages.finished_message(DONE)]])
def test_stop_without_an_unfinished_answer_changes_nothing(history: list[messages.ChatMessage]):
    assert messages.mark_stopped(history) == history
