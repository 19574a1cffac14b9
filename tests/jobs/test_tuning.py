"""Fine-tuning jobs from the official client through the real routes and a worker's lane to a process that pretends to train."""

import openai
import pytest
from serving import wait_for
from tuning_jobs import FullDisk, events, reached, run_folder, start, steps, upload, working

from app.ledger.folder import Folder
from app.ledger.recipe import Run
from app.ledger.room import RESERVE_BYTES
from app.ledger.tunings import note
from app.log import JSONFormatter
from app.schemas.tuning import Hyperparameters, JobRequest
from app.settings import ModelSettings
from jobs import lane, policy
from jobs.leases import LeaseLost, Leases
from jobs.runs import Runs
from jobs.server import Refused, Server
from serve.routes.tuning import recipe_of

SECRET = "planted"
pytestmark = pytest.mark.usefixtures("at_once")


def test_a_job_from_its_file_to_its_model(hosted):
    client = hosted.client().fine_tuning.jobs
    with working(hosted):
        made = start(hosted, suffix="alice", seed=7, metadata={"for": "me"}, hyperparameters={"n_epochs": 2, "lora_rank": 4})
        assert (made.status, made.fine_tuned_model, made.hyperparameters.batch_size) == ("validating_files", None, "auto")
        job = reached(hosted, made, "succeeded")
    assert job.fine_tuned_model == f"ft:fake:alice:{job.id[6:14]}" and job.seed == 7 and job.metadata == {"for": "me"}
    assert job.trained_tokens == 6 and job.finished_at >= job.created_at and job.error is None and job.estimated_finish is None
    assert (job.hyperparameters.batch_size, job.method.type, job.method.supervised.hyperparameters.n_epochs) == (1, "supervised", 2)
    assert hosted.client().files.content(job.result_files[0]).text == "step,train_loss\n"
    assert hosted.client().files.retrieve(job.result_files[0]).purpose == "fine-tune-results"
    said = [event.message for event in events(hosted, job) if event.type == "message"]
    done = f"The job has successfully completed: {job.fine_tuned_model}"
    assert said[0].startswith("Created") and said[-2:] == ["New fine-tuned model created", done]
    assert steps(hosted, job) == [1, 2, 3, 4, 5, 6]
    kept = [(each.step_number, each.fine_tuned_model_checkpoint) for each in client.checkpoints.list(job.id)]
    assert kept == [(step, f"{job.fine_tuned_model}:ckpt-step-{step}") for step in (6, 3)]
    assert hosted.shelf.kept == {job.fine_tuned_model: (str(run_folder(hosted, job) / "adapter"), "fake")}
    assert {path.name for path in run_folder(hosted, job).iterdir()} == {"adapter", "saved"}
    assert [each.id for each in client.list(metadata={"for": "me"})] == [job.id] and not list(client.list(metadata={"for": "you"}))
    assert not list(client.list(metadata={"for": "Me"})), "capitals differ"


def test_a_wrong_file_fails_the_job_and_leaves_nothing(hosted):
    with working(hosted):
        job = reached(hosted, start(hosted, "wrong"), "failed")
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file") and "line 1" in job.error.message
    assert [event.level for event in events(hosted, job)][-2:] == ["error", "error"] and not run_folder(hosted, job).exists()


def test_a_model_that_cannot_be_served_is_kept_and_the_owner_is_told(hosted):
    hosted.shelf.refusal = "as many adapters as may are served"
    with working(hosted):
        job = reached(hosted, start(hosted), "succeeded")
    (warning,) = [event for event in events(hosted, job) if event.level == "warn"]
    assert (
        warning.message == "The model is not served: as many adapters as may are served" and (run_folder(hosted, job) / "adapter").exists()
    )


def test_a_cancelled_job_ends_its_process_and_leaves_nothing(hosted):
    client = hosted.client().fine_tuning.jobs
    with working(hosted):
        job = start(hosted, "slow")
        wait_for(lambda: 3 in steps(hosted, job))
        assert client.cancel(job.id).status == "cancelled" and client.cancel(job.id).status == "cancelled"
        wait_for(lambda: not run_folder(hosted, job).exists())
    assert client.retrieve(job.id).finished_at is not None and hosted.shelf.kept == {}
    for change in (client.pause, client.resume):
        with pytest.raises(openai.ConflictError, match="is cancelled"):
            change(job.id)


def test_a_job_whose_table_is_on_a_full_disk_fails_and_leaves_nothing(hosted, monkeypatch):
    disk = FullDisk(hosted, monkeypatch)
    with working(hosted):
        job = start(hosted, "slow")
        wait_for(lambda: 3 in steps(hosted, job))
        disk.fill()
        (run_folder(hosted, job) / "go").touch()
        job = reached(hosted, job, "failed")
        wait_for(lambda: not run_folder(hosted, job).exists())
    assert job.error.code == "storage_full" and "make room" in job.error.message and disk.reserve.stat().st_size == RESERVE_BYTES


