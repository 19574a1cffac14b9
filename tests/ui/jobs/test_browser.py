"""The Jobs tab in a real browser, against the fake server."""

import json
from pathlib import Path

import pytest
from browser import CHROMIUM, violations
from playwright.sync_api import Locator, Page, expect

from tests.ui import fakejobs
from tests.ui.conftest import Fake
from ui.jobs.client import TUNING_OFF

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
CSV = 'name,text\na,"One ""quoted"", text\nof two lines"\n\na,Another <b>text</b>\n,\n'


@pytest.fixture
def jobs(page: Page) -> Page:
    page.get_by_role("tab", name="Jobs").click()
    expect(page.get_by_text("There is no batch yet.")).to_be_visible(timeout=20_000)
    return page


def choose(page: Page, form: str, label: str, name: str, content: str) -> Locator:
    chosen = page.get_by_role("form", name=form)
    chosen.get_by_label(label).set_input_files({"name": name, "mimeType": "text/plain", "buffer": content.encode()})
    return chosen


def look_again(page: Page) -> None:
    """A tab that is opened asks at once."""
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("tab", name="Jobs").click()


def test_texts_become_a_batch_of_scores_that_is_watched_cancelled_and_saved(jobs: Page, fake: Fake):
    form = choose(jobs, "Start a batch", "File", "essays.csv", 'name,text\n"open')
    expect(form.get_by_text("Line 2: a quotation mark opens a cell and none closes it.")).to_be_visible()
    choose(jobs, "Start a batch", "File", "essays.csv", CSV)
    expect(form.get_by_text('2 texts to score. The first begins: “One "quoted", text')).to_be_visible()
    form.get_by_role("button", name="Start the batch").click()
    expect(form.get_by_text("The batch has begun.")).to_be_visible()
    lines = [json.loads(line) for line in fake.jobs.files["file-0"].splitlines()]
    assert [(line["custom_id"], line["body"]["text"]) for line in lines] == [
        ("a", 'One "quoted", text\nof two lines'),
        ("line 5", "Another <b>text</b>"),
    ]
    assert {line["url"] for line in lines} == {"/v1/score"} and fake.jobs.started[0]["metadata"] == {"name": "essays.csv"}
    batches = jobs.get_by_role("region", name="Batches")
    expect(batches).to_contain_text("essays.csv checking the file")
    fake.jobs.batches[0] |= {"status": "in_progress"}
    cancel = batches.get_by_role("button", name="Cancel")
    cancel.focus()
    expect(batches).to_contain_text("412 of 1,000 lines, 3 of them without an answer")
    jobs.keyboard.press("Enter")
    jobs.keyboard.press("Enter")
    expect(batches).to_contain_text("essays.csv cancelled")
    fake.jobs.batches[0] |= {"status": "completed", "output_file_id": "file-1"}
    fake.jobs.files["file-1"] = fakejobs.OUTPUT.encode()
    look_again(jobs)
    with jobs.expect_download() as download:
        batches.get_by_role("button", name="Scores as CSV").click()
    row = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()[1]
    assert row.startswith("line 1,,machine,0.9,0.8,0.95,fast_detect,2.5,1.9,") and ',storyteller,"nf4, computing in bfloat16",' in row
    with jobs.expect_download() as download:
        batches.get_by_role("link", name="Answers (JSONL)").click()
    assert Path(download.value.path()).read_text() == fakejobs.OUTPUT


def test_a_job_is_started_its_curve_grows_and_what_is_off_is_said(jobs: Page, fake: Fake):
    form = choose(jobs, "Start fine-tuning", "Conversations to learn", "poems.jsonl", '{"messages": []}\n')
    form.get_by_label("Epochs").fill("2")
    form.get_by_label("Suffix").fill("alice")
    fake.jobs.refusal = "line 1: 'messages' is empty"
    form.get_by_role("button", name="Start fine-tuning").click()
    expect(form.get_by_text("line 1: 'messages' is empty.")).to_be_visible()
    fake.jobs.refusal = ""
    form.get_by_role("button", name="Start fine-tuning").click()
    tunings = jobs.get_by_role("region", name="Fine-tuning jobs")
    expect(tunings).to_contain_text("poems.jsonl waiting for its turn")
    expect(tunings).to_contain_text("The curve begins with the first step.")
    assert fake.jobs.started[0]["model"] == "storyteller" and fake.jobs.started[0]["suffix"] == "alice"
    fake.jobs.events = {"ftjob-queued": fakejobs.metrics(10, 40)}
    fake.jobs.tunings[0] |= {"status": "running"}
    look_again(jobs)
    expect(tunings.get_by_role("img", name="Loss up to step 10 of 40")).to_be_visible()
    fake.jobs.batches = [
        fakejobs.batch("failed", errors={"data": [{"message": "no JSON", "line": 3}]}),
        fakejobs.batch("completed", output_file_id="f"),
    ]
    look_again(jobs)
    expect(jobs.get_by_text("Line 3: no JSON")).to_be_visible()
    assert violations(jobs) == []
    assert jobs.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    fake.jobs.has_tuning = False
    look_again(jobs)
    expect(tunings).to_contain_text(TUNING_OFF)
    expect(form).to_be_hidden()
