"""The files of a batch: made once, whatever becomes of the workers that try."""

import pytest
from batch_lines import ids, line

from jobs import policy
from jobs.leases import Leases


def test_outputs_expire_as_the_batch_asks(hosted):
    made = hosted.start(line("a"), output_expires_after={"anchor": "created_at", "seconds": 3600})
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    file = hosted.client().files.retrieve(batch.output_file_id)
    assert (file.purpose, file.expires_at - file.created_at) == ("batch_output", 3600)


def test_files_that_a_lost_worker_had_uploaded_are_replaced(hosted, monkeypatch):
    made = hosted.start(line("a"))
    monkeypatch.setattr("jobs.leases.Leases.finish", lambda *_: (_ for _ in ()).throw(OSError))  # dies after the upload
    hosted.work()
    monkeypatch.undo()
    assert len([file for file in hosted.client().files.list() if file.purpose == "batch_output"]) == 1
    with hosted.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE tasks SET due = 1")
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    outputs = [file.id for file in hosted.client().files.list() if file.purpose == "batch_output"]
    assert outputs == [batch.output_file_id] and len(list((hosted.folder / "files").iterdir())) == 2


def fail_once(hosted, monkeypatch, where):
    """Work until `where` is called, where the disk fails; then every task is due again."""
    with monkeypatch.context() as patched:
        patched.setattr(where, lambda *_: (_ for _ in ()).throw(OSError))
        hosted.work()
    make_due(hosted)


def make_due(hosted, attempts=0):
    with hosted.database.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE tasks SET due = 1, attempts = {attempts} WHERE due < 1e12")


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_batch_that_was_checked_is_finished_although_the_limit_of_a_line_is_lower_now(hosted, monkeypatch, status):
    made = hosted.start(line("a", prompt="ab " * 10, max_tokens=1), line("b"))
    fail_once(hosted, monkeypatch, "jobs.lines.Lines.run")
    server = hosted.settings.server.model_copy(update={"max_body_bytes": 100})
    hosted.settings = hosted.settings.model_copy(update={"server": server})
    if status == "cancelled":
        hosted.client().batches.cancel(made.id)
        hosted.sweep()
    hosted.work()
    assert hosted.client().batches.retrieve(made.id).status == status
    assert ids(hosted.output(made)[status == "cancelled"]) == ["a", "b"]


def test_a_batch_with_answers_keeps_them_when_no_worker_lives_to_make_its_files(hosted, monkeypatch):
    made = hosted.start(line("a"))
    fail_once(hosted, monkeypatch, "jobs.leases.Leases.finish")
    make_due(hosted, policy.MAX_ATTEMPTS)
    hosted.work()
    assert hosted.client().batches.retrieve(made.id).status == "finalizing"
    make_due(hosted)
    hosted.work()
    assert ids(hosted.output(made)[0]) == ["a"]


def test_a_batch_without_answers_fails_when_no_worker_lives_to_check_it(hosted):
    made = hosted.start(line("a"))
    make_due(hosted, policy.MAX_ATTEMPTS)
    hosted.work()
    assert [each.code for each in hosted.client().batches.retrieve(made.id).errors.data] == ["worker_lost"]


def test_a_batch_whose_input_is_gone_fails(hosted):
    made = hosted.start(line("a"))
    (hosted.folder / "files" / made.input_file_id).unlink()
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    assert (batch.status, [each.code for each in batch.errors.data]) == ("failed", ["input_unavailable"])


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_batch_whose_input_is_gone_keeps_the_answers_that_it_has(hosted, monkeypatch, status):
    made = hosted.start(*[line(id) for id in "abcd"])  # two tasks
    save, saved = Leases.save, []

    def save_once(leases, task, finished):
        if saved:
            raise OSError
        saved.extend(finished)
        save(leases, task, finished)

    with monkeypatch.context() as patched:
        patched.setattr("jobs.leases.Leases.save", save_once)
        hosted.work()
    make_due(hosted)
    (hosted.folder / "files" / made.input_file_id).unlink()
    if status == "cancelled":
        hosted.client().batches.cancel(made.id)
        hosted.sweep()
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    answered = [each.n for each in saved]
    assert (batch.status, batch.request_counts.total, batch.request_counts.completed) == (status, 4, len(answered))
    assert ids(hosted.output(made)[0]) == ["abcd"[n] for n in sorted(answered)] and batch.error_file_id is None


def test_a_cancelled_batch_without_input_and_answers_is_cancelled(hosted, monkeypatch):
    made = hosted.start(line("a"))
    fail_once(hosted, monkeypatch, "jobs.lines.Lines.run")
    (hosted.folder / "files" / made.input_file_id).unlink()
    hosted.client().batches.cancel(made.id)
    hosted.sweep()
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
