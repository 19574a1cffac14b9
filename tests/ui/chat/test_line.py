import re

import pytest

from app.schemas import Usage
from ui.chat import line
from ui.chat.answer import Answer
from ui.chat.conversation import Conversation, Facts
from ui.client import Chunk, Pause, PromptProgress, QueueStatus


def words(answer: Answer, context: int | None = 4096) -> str:
    return re.sub(r"<.*?>", "", line.running_html(answer, context))


def state(answer: Answer) -> str:
    return re.search(r'data-state="(\w+)"', line.running_html(answer, None))[1]  # type: ignore[index]


def test_the_line_follows_an_answer_from_the_queue_to_its_last_token():
    answer = Answer(0.0)
    assert (words(answer), state(answer)) == ("Waiting for the first token", "waiting")
    answer.add(Chunk(queue=QueueStatus(3, None)), 0.1)
    assert words(answer) == "Waiting: position 3 in the queue"
    answer.add(Chunk(queue=QueueStatus(1, 2)), 0.2)
    assert words(answer) == "Waiting: position 1 in the queue, about 2 s"
    answer.add(Chunk(progress=PromptProgress(412, 1024)), 0.3)
    assert (words(answer), state(answer)) == ("Reading the prompt: 412 of 1,024 tokens", "reading")
    answer.add(Chunk(thought="Hm", usage=Usage(prompt_tokens=1024, completion_tokens=1, total_tokens=1025)), 0.5)
    assert state(answer) == "thinking" and words(answer).startswith("Thinking · 1 token ·")
    answer.add(Chunk("Once", usage=Usage(prompt_tokens=1024, completion_tokens=11, total_tokens=1035)), 1.5)
    assert words(answer) == ("Answering · 11 tokens · 10.0 tokens/s · first token after 500 ms1,035 of 4,096 tokens of the context (25%).")


def test_a_pause_is_told_before_and_within_an_answer_until_something_comes():
    answer = Answer(0.0)
    answer.add(Chunk(pause=Pause("loading", "The server is loading the model: 40%")), 0.1)
    assert (words(answer), state(answer)) == ("The server is loading the model: 40%", "loading")
    answer.add(Chunk("Once"), 0.5)
    assert (state(answer), answer.ttft_ms) == ("answering", 500)
    answer.add(Chunk(pause=Pause("paused", "The model's process died")), 0.6)
    assert (words(answer), state(answer)) == ("The model&#x27;s process died", "paused")
    answer.add(Chunk(" upon"), 0.9)
    assert (answer.text, state(answer)) == ("Once upon", "answering")


@pytest.mark.parametrize(
    ("used", "level", "advice"),
    [
        (799, "", ""),
        (800, "nearly", "nearly full"),
        (949, "nearly", "nearly full"),
        (950, "full", "may not fit"),
        (1000, "full", "It is full"),
    ],
)
def test_the_context_warns_at_80_and_95_percent(used: int, level: str, advice: str):
    facts = Facts(prompt_tokens=used - 10, completion_tokens=10)
    html = line.idle_html(Conversation(id="c").ask("Who?").answer("Me.", "", facts), 1000)
    assert f'gauge-line{" " if level else ""}{level}"' in html and advice in html
    assert ("full" in html) == bool(level)


def test_an_unknown_context_has_no_gauge():
    assert "gauge" not in line.idle_html(Conversation(id="c").ask("Who?").answer("Me.", "", Facts(prompt_tokens=5)), None)
    assert "gauge" not in line.idle_html(Conversation(id="c"), 4096)


def test_a_problem_is_announced_and_escaped():
    assert 'role="alert">&lt;b&gt;' in line.problem_html("<b>")
