"""The list of jobs as HTML."""

import time
from typing import Any

import pytest

from tests.ui import fakejobs
from ui.jobs.client import Batch, Event, Tuning
from ui.jobs.view import SHOWN_PROBLEMS, batch_html, is_live, may_lack_details, tuning_html


def drawn_batch(status: str, **changes: Any) -> str:
    return batch_html(Batch.model_validate(fakejobs.batch(status, **changes)), time.time())


def drawn_tuning(status: str, events: list[Event] | None = None, **changes: Any) -> str:
    return tuning_html(Tuning.model_validate(fakejobs.tuning(status, **changes)), events, time.time())


def test_a_running_batch_has_its_progress_its_age_and_a_cancel() -> None:
    html = drawn_batch("in_progress", metadata={"name": "<essays>.csv"})
    for words in (
        "&lt;essays&gt;.csv",
        ">running<",
        "412 of 1,000 lines, 3 of them without an answer",
        'max="1000" value="412"',
        "3 min ago",
    ):
        assert words in html
    assert 'data-do="cancel"' in html and "download" not in html


def test_an_ended_batch_has_its_files_and_no_cancel() -> None:
    html = drawn_batch("completed", output_file_id="file-1", error_file_id="file-2")
    assert 'data-file="file-1"' in html and 'data-file="file-2"' in html and 'data-do="csv"' in html and "cancel" not in html
    other = drawn_batch("cancelling", endpoint="/v1/embeddings", output_file_id="file-1")
    assert "data-do" not in other and "being cancelled" in other


def test_what_is_wrong_with_a_file_is_said_by_line() -> None:
    problems = [{"message": "the <line> is no JSON", "line": 1234}, {"message": "too much"}, *[{"message": "x", "line": 5}] * 40]
    html = drawn_batch("failed", errors={"data": problems})
    assert "Line 1,234: the &lt;line&gt; is no JSON" in html and "<li>too much</li>" in html
    assert f"… and {42 - SHOWN_PROBLEMS} more." in html and html.count("<li>") == SHOWN_PROBLEMS + 1


def test_a_tuning_tells_how_far_it_is_and_draws_its_losses_where_it_is_open() -> None:
    events = [Event.model_validate(event) for event in fakejobs.metrics(10, 40)][::-1]
    html = drawn_tuning("running", [Event(id="e", message="It began."), *events], estimated_finish=int(time.time()) + 150)
    for words in (
        "from storyteller",
        "3 epochs",
        ">training<",
        "step 10 of 40, done in about 2 min",
        "Hide the curve",
        "<svg",
        "It began.",
    ):
        assert words in html
    folded = drawn_tuning("running")
    assert 'data-do="pause"' in folded and 'data-do="resume"' in drawn_tuning("paused")
    assert "Show the curve" in folded and "<figure" not in folded and 'data-do="cancel"' in folded


def test_a_tuning_that_succeeded_names_its_model_and_one_that_failed_its_reason() -> None:
    html = drawn_tuning("succeeded", fine_tuned_model="ft:storyteller:alice:7p4L", result_files=["file-9"])
    assert "It is served as <b>ft:storyteller:alice:7p4L</b>" in html and 'data-file="file-9"' in html and "cancel" not in html
    failed = drawn_tuning(
        "failed", [Event(id="e", message="It failed.")], error={"message": "line 7: the role 'robot' is unknown", "code": "invalid_file"}
    )
    assert "line 7: the role &#x27;robot&#x27; is unknown" in failed
    assert "It ended before its first step." in failed and "It failed." not in failed and "<figure" not in failed


WRONG = [
    *[Event(id=f"e{n}", level="error", message=f"training file, line {n}: the role '<robot>' is unknown") for n in range(1, 31)],
    Event(
        id="e31", level="error", message="The job failed: 30 lines are wrong in the training file; line 1: the role '<robot>' is unknown"
    ),
]


def test_every_wrong_line_of_a_tuning_is_listed_where_it_is_open() -> None:
    error = {"message": "30 lines are wrong in the training file; line 1: the role is unknown", "code": "invalid_training_file"}
    folded, opened = drawn_tuning("failed", error=error), drawn_tuning("failed", WRONG, error=error)
    assert "Show the wrong lines" in folded and folded.count("<li>") == 1
    assert "Hide the wrong lines" in opened and opened.count("<li>") == 31 and "The job failed" not in opened
    assert "training file, line 30: the role &#x27;&lt;robot&gt;&#x27; is unknown" in opened
    assert "the curve" not in folded + opened and "first step" not in opened


def test_a_tuning_whose_file_has_no_lines_offers_none() -> None:
    error = {"message": "the training file has no lines; write one example a line", "code": "invalid_training_file"}
    html = drawn_tuning("failed", [Event(id="e", level="error", message="The job failed: the training file has no lines")], error=error)
    assert "the wrong lines" not in html and "the training file has no lines" in html and html.count("<ul") == 1


def test_a_tuning_that_ended_without_a_step_offers_no_curve() -> None:
    job = Tuning.model_validate(fakejobs.tuning("cancelled"))
    assert may_lack_details(job) and not may_lack_details(Tuning.model_validate(fakejobs.tuning("queued")))
    for html in (
        tuning_html(job, None, time.time(), may_unfold=False),
        drawn_tuning("cancelled", [Event(id="e", message="It was cancelled.")]),
    ):
        assert "the curve" not in html and "<figure" not in html
    assert "Show the curve" in tuning_html(job, None, time.time(), may_unfold=True)


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled", "succeeded"])
def test_what_has_ended_is_not_asked_for_often(status: str) -> None:
    assert not is_live(status) and is_live("in_progress") and is_live("queued")
