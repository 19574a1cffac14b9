"""Fine-tuned models: whose they are, and how they are deleted."""

import openai
import pytest
from tuning_jobs import reached, run_folder, start, working

from app.errors import Conflict, StorageFull

pytestmark = pytest.mark.usefixtures("at_once")


def test_jobs_and_models_belong_to_the_key_that_made_them(shared):
    job = start(shared, name="alice")
    others = shared.client("bob").fine_tuning.jobs
    for ask in (others.retrieve, others.cancel, others.pause, others.list_events, others.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            list(ask(job.id))
    assert list(others.list()) == [] and len(list(shared.client("alice").fine_tuning.jobs.list())) == 1
    with pytest.raises(openai.BadRequestError, match="no file"):
        others.create(model="fake", training_file=job.training_file)
    with working(shared):
        job = reached(shared, job, "succeeded", name="alice")
    assert shared.shelf.kept.keys() == {job.fine_tuned_model}
    with pytest.raises(openai.NotFoundError):
        shared.client("bob").models.delete(job.fine_tuned_model)
    assert shared.client("alice").models.delete(job.fine_tuned_model).deleted
    assert shared.shelf.kept == {} and not run_folder(shared, job).exists()
    with pytest.raises(openai.NotFoundError):
        shared.client("alice").models.delete(job.fine_tuned_model)
    with pytest.raises(openai.PermissionDeniedError):
        shared.client("alice").post(f"/fine_tuning/jobs/{job.id}/serve", cast_to=object)


def test_checkpoints_of_a_model_are_unloaded_with_it(hosted):
    with working(hosted):
        first, second = (reached(hosted, job, "succeeded") for job in [start(hosted), start(hosted)])
    for job in (first, second):
        hosted.shelf.kept[f"{job.fine_tuned_model}:ckpt-step-3"] = (str(run_folder(hosted, job) / "checkpoints/step-3"), "fake")
    assert hosted.client().models.delete(first.fine_tuned_model).deleted
    assert hosted.shelf.kept.keys() == {second.fine_tuned_model, f"{second.fine_tuned_model}:ckpt-step-3"}


@pytest.mark.parametrize("failure", [StorageFull("no room"), Conflict("it is being loaded")])
def test_a_model_whose_deletion_failed_can_be_deleted_again(hosted, failure):
    with working(hosted):
        name = reached(hosted, start(hosted), "succeeded").fine_tuned_model
    hosted.shelf.failure = failure
    for _ in range(2):
        with pytest.raises(openai.APIStatusError) as caught:
            hosted.client().models.delete(name)
        assert caught.value.status_code == failure.status
    hosted.shelf.failure = None
    assert hosted.client().models.delete(name).deleted and hosted.shelf.kept == {}
    with pytest.raises(openai.NotFoundError, match="no fine-tuned model"):
        hosted.client().models.delete(name)


@pytest.mark.parametrize("removed", [True, False])
def test_a_model_is_deleted_that_only_the_server_or_only_the_table_still_has(hosted, removed):
    with working(hosted):
        job = reached(hosted, start(hosted), "succeeded")
    if removed:
        hosted.desk._tables.tunings.remove_model(job.id)
    else:
        hosted.shelf.kept.clear()
    assert hosted.client().models.delete(job.fine_tuned_model).deleted
    assert hosted.shelf.kept == {} and not run_folder(hosted, job).exists()
    with pytest.raises(openai.NotFoundError):
        hosted.client().models.delete(job.fine_tuned_model)
