"""Requests and answers are kept only where a folder is named, for so many days, readable by the server's own user alone."""

import errno
import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from app.errors import SetupError
from app.settings import RetentionSettings
from serve.middleware import install
from serve.observe.retention import Archive, Retention

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=NOON)


@pytest.fixture
def archive(tmp_path: Path, clock: SimpleNamespace) -> Archive:
    return Archive(RetentionSettings(folder=str(tmp_path / "kept"), days=2), lambda: clock.now)


@pytest.fixture
def client(archive: Archive) -> TestClient:
    app = FastAPI()
    app.add_middleware(Retention, archive=archive)
    install(app, 10_000)

    @app.post("/v1/score")
    async def score(request: Request) -> JSONResponse:
        return JSONResponse({"echo": (await request.json())["text"]}, 201)

    @app.post("/v1/completions")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter(["data: one\n\n", "data: two\n\n"]), media_type="text/event-stream")

    @app.post("/tokenize")
    async def tokenize() -> dict[str, int]:
        return {"count": 1}

    return TestClient(app)


def lines_of(archive: Archive) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(archive.folder.iterdir()) for line in path.read_text().splitlines()]


def test_a_request_and_its_answer_are_one_line(client: TestClient, archive: Archive) -> None:
    client.post("/v1/score", json={"text": "naïve 猫"})
    client.post("/v1/completions", json={"prompt": "a"})
    score, stream = lines_of(archive)
    assert score == {
        "time": "2026-11-28T12:00:00.000+00:00",
        "request_id": None,
        "client": None,
        "path": "/v1/score",
        "status": 201,
        "request": score["request"],
        "answer": '{"echo":"naïve 猫"}',
    }
    assert json.loads(score["request"]) == {"text": "naïve 猫"}
    assert stream["answer"] == "data: one\n\ndata: two\n\n"


def test_a_compressed_body_is_kept_as_text_and_other_routes_are_not_kept(client: TestClient, archive: Archive) -> None:
    import gzip

    client.post("/v1/score", content=gzip.compress(b'{"text": "plain"}'), headers={"Content-Encoding": "gzip"})
    client.post("/tokenize", json={"prompt": "not kept"})
    (line,) = lines_of(archive)
    assert line["request"] == '{"text": "plain"}'


def test_files_are_for_their_owner_and_one_a_day(client: TestClient, archive: Archive, clock: SimpleNamespace) -> None:
    client.post("/v1/score", json={"text": "a"})
    clock.now += timedelta(days=1)
    client.post("/v1/score", json={"text": "b"})
    assert sorted(path.name for path in archive.folder.iterdir()) == ["2026-11-28.jsonl", "2026-11-29.jsonl"]
    assert archive.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in archive.folder.iterdir()} == {0o600}


def test_files_are_deleted_when_their_last_line_is_too_old(client: TestClient, archive: Archive, clock: SimpleNamespace) -> None:
    client.post("/v1/score", json={"text": "a"})
    for name in ("notes.txt", "9999-99-99.jsonl"):
        (archive.folder / name).write_text("other")
    clock.now += timedelta(days=2)
    archive.sweep()
    assert (archive.folder / "2026-11-28.jsonl").exists()
    clock.now += timedelta(days=1)
    archive.sweep()
    assert sorted(path.name for path in archive.folder.iterdir()) == ["9999-99-99.jsonl", "notes.txt"]


def test_a_full_disk_costs_the_line_and_not_the_request(
    client: TestClient, archive: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr("serve.observe.retention.os.open", full)
        answers = [client.post("/v1/score", json={"text": "secret"}).status_code for _ in range(3)]
    assert answers == [201] * 3
    assert len(caplog.records) == 1 and "No space left" in caplog.text and "secret" not in caplog.text
    client.post("/v1/score", json={"text": "b"})
    assert len(lines_of(archive)) == 1


def test_a_folder_that_cannot_be_used_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"retention\.folder: .*file"):
        Archive(RetentionSettings(folder=str(tmp_path / "file")))
