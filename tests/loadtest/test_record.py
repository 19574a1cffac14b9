import json

import pytest

from loadtest.record import Expectations, Start, Stream, score_record

START = Start("chat", clients=3, at_s=100.0, run_s=90.0)


def event(**fields):
    return "data: " + json.dumps(fields, ensure_ascii=False)


def delta(content):
    return event(choices=[{"index": 0, "delta": content, "finish_reason": None}])


def record_of(*lines, expected=None):
    """The record of lines that arrive 100 ms apart, the first at 100.1 s; the body ends 100 ms after the last."""
    stream = Stream(START, expected or Expectations())
    for index, line in enumerate(lines):
        stream.feed(f"{line}\n".encode(), 100.1 + index / 10)
    return stream.record(100.1 + len(lines) / 10)


USAGE = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9})
WHOLE = [delta({"role": "assistant", "content": ""}), delta({"content": "a"}), "", delta({"content": "b c d"}), USAGE, "data: [DONE]"]


def test_times_of_a_whole_stream():
    record = record_of(*WHOLE)
    assert record.outcome == "ok" and record.reason is None
    assert record.started_s == pytest.approx(10)
    assert record.ttft_ms == pytest.approx(200), "the role chunk is not the first token"
    assert record.e2e_ms == pytest.approx(700)
    assert record.tpot_ms == pytest.approx(500 / 3, abs=0.001), "tokens are counted by usage, not by chunks"
    assert record.itl_ms == pytest.approx((200,))
    assert (record.prompt_tokens, record.completion_tokens) == (5, 4)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (WHOLE[:-1], "truncated"),
        ([], "truncated"),
        ([*WHOLE[:-2], "data: [DONE]"], "no usage"),
        ([*WHOLE[:2], event(error={"message": "gone", "code": "worker_died"}), "data: [DONE]"], "worker_died"),
        ([*WHOLE[:2], event(error="gone"), "data: [DONE]"], "error event: gone"),
        ([*WHOLE[:2], "data: {oops", "data: [DONE]"], "not JSON"),
    ],
)
def test_streams_that_fail(lines, reason):
    record = record_of(*lines)
    assert record.outcome == "failed"
    assert reason in record.reason


def test_events_cut_anywhere_and_odd_line_ends():
    stream = Stream(START)
    body = "".join(f"{line}\r\n" for line in WHOLE).replace("b c d", "b\u2028 \u00e9").encode()
    for index in range(len(body)):
        stream.feed(body[index : index + 1], 100.1)
    assert stream.record(100.2).outcome == "ok"


def test_one_token_has_no_time_per_token():
    usage = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6})
    assert record_of(delta({"content": "a"}), usage, "data: [DONE]").tpot_ms is None


def test_comments_and_several_choices():
    two = event(choices=[{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "x"}}])
    record = record_of(": queued position=3 eta_s=2", two, USAGE, "data: [DONE]")
    assert record.outcome == "ok" and record.ttft_ms == pytest.approx(200)


def finish(reason):
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


@pytest.mark.parametrize(
    ("lines", "expected", "reason"),
    [
        ([*WHOLE[:-2], finish("stop"), *WHOLE[-2:]], Expectations(max_tokens=9), None),
        ([*WHOLE[:-2], finish("length"), *WHOLE[-2:]], Expectations(max_tokens=4), None),
        ([*WHOLE[:-2], finish("length"), *WHOLE[-2:]], Expectations(max_tokens=9), "wrong: the server sent 4 tokens for max_tokens 9"),
        ([*WHOLE[:-2], finish("stop"), *WHOLE[-2:]], Expectations(max_tokens=3), "wrong: the server sent 4 tokens for max_tokens 3"),
        ([finish("length"), *WHOLE[-2:]], Expectations(max_tokens=4), "no text arrived"),
        (WHOLE, Expectations(max_tokens=4), "without a finish_reason"),
        ([*WHOLE[:-2], finish("stop"), WHOLE[-2]], Expectations(has_done=False), None),
        (WHOLE[:-2], Expectations(has_done=False, has_usage=False), "without a finish_reason"),
        ([*WHOLE[:-2], finish("stop"), "data: [DONE]"], Expectations(has_usage=False), None),
        ([*WHOLE[:2], "data: 3", *WHOLE[2:]], Expectations(), "not a chat completion chunk"),
        ([*WHOLE[:2], event(choices=[{"index": 0}]), *WHOLE[2:]], Expectations(), "not a chat completion chunk"),
        ([*WHOLE[:-2], event(choices=[], usage={"tokens": 3}), "data: [DONE]"], Expectations(), "not a chat completion chunk"),
    ],
)
def test_what_a_complete_stream_must_contain(lines, expected, reason):
    record = record_of(*lines, expected=expected)
    assert (record.reason is None) if reason is None else (reason in record.reason)


def test_reasoning_deltas_are_timed_but_are_not_text():
    stream = Stream(START)
    stream.feed((delta({"reasoning_content": "hm"}) + "\n" + delta({"content": "a"}) + "\n").encode(), 100.5)
    assert len(stream.deltas_s) == 2 and stream.text == "a"


def test_a_client_that_leaves_has_neither_failed_nor_finished():
    stream = Stream(START)
    stream.feed((delta({"content": "a"}) + "\n").encode(), 100.5)
    stream.client_left = True
    record = stream.record(101.0)
    assert (record.outcome, record.reason, record.ttft_ms) == ("left", None, pytest.approx(500))


def test_the_queue_time_of_llama_server_is_ttft_less_prefill():
    timed = event(choices=[], timings={"prompt_ms": 150.0})
    assert record_of(*WHOLE[:-1], timed, WHOLE[-1]).queue_ms == pytest.approx(50), "the first token came after 200 ms"
    assert record_of(*WHOLE).queue_ms is None


def test_known_fields_are_in_the_record():
    start = Start("chat", 0, 100.0, 90.0, {"user": "talk", "turn": 2, "rate": 4.0, "warm_up": True})
    record = start.record(101.0, 503, None, retry_after_s=2.0)
    assert (record.user, record.turn, record.rate, record.warm_up, record.retry_after_s) == ("talk", 2, 4.0, True, 2.0)


@pytest.mark.parametrize(("status", "outcome"), [(429, "shed"), (503, "shed"), (500, "failed"), (400, "failed"), (0, "failed")])
def test_refusals(status, outcome):
    record = START.record(100.5, status, None)
    assert (record.outcome, record.reason, record.e2e_ms) == (outcome, f"HTTP {status}", pytest.approx(500))


def test_a_score_needs_every_text():
    good, bad = {"object": "score"}, {"object": "error", "code": "engine_failed"}
    assert score_record(START, 101, {"data": [good], "usage": {"prompt_tokens": 9}}, texts=1).prompt_tokens == 9
    assert score_record(START, 101, {"data": []}, texts=1).outcome == "failed"
    assert "engine_failed" in score_record(START, 101, {"data": [good, bad]}, texts=2).reason
    for odd in ({}, [], None, {"data": 3}, {"data": [{"score": 1}]}):
        assert score_record(START, 101, odd, texts=1).reason == "wrong: the body is not a list of scores"


def test_a_record_is_one_line_of_json():
    line = record_of(*WHOLE).to_json()
    assert "\n" not in line
    assert json.loads(line)["kind"] == "chat"
