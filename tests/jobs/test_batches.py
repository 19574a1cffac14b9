"""`/v1/batches` before a worker has touched them."""

import httpx
import openai
import pytest

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 1}}


def create(hosted, **changes):
    body = {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h", **changes}
    return httpx.post(f"{hosted.url}/v1/batches", json=body, trust_env=False)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({}, "input_file_id"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, None),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
    ],
)
def test_a_wrong_field_is_named(hosted, changes, param):
    answer = create(hosted, **changes)
    assert answer.status_code == 400 and (param is None or answer.json()["error"]["param"] == param), answer.text


def test_an_output_is_no_input(hosted):
    made = hosted.start(LINE)
    hosted.work()
    output = hosted.client().batches.retrieve(made.id).output_file_id
    assert create(hosted, input_file_id=output).json()["error"]["param"] == "input_file_id"


def test_batches_are_listed_in_pages_and_belong_to_their_key(shared):
    made = [shared.start(LINE, name="alice").id for _ in range(2)]
    assert [batch.id for batch in shared.client("alice").batches.list(limit=1)] == made[::-1]
    assert list(shared.client("bob").batches.list()) == []
    for ask in (shared.client("bob").batches.retrieve, shared.client("bob").batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(made[0])


def test_unfinished_batches_of_a_key_are_bounded(shared):
    for _ in range(2):
        shared.start(LINE, name="alice")
    with pytest.raises(openai.RateLimitError, match=r"jobs\.max_batches"):
        shared.start(LINE, name="alice")
    shared.start(LINE, name="bob")


def test_an_idempotency_key_makes_one_batch(hosted):
    file = hosted.upload(LINE)
    body = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    send = hosted.client().batches.create
    first, again = (send(**body, extra_headers={"Idempotency-Key": "k1"}) for _ in range(2))
    other = send(**body, extra_headers={"Idempotency-Key": "k2"})
    assert first.id == again.id != other.id
    with pytest.raises(openai.ConflictError, match="another body"):
        send(**body, metadata={"a": "b"}, extra_headers={"Idempotency-Key": "k1"})
    assert len(list(hosted.client().batches.list())) == 2


def test_only_what_has_not_ended_can_be_cancelled(hosted):
    made = hosted.start(LINE)
    assert hosted.client().batches.cancel(made.id).status == "cancelling"
    assert hosted.client().batches.cancel(made.id).status == "cancelling"
    hosted.sweep()
    hosted.work()
    batch = hosted.client().batches.cancel(made.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    done = hosted.start(LINE)
    hosted.work()
    with pytest.raises(openai.ConflictError, match="completed"):
        hosted.client().batches.cancel(done.id)


def test_a_batch_is_in_the_table_before_it_is_answered(hosted):
    """A server that dies after its answer has not lost the batch."""
    made = hosted.start(LINE)
    with hosted.database.transaction() as connection:
        assert connection.exec_driver_sql("SELECT id, status FROM batches").all() == [(made.id, "validating")]
        assert connection.exec_driver_sql("SELECT batch, kind FROM tasks").all() == [(made.id, "check")]


def test_a_405_names_every_method_of_its_path(hosted):
    answer = httpx.request("PATCH", f"{hosted.url}/v1/batches", trust_env=False)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
