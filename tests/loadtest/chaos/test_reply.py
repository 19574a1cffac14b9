import json

import pytest

from loadtest.chaos.reply import EventReader, Reply, comparable, read_body, readable, same


def chunk(text="", finish=None, index=0, **fields):
    return f"data: {json.dumps({'choices': [{'index': index, 'delta': {'content': text}, 'finish_reason': finish, **fields}]})}\n\n"


def read(*events, sizes=(10_000,)):
    reply, data = Reply(status=200), "".join(events).encode()
    reader = EventReader(reply)
    while data:
        for size in sizes:
            reader.feed(data[:size])
            data = data[size:]
    reader.close()
    return reply


@pytest.mark.parametrize("sizes", [(10_000,), (1,), (3, 7)])
def test_a_stream_with_comments_is_read_however_it_is_cut(sizes):
    details = '"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"accepted_prediction_tokens": 1}'
    usage = f'data: {{"choices": [], "usage": {{"prompt_tokens": 3, {details}}}}}\n\n'
    events = (
        ": queued position=1\n\n",
        chunk("Once \u2028"),
        ": resumed\n\n",
        chunk("more\u00e9"),
        chunk("", "stop"),
        usage,
        "data: [DONE]\n\n",
    )
    reply = read(*events, sizes=sizes)
    assert reply.complete and reply.comments == 2 and reply.fault is None
    assert reply.answer["choices"][0] == {"text": "Once \u2028more\u00e9", "finish_reason": "stop", "logprobs": []}
    assert reply.answer["usage"] == {"prompt_tokens": 3}


def test_lines_may_end_as_on_windows_and_data_may_have_several_lines():
    reply = read('event: x\r\ndata: {"choices":\r\ndata: [{"index":0,"text":"a","finish_reason":"stop"}]}\r\n\r\ndata:[DONE]\r\n\r\n')
    assert reply.complete and reply.answer["choices"][0]["text"] == "a"


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ((chunk("a"),), None),
        ((chunk("a", "stop"),), None),
        ((chunk("a"), "data: [DONE]\n\n"), None),
        (("data: [DONE]\n\n",), None),
        ((chunk("a", "stop"), "data: [DONE]"), None),  # without the blank line, an event has not ended
        ((chunk("a", "stop"), chunk("b", index=1), "data: [DONE]\n\n"), None),
        (("data: {\n\n", "data: [DONE]\n\n"), "an event that is not a chunk of an answer"),
        (("data: 3\n\n",), "an event that is not a chunk of an answer"),
        ((chunk("a", "stop"), "data: [DONE]\n\n", chunk("b")), "an event after [DONE]"),
    ],
)
def test_a_stream_without_its_end_is_not_complete(events, fault):
    reply = read(*events)
    assert reply.fault == fault
    assert not reply.complete or fault == "an event after [DONE]"


def test_an_error_event_is_kept():
    reply = read(chunk("a"), 'data: {"error": {"message": "m", "code": "worker_died"}}\n\n', "data: [DONE]\n\n")
    assert not reply.complete and reply.error == {"message": "m", "code": "worker_died"}


def test_choices_and_log_probabilities_are_put_together():
    logprobs = [{"content": [{"token": token, "logprob": -1.5}]} for token in "ab"]
    reply = read(
        chunk("a", logprobs=logprobs[0]), chunk("x", "stop", index=1), chunk("b", "stop", logprobs=logprobs[1]), "data: [DONE]\n\n"
    )
    assert reply.answer["choices"][0] == {"text": "ab", "finish_reason": "stop", "logprobs": [("a", -1.5), ("b", -1.5)]}
    assert reply.answer["choices"][1]["text"] == "x" and reply.complete


def test_whole_bodies_take_the_same_form():
    streamed = read(chunk("ab"), chunk("", "stop"), 'data: {"choices": [], "usage": {"total_tokens": 2}}\n\n', "data: [DONE]\n\n")
    whole = Reply(status=200)
    choice = {"index": 0, "message": {"content": "ab"}, "finish_reason": "stop", "logprobs": None}
    read_body(whole, json.dumps({"id": "x", "choices": [choice], "usage": {"total_tokens": 2}}).encode())
    assert whole.complete and whole.answer == streamed.answer
    text = Reply(status=200)
    logprobs = {"tokens": ["a"], "token_logprobs": [-2.0], "text_offset": [0]}
    body = {"choices": [{"index": 0, "text": "a", "finish_reason": "length", "logprobs": logprobs}], "usage": {}}
    read_body(text, json.dumps(body).encode())
    assert text.answer["choices"][0] == {"text": "a", "finish_reason": "length", "logprobs": [("a", -2.0)]}


def test_scores_and_errors():
    score = Reply(status=200)
    read_body(score, b'{"data": [{"object": "score", "id": "x", "scores": {"perplexity": 3.5}}], "usage": {}}')
    assert score.complete and score.answer["data"] == [{"object": "score", "scores": {"perplexity": 3.5}}]
    failed = Reply(status=200)
    read_body(failed, b'{"data": [{"object": "error"}], "usage": {}}')
    assert not failed.complete
    refused = Reply(status=503)
    read_body(refused, b'{"error": {"message": "m", "code": "not_ready"}}')
    assert readable(refused.error) and refused.fault is None
    for status, body in ((200, b"{}"), (200, b"\xff"), (502, b"Bad Gateway"), (500, b'{"error": 3}')):
        broken = Reply(status=status)
        read_body(broken, body)
        assert broken.fault and not broken.complete


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"text": "a"}, {"text": "a"}, True),
        ({"text": "a"}, {"text": "a "}, False),
        ([("a", -1.0)], [("a", -1.00005)], True),
        ([("a", -1.0)], [("a", -1.01)], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
        (7, 8, False),
        (7, 7, True),
        (None, None, True),
        (0.0, None, False),
    ],
)
def test_same_is_exact_for_all_but_numbers_with_a_fraction(one, other, equal):
    assert same(one, other) is equal


def test_comparable_leaves_out_what_equal_answers_do_not_share():
    assert comparable({"id": 1, "created": 2, "x": [{"id": 3, "y": 4}]}) == {"x": [{"y": 4}]}


def test_an_error_is_readable_with_message_and_code():
    assert readable({"message": "m", "code": "c"})
    assert not any(map(readable, [None, {}, {"message": "m"}, {"message": "", "code": "c"}, {"message": "m", "code": None}]))
