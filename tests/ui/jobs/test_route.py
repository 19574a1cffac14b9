"""The page's routes for jobs, behind its guard, against the fake server."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.errors import LitmusError
from app.neighbours import Neighbours
from tests.ui import fakejobs
from tests.ui.fakelitmus import BASE, CARD, KEY, Fake
from tests.ui.test_routes import URL, nothing_else
from ui.client import Client
from ui.guard import Guard
from ui.jobs.client import BATCHES_OFF, TUNING_OFF
from ui.jobs.route import SHARED_KEY
from ui.routes import own_routes
from ui.visitors import Visitors

START = {"file": "file-1", "endpoint": "/v1/score", "name": "a.csv"}


def page_of(visitors: Visitors) -> TestClient:
    app = FastAPI()
    app.mount("/ui", Guard(nothing_else, visitors, Neighbours(), own_routes(visitors)))
    return TestClient(app, URL)


@pytest.fixture
def page(fake: Fake) -> Iterator[TestClient]:
    with page_of(Visitors(fake.url, login=None)) as client:
        yield client


def upload(page: TestClient, data: bytes = b"{}\n", name: str = "a.jsonl", purpose: str = "batch") -> Any:
    return page.post("/ui/jobs/files", content=data, headers={"X-File-Name": name, "X-Purpose": purpose}).json()


def test_what_there_is_comes_as_html_and_curves_of_those_that_are_open(page: TestClient, fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.jobs.client.PAGE", 100)
    fake.jobs.batches, fake.jobs.tunings = [fakejobs.batch()], [fakejobs.tuning("running"), fakejobs.tuning("succeeded")]
    fake.jobs.events = {"ftjob-running": fakejobs.metrics(250, 300)}
    tuned, elsewhere = {**BASE, "id": "ft:base:a", "parent": "base"}, {**BASE, "id": "far", "upstreams": [{"url": "http://a"}]}
    fake.cards = [BASE, tuned, elsewhere, CARD]
    answer = page.get("/ui/jobs?open=ftjob-running").json()
    assert [item["live"] for item in answer["batches"]["items"] + answer["tunings"]["items"]] == [True, True, False]
    running, done = (item["html"] for item in answer["tunings"]["items"])
    assert "Loss up to step 250 of 300: training from 3.500" in running, "all pages of events were read"
    assert "<figure" not in done and answer["models"] == ["storyteller", "base"]


def test_a_job_that_has_ended_offers_its_curve_only_where_it_was_trained(page: TestClient, fake: Fake):
    fake.jobs.tunings = [fakejobs.tuning("cancelled"), fakejobs.tuning("failed", id="ftjob-no"), fakejobs.tuning("succeeded")]
    message = {"id": "event-0", "type": "message", "message": "The job ended"}
    fake.jobs.events = {"ftjob-cancelled": [message, *fakejobs.metrics(30, 90)], "ftjob-no": [message]}
    html = [item["html"] for item in page.get("/ui/jobs").json()["tunings"]["items"]]
    assert ["Show the curve" in each for each in html] == [True, False, True]


def test_a_job_whose_file_is_wrong_offers_its_wrong_lines_only_where_there_are_some(page: TestClient, fake: Fake):
    error = {"message": "the training file is wrong", "code": "invalid_training_file"}
    fake.jobs.tunings = [fakejobs.tuning("failed", id=id, error=error) for id in ("ftjob-lines", "ftjob-none")]
    end, line = ({"id": f"event-{n}", "level": "error", "message": said} for n, said in ((2, "The job failed"), (1, "line 1: no JSON")))
    fake.jobs.events = {"ftjob-lines": [end, line], "ftjob-none": [end]}
    html = [item["html"] for item in page.get("/ui/jobs").json()["tunings"]["items"]]
    assert ["Show the wrong lines" in each for each in html] == [True, False]


def test_what_is_off_is_said_in_a_sentence_beside_what_is_not(page: TestClient, fake: Fake):
    fake.jobs.has_tuning = False
    fake.jobs.batches = [fakejobs.batch()]
    answer = page.get("/ui/jobs").json()
    assert answer["tunings"] == {"items": [], "problem": TUNING_OFF, "off": True} and len(answer["batches"]["items"]) == 1
    fake.jobs.has_batches = False
    assert page.get("/ui/jobs").json()["batches"]["problem"] == BATCHES_OFF


def test_a_file_goes_through_whole_and_a_batch_of_it_starts(page: TestClient, fake: Fake):
    data = b"x" * 3_000_000 + b"\r\n--\xff"
    file = upload(page, data, "na%22ive%0d%0a.jsonl")["id"]
    assert fake.jobs.files[file] == data and fake.jobs.names == ["na%22ive.jsonl"], "a form writes a quotation mark so"
    started = page.post("/ui/jobs/batches", json={**START, "file": file}).json()
    assert started == {"id": "batch_validating"}
    expected = {"input_file_id": file, "endpoint": "/v1/score", "completion_window": "24h", "metadata": {"name": "a.csv"}}
    assert fake.jobs.started == [expected]


def test_a_tuning_starts_with_what_was_filled_in_only(page: TestClient, fake: Fake):
    page.post("/ui/jobs/tunings", json={"file": "file-1", "model": "storyteller", "name": "a"})
    page.post("/ui/jobs/tunings", json={"file": "f", "valid": "v", "model": "m", "epochs": 2, "suffix": "alice", "name": "a"})
    bare, whole = fake.jobs.started
    assert "suffix" not in bare and "validation_file" not in bare and bare["method"]["supervised"]["hyperparameters"] == {}
    assert (whole["suffix"], whole["validation_file"], whole["training_file"]) == ("alice", "v", "f")
    assert whole["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2}


def test_a_refusal_is_an_answer_and_the_files_are_deleted(page: TestClient, fake: Fake):
    fake.jobs.refusal = "line 3: 'role' is missing"
    assert page.post("/ui/jobs/batches", json=START).json() == {"problem": "line 3: 'role' is missing."}
    tuning = {"file": "file-2", "valid": "file-3", "model": "m", "name": "a"}
    assert page.post("/ui/jobs/tunings", json=tuning).json()["problem"] == "line 3: 'role' is missing."
    assert sorted(fake.jobs.deleted) == ["file-1", "file-2", "file-3"]  # those of a tuning at once, in either order


def test_a_server_that_is_full_says_when_to_try_again(page: TestClient, fake: Fake, monkeypatch: pytest.MonkeyPatch):
    full = httpx.Response(429, headers={"Retry-After": "7"}, json=LitmusError("batches are full").envelope())
    monkeypatch.setattr(Client, "call", AsyncMock(return_value=full))
    assert page.post("/ui/jobs/batches", json=START).json() == {"problem": "batches are full. Try again in 7 s."}


def test_a_newer_server_may_name_other_statuses(page: TestClient, fake: Fake):
    fake.jobs.batches, fake.jobs.tunings = [fakejobs.batch("resting", of_a_newer_server=1)], [fakejobs.tuning("resting")]
    fake.cards = [{**BASE, "capabilities": ["flight"]}]
    answer = page.get("/ui/jobs").json()
    assert all("resting" in answer[kind]["items"][0]["html"] for kind in ("batches", "tunings")) and answer["models"] == ["base"]


def test_jobs_are_changed_and_a_file_comes_back(page: TestClient, fake: Fake):
    fake.jobs.batches, fake.jobs.tunings = [fakejobs.batch()], [fakejobs.tuning()]
    changes = {"batch": {"cancel": "cancelled"}, "tuning": {"pause": "paused", "resume": "queued", "cancel": "cancelled"}}
    for kind, (job,) in (("batch", fake.jobs.batches), ("tuning", fake.jobs.tunings)):
        for change, status in changes[kind].items():
            assert page.post("/ui/jobs/change", json={"kind": kind, "id": job["id"], "change": change}).json() == {"id": job["id"]}
            assert job["status"] == status
    fake.jobs.files["file-0"] = b"\x00answers"
    answer = page.get("/ui/jobs/content?file=file-0")
    assert answer.content == b"\x00answers" and answer.headers["content-disposition"] == 'attachment; filename="file-0.jsonl"'
    assert page.get("/ui/jobs/content?file=file-7").json() == {"detail": "there is no such file."}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("batches", {**START, "endpoint": "/v1/else"}),
        ("batches", {**START, "file": "../../etc"}),
        ("tunings", {"file": "file-1"}),
        ("change", {"kind": "batch", "id": "x", "change": "pause"}),
        ("change", {"kind": "batch", "id": "a/b", "change": "cancel"}),
    ],
)
def test_a_call_that_is_none_reaches_no_server(page: TestClient, fake: Fake, path: str, body: dict[str, Any]):
    asked = len(fake.sent_keys)
    assert page.post(f"/ui/jobs/{path}", json=body).status_code == 400
    assert page.get("/ui/jobs/content?file=../x").status_code == 400
    assert len(fake.sent_keys) <= asked + 1, "only whether it wants keys is asked"


def test_the_visitors_key_is_used_and_a_key_for_all_shows_nobodys_jobs(page: TestClient, fake: Fake):
    fake.keys = [KEY]
    assert page.get("/ui/jobs").status_code == 401
    page.post("/ui/login", data={"key": KEY}, follow_redirects=False)
    fake.sent_keys.clear()
    assert page.get("/ui/jobs").status_code == 200 and set(fake.sent_keys) == {KEY}
    with page_of(Visitors(fake.url, key=KEY)) as shared:
        fake.sent_keys.clear()
        assert shared.get("/ui/jobs").json() == upload(shared) == {"problem": SHARED_KEY}
        assert fake.sent_keys == []


def test_the_guard_stands_before_the_jobs(page: TestClient):
    for method, path in (("GET", "jobs"), ("GET", "jobs/content"), ("POST", "jobs/files"), ("POST", "jobs/change")):
        assert page.request(method, f"/ui/{path}", headers={"Host": "evil.example"}).status_code == 421
    assert page.post("/ui/jobs", headers={}).status_code == page.get("/ui/jobs/files").status_code == 404
    assert page.post("/ui/jobs/change", headers={"Origin": "http://evil.example"}).status_code == 403