def test_a_run_whose_folder_is_on_a_full_disk_fails(hosted, monkeypatch):
    monkeypatch.setattr(Run, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with working(hosted):
        assert reached(hosted, start(hosted), "failed").error.code == "storage_full"


def test_on_a_full_disk_a_job_can_be_cancelled_and_a_file_deleted(hosted, monkeypatch):
    client, jobs, unused = hosted.client(), [start(hosted), start(hosted)], upload(hosted)
    disk = FullDisk(hosted, monkeypatch)
    hosted.database.keep_reserve()
    disk.fill()
    with pytest.raises(openai.InternalServerError, match="disk is full") as refused:
        start(hosted)
    assert refused.value.status_code == 507 and disk.reserve.exists()
    for job in jobs:
        disk.fill()
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    disk.fill()
    assert client.files.delete(unused).deleted and disk.reserve.stat().st_size == RESERVE_BYTES


def test_on_a_disk_that_is_full_without_the_reserve_the_bytes_of_a_file_give_its_row_the_room(hosted, monkeypatch):
    client, used, unused = hosted.client(), start(hosted).training_file, upload(hosted)
    FullDisk(hosted, monkeypatch).fill(Folder(hosted.settings.jobs.folder).file(unused))
    with pytest.raises(openai.ConflictError, match="has not ended"):
        client.files.delete(used)
    assert client.files.content(used).read() == b"{}" and client.files.delete(unused).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(unused)


def test_a_paused_job_goes_on_where_it_was(hosted):
    client = hosted.client().fine_tuning.jobs
    with working(hosted):
        job = start(hosted, "slow")
        wait_for(lambda: 3 in steps(hosted, job))
        assert client.retrieve(job.id).status == "running" and client.retrieve(job.id).estimated_finish is not None
        assert client.pause(job.id).status == "paused"
        wait_for((run_folder(hosted, job) / "saved").exists)
        (run_folder(hosted, job) / "go").touch()
        assert not hosted.desk._tables.tunings.any_unfinished()  # so that the worker's process may end
        assert client.resume(job.id).status == "queued"
        reached(hosted, job, "succeeded")
    assert steps(hosted, job) == [1, 2, 3, 4, 5, 6]


def test_a_killed_process_is_followed_by_another_and_no_step_is_told_twice(hosted):
    with working(hosted):
        job = reached(hosted, start(hosted, "die 5"), "succeeded")
    assert steps(hosted, job) == [1, 2, 3, 4, 5, 6] and (run_folder(hosted, job) / "died").exists()
    assert [each.step_number for each in hosted.client().fine_tuning.jobs.checkpoints.list(job.id)] == [6, 3]


def test_a_job_whose_process_was_killed_goes_on_before_the_next_one_and_says_so(hosted, monkeypatch):
    monkeypatch.setattr(lane, "PAUSE_S", 0.5)
    first = start(hosted, "die 5")
    second = start(hosted)
    with working(hosted):
        jobs = [reached(hosted, job, "succeeded") for job in (second, first)]
    assert list(hosted.shelf.kept) == [job.fine_tuned_model for job in jobs[::-1]]
    (warning,) = [event.message for event in events(hosted, first) if event.level == "warn"]
    assert warning == "The job's process was ended by signal 9 (Killed); another one goes on from what was saved"


def test_a_worker_that_waits_to_try_a_job_again_can_be_stopped(hosted, monkeypatch):
    monkeypatch.setattr(lane, "PAUSE_S", 600)
    with working(hosted):
        job = start(hosted, "always die")
        wait_for(lambda: "warn" in {event.level for event in events(hosted, job)})
    assert hosted.client().fine_tuning.jobs.retrieve(job.id).status == "queued"


def test_a_job_whose_processes_all_die_fails(hosted):
    with working(hosted):
        job = reached(hosted, start(hosted, "always die"), "failed")
    assert job.error.code == "trainer_lost" and f"{policy.MAX_ATTEMPTS} processes" in job.error.message


def test_steps_that_are_never_saved_are_no_progress(hosted):
    with working(hosted):
        job = reached(hosted, start(hosted, "lose 2"), "failed")
    assert job.error.code == "trainer_lost" and f"{policy.MAX_ATTEMPTS} processes" in job.error.message
    assert (run_folder(hosted, job) / "saved").exists() is False and steps(hosted, job) == [1, 2]


def test_a_job_that_is_paused_and_resumed_at_once_is_lost_to_whoever_had_it(hosted):
    client, runs = hosted.client().fine_tuning.jobs, Runs(hosted.database, Leases(hosted.database, "w", 30))
    job = start(hosted)
    runs.examined(runs.take("examine"), Hyperparameters())
    first = runs.take("tune")
    runs.begin(first)
    assert client.pause(job.id).status == "paused" and client.resume(job.id).status == "queued"
    with pytest.raises(LeaseLost):
        runs.beat(first)
    runs.begin(runs.take("tune"))
    assert client.retrieve(job.id).status == "running" and hosted.desk._tables.tunings.tuned(job.id).id == job.id


def test_a_result_that_the_server_refuses_to_serve_is_kept(hosted, monkeypatch):
    async def refuse(server, claim):
        raise Refused("404 job_not_found")

    monkeypatch.setattr(Server, "serve", refuse)
    with working(hosted):
        job = reached(hosted, start(hosted), "succeeded")
    (warning,) = [event for event in events(hosted, job) if event.level == "warn"]
    assert warning.message == "The model is not served: 404 job_not_found" and (run_folder(hosted, job) / "adapter").exists()


def test_a_stopped_worker_gives_its_job_back_and_the_next_one_goes_on(hosted):
    with working(hosted):
        job = start(hosted, "slow")
        wait_for(lambda: 3 in steps(hosted, job))
    assert hosted.client().fine_tuning.jobs.retrieve(job.id).status == "queued" and (run_folder(hosted, job) / "saved").exists()
    (run_folder(hosted, job) / "go").touch()
    with working(hosted, "another"):
        reached(hosted, job, "succeeded")
    assert steps(hosted, job) == [1, 2, 3, 4, 5, 6]


def test_a_lost_workers_job_goes_to_another_one_when_its_lease_ends(hosted):
    with working(hosted, "lost"):
        job = start(hosted, "slow")
        wait_for(lambda: 3 in steps(hosted, job))
        stolen = None
        while stolen is None:
            with hosted.database.transaction() as connection:  # as if the lease had ended
                connection.exec_driver_sql("UPDATE tasks SET due = 1")
            stolen = Runs(hosted.database, Leases(hosted.database, "other", 30)).take("tune")
        wait_for((run_folder(hosted, job) / "saved").exists)  # the first one's process was told to stop
        (run_folder(hosted, job) / "go").touch()
        Runs(hosted.database, Leases(hosted.database, "other", 30)).release(stolen)
        reached(hosted, job, "succeeded")
    assert steps(hosted, job) == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_is_not_loaded_says_how_to_load_it(hosted):
    with pytest.raises(
        openai.NotFoundError, match=r"is a checkpoint.* /v1/load_lora_adapter from tuning/JOB/checkpoints/step-30 in jobs.folder"
    ):
        hosted.client().completions.create(model="ft:fake:a:12345678:ckpt-step-30", prompt="a")


def test_a_model_and_a_file_have_to_be_right(hosted):
    client = hosted.client()
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not loaded"):
        client.fine_tuning.jobs.create(model="gpt-4o", training_file=upload(hosted))
    batch = client.files.create(file=("t.jsonl", b"{}"), purpose="batch").id
    with pytest.raises(openai.BadRequestError, match="purpose batch; it must be fine-tune"):
        client.fine_tuning.jobs.create(model="fake", training_file=batch)
    job = start(hosted)
    with pytest.raises(openai.ConflictError, match="fine-tuning job that has not ended"):
        client.files.delete(job.training_file)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(job.training_file).deleted


def test_one_key_has_so_many_unfinished_jobs(hosted):
    jobs = [start(hosted) for _ in range(hosted.settings.jobs.max_tunings)]
    with pytest.raises(openai.RateLimitError, match="jobs.max_tunings"):
        start(hosted)
    hosted.client().fine_tuning.jobs.cancel(jobs[0].id)
    assert start(hosted).status == "validating_files"


def test_folders_of_runs_that_nobody_wants_are_found(hosted):
    with working(hosted):
        made = reached(hosted, start(hosted), "succeeded")
    waiting, cancelled = start(hosted), start(hosted)
    hosted.client().fine_tuning.jobs.cancel(cancelled.id)
    for job in (waiting, cancelled):
        run_folder(hosted, job).mkdir(parents=True)
    found = hosted.desk.folder.runs()
    assert set(found) == {made.id, waiting.id, cancelled.id}
    assert hosted.desk._tables.tunings.unwanted(found) == [cancelled.id]


def test_a_recipe_has_the_base_as_it_is_served_and_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ModelSettings(path="a/b", name="fake", aliases=("gpt-4o",), chat_template="chat.jinja", quantize="nf4")
    recipe = recipe_of(JobRequest(model="gpt-4o", training_file="file-1"), lambda name: base)
    assert (recipe.model, recipe.chat_template, recipe.quantize) == ("fake", str(tmp_path / "chat.jinja"), "nf4")


def test_a_job_that_meets_an_error_counts_an_attempt_and_others_go_on(hosted, monkeypatch, caplog):
    tell = Runs.tell

    def fails_for_the_first(runs, claim, messages):
        if claim.batch == first.id:
            raise ValueError(SECRET)
        tell(runs, claim, messages)

    first = start(hosted)
    monkeypatch.setattr(Runs, "tell", fails_for_the_first)
    with working(hosted):
        reached(hosted, start(hosted), "succeeded")
        job = reached(hosted, first, "failed")
    assert job.error.code == "trainer_lost" and SECRET not in "".join(map(JSONFormatter().format, caplog.records))


def test_an_event_has_no_text_that_a_table_does_not_take(hosted):
    job = start(hosted)
    with hosted.database.transaction() as connection:
        note(connection, job.id, hosted.database.now(), "'\ud800\0key' is none of text")
    assert events(hosted, job)[-1].message == "'??key' is none of text"
