import pytest

from app.schemas import Usage
from ui.chat.answer import Answer
from ui.chat.conversation import Facts
from ui.client import Chunk, Pause, PromptProgress, QueueStatus


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


def test_queue_and_progress_end_with_what_follows_them():
    answer = Answer(0.0)
    answer.add(Chunk(queue=QueueStatus(3, None)), 0.5)
    assert answer.queue == QueueStatus(3, None)
    answer.add(Chunk(progress=PromptProgress(10, 20)), 1.0)
    assert (answer.queue, answer.progress) == (None, PromptProgress(10, 20))
    answer.add(Chunk("Once"), 2.0)
    assert answer.progress == PromptProgress(10, 20)


def test_a_thought_is_kept_apart_and_counts_as_the_first_token():
    answer = Answer(0.0)
    answer.add(Chunk(thought="Hm. "), 0.5)
    answer.add(Chunk("Yes."), 1.5)
    assert (answer.text, answer.thought, answer.ttft_ms) == ("Yes.", "Hm. ", 500)


def test_the_facts_of_an_answer_say_how_it_ended():
    answer = Answer(0.0, model="m", precision="nf4", seed=7)
    answer.add(Chunk("a", usage=usage(1)), 0.12345)
    assert answer.facts() == Facts(model="m", precision="nf4", seed=7, ttft_ms=123.5, prompt_tokens=5, completion_tokens=1)
    answer.add(Chunk("", "length"), 1.0)
    assert answer.facts().finish == "length"
    assert answer.facts("failed", "It broke.").problem == "It broke."


def test_the_speed_leaves_out_pauses():
    answer = Answer(0.0)
    answer.add(Chunk("Once"), 1.0)
    answer.add(Chunk(" upon"), 1.1)
    answer.add(Chunk(pause=Pause("paused", "The model's process died")), 1.2)
    answer.add(Chunk(pause=Pause("paused", "It goes on soon")), 9.0)
    answer.add(Chunk(" a"), 12.1)
    answer.add(Chunk(" time", usage=usage(4)), 12.2)
    assert answer.tokens_per_s == pytest.approx(3 / 0.3)
    answer.add(Chunk(pause=Pause("paused", "It stops once more")), 13.0)
    answer.add(Chunk("", "stop"), 20.0)
    assert answer.tokens_per_s == pytest.approx(3 / 0.3)
