import pytest

from app.schemas import Usage
from ui.answer import Answer
from ui.client import Chunk, Place
from ui.messages import answering


def usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=5, completion_tokens=tokens, total_tokens=5 + tokens)


def test_ttft_is_the_first_text_and_speed_leaves_the_first_token_out():
    answer = Answer(asked_s=10.0)
    answer.take(Chunk(""), 10.1)  # the role chunk
    assert answer.ttft_ms is None
    answer.take(Chunk("Once"), 10.5)
    answer.take(Chunk(" upon a time"), 12.5)
    answer.take(Chunk("", "length", usage(21)), 13.0)
    assert answer.text == "Once upon a time"
    assert answer.ttft_ms == pytest.approx(500)
    assert answer.tokens_per_s == pytest.approx(20 / 2.0)
    assert (answer.finish_reason, answer.tokens) == ("length", 21)


def test_a_finish_reason_outlives_the_usage_chunk():
    answer = Answer(0.0)
    answer.take(Chunk("a", "stop"), 1.0)
    answer.take(Chunk(usage=usage(1)), 1.0)
    assert (answer.finish_reason, answer.tokens) == ("stop", 1)


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_no_speed_where_there_is_none(tokens: int | None):
    assert Answer(0.0, "a", first_s=1.0, last_s=2.0, tokens=tokens).tokens_per_s is None


def test_no_speed_when_all_came_at_once():
    assert Answer(0.0, "a b", first_s=1.0, last_s=1.0, tokens=5).tokens_per_s is None


def test_a_place_in_the_queue_is_shown_until_the_answer_begins():
    answer = Answer(0.0)
    answer.take(Chunk(queued=Place(3, None)), 0.5)
    assert "number 3 in the queue…" in str(answering(answer))
    answer.take(Chunk(queued=Place(1, 2)), 1.0)
    assert "number 1 in the queue, about 2 s…" in str(answering(answer))
    answer.take(Chunk("Once"), 2.0)
    assert "queue" not in str(answering(answer))
