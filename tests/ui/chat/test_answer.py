import pytest

from app.schemas import Usage
from ui.chat.answer import Answer
from ui.chat.messages import streaming_message
from ui.client import Chunk, QueueStatus


def usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=5, completion_tokens=tokens, total_tokens=5 + tokens)


def test_ttft_counts_to_the_first_text_and_speed_excludes_the_first_token():
    answer = Answer(sent_s=10.0)
    answer.add(Chunk(""), 10.1)  # the role chunk
    assert answer.ttft_ms is None
    answer.add(Chunk("Once"), 10.5)
    answer.add(Chunk(" upon a time"), 12.5)
    answer.add(Chunk("", "length", usage(21)), 13.0)
    assert answer.text == "Once upon a time"
    assert answer.ttft_ms == pytest.approx(500)
    assert answer.tokens_per_s == pytest.approx(20 / 2.0)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 21)


def test_the_usage_chunk_does_not_reset_the_finish_reason():
    answer = Answer(0.0)
    answer.add(Chunk("a", "stop"), 1.0)
    answer.add(Chunk(usage=usage(1)), 1.0)
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", 1)


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_fewer_than_two_tokens_have_no_speed(tokens: int | None):
    assert Answer(0.0, "a", first_text_s=1.0, last_text_s=2.0, completion_tokens=tokens).tokens_per_s is None


def test_text_that_arrives_all_at_once_has_no_speed():
    assert Answer(0.0, "a b", first_text_s=1.0, last_text_s=1.0, completion_tokens=5).tokens_per_s is None


def test_the_queue_position_is_shown_until_the_answer_starts():
    answer = Answer(0.0)
    answer.add(Chunk(queue=QueueStatus(3, None)), 0.5)
    assert "position 3 in the queue…" in str(streaming_message(answer))
    answer.add(Chunk(queue=QueueStatus(1, 2)), 1.0)
    assert "position 1 in the queue, about 2 s…" in str(streaming_message(answer))
    answer.add(Chunk("Once"), 2.0)
    assert "queue" not in str(streaming_message(answer))
