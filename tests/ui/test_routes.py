"""The page's own routes behind its guard: documents, scores, flags."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.neighbours import Neighbours
from tests.ui.fakelitmus import KEY, Fake
from ui.flags.file import FlagFile
from ui.flags.flag import hash_of
from ui.guard import Guard
from ui.routes import own_routes
from ui.visitors import Visitors

URL = "http://127.0.0.1:8000"
LIMIT = 3000


async def nothing_else(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("Gradio was called")


@pytest.fixture
def page(fake: Fake, tmp_path: Path) -> Iterator[TestClient]:
    visitors = Visitors(fake.url, login=None)
    app = FastAPI()
    app.mount("/ui", Guard(nothing_else, visitors, Neighbours(), own_routes(visitors, FlagFile(tmp_path / "flags.jsonl"), LIMIT)))
    with TestClient(app, URL) as client:
        yield client


def upload(page: TestClient, name: str, data: bytes, **headers: str) -> Any:
    return page.post("/ui/documents", content=data, headers={"X-File-Name": quote(name), **headers})


def test_a_file_comes_back_as_its_texts(page: TestClient):
    answer = upload(page, "../../naïve 猫.csv", b"text\none\n\ntwo\n").json()
    assert [part["name"] for part in answer["texts"]] == ["naïve 猫.csv, line 2", "naïve 猫.csv, line 4"]
    assert [part["text"] for part in answer["texts"]] == ["one", "two"]


def test_a_file_that_cannot_be_read_or_is_too_large_says_so(page: TestClient):
    assert "Save it as .docx" in upload(page, "a.doc", b"x").json()["problem"]
    answer = upload(page, "a.txt", b"x" * (LIMIT + 1))
    assert (answer.status_code, "3,000 bytes" in answer.json()["detail"]) == (413, True)
    assert upload(page, "", b"x").json()["texts"] == []


def test_texts_come_back_as_rows_with_a_hash_and_never_the_text(page: TestClient, fake: Fake):
    fake.score_changes = {"threshold": 0.9}
    answer = page.post("/ui/scores", json={"texts": ["one secret.", "two"], "method": "log_rank", "model": "base"})
    rows = answer.json()["rows"]
    assert [row["hash"] for row in rows] == [hashlib.sha256(text).hexdigest() for text in (b"one secret.", b"two")]
    assert (rows[0]["verdict"], rows[0]["threshold"], rows[0]["model"]) == ("Reads like machine text", 0.9, "storyteller")
    assert "secret" not in answer.text and fake.requests[-1]["methods"] == ["log_rank"]


def test_a_text_that_fails_and_a_server_that_refuses_are_sentences(page: TestClient, fake: Fake):
    fake.score_failure = {"index": 0, "object": "error", "message": "the worker died", "code": "engine"}
    assert [row["error"] for row in page.post("/ui/scores", json={"texts": ["a", "b"]}).json()["rows"]] == ["the worker died"] * 2
    fake.score_failure, fake.refusal = None, (429, "The queue is full.")
    answer = page.post("/ui/scores", json={"texts": ["a"]})
    assert (answer.status_code, answer.json()["detail"]) == (502, "The queue is full. Try again in 7 s.")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"texts": []}', json.dumps({"texts": ["x"] * 17}).encode(), b'{"texts": ["x"], "key": 1}'])
def test_a_call_has_texts(page: TestClient, body: bytes):
    assert page.post("/ui/scores", content=body).status_code == 400


def test_a_flag_is_kept_and_a_wrong_one_is_named(page: TestClient, tmp_path: Path):
    flag = {"about": "score", "label": "human", "hash": hash_of("a text"), "model": "m"}
    assert page.post("/ui/flags", json=flag).json() == {"kept": True, "text": False}
    assert page.post("/ui/flags", json={**flag, "text": "a text"}).json() == {"kept": True, "text": True}
    assert len((tmp_path / "flags.jsonl").read_text().splitlines()) == 2
    for changes, words in (({"text": "other"}, "The text has changed since"), ({"label": "robot"}, "label: "), ({"secret": 1}, "secret: ")):
        answer = page.post("/ui/flags", json={**flag, **changes})
        assert answer.status_code == 400 and answer.json()["detail"].startswith(words)


def test_a_full_disk_is_a_sentence(page: TestClient, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ui.flags.file.os.write", full)
    answer = page.post("/ui/flags", json={"about": "chat", "label": "good", "hash": hash_of("a"), "model": "m"})
    assert (answer.status_code, "No space left on device" in answer.json()["detail"]) == (507, True)


def test_without_the_setting_nothing_is_kept_and_the_answer_says_why(fake: Fake):
    visitors = Visitors(fake.url)
    app = FastAPI()
    app.mount("/ui", Guard(nothing_else, visitors, None, own_routes(visitors)))
    with TestClient(app, URL) as client:
        answer = client.post("/ui/flags", json={})
    assert answer.status_code == 404 and "ui.flags" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["documents", "scores", "flags"])
def test_the_guard_stands_before_each_route(page: TestClient, fake: Fake, route: str):
    assert page.get(f"/ui/{route}").status_code == 404
    assert page.post(f"/ui/{route}", headers={"Host": "evil.example"}).status_code == 421
    assert page.post(f"/ui/{route}", headers={"Origin": "http://evil.example"}).status_code == 403
    fake.keys = [KEY]
    answer = page.post(f"/ui/{route}", content=b"{}", headers={"X-File-Name": "a.txt"})
    assert (answer.status_code, answer.json()["detail"]) == (401, "Your login has ended. Reload the page to log in again.")
    assert page.post("/ui/login", data={"key": KEY}, follow_redirects=False).status_code == 303
    assert page.post(f"/ui/{route}", content=b"{}", headers={"X-File-Name": "a.txt"}).status_code != 401
    if route == "scores":
        page.post("/ui/scores", json={"texts": ["x"]})
        assert fake.sent_keys[-1] == KEY
