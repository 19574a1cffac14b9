"""`python -m jobs` as a process, woken by Redis with a password; and how such a process ends."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis as redis_client
from celery.app.trace import build_tracer
from ports import free_port
from serving import wait_for

from app.log import JSONFormatter
from app.settings import JobSettings
from jobs.__main__ import beside, end_process, quiet_libraries
from jobs.broker import QUEUE, Waker, create_celery

ROOT = Path(__file__).parents[2]
SECRET = "planted"


@pytest.fixture
def broker(tmp_path):
    """The URL of a Redis server that keeps nothing on the disk."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server is installed (Debian's package of that name)")
    port, password = free_port(), secrets.token_hex(8)
    options = ["--bind", "127.0.0.1", "--requirepass", password, "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    process = subprocess.Popen(["redis-server", "--port", str(port), *options], stdout=subprocess.DEVNULL)
    client = redis_client.Redis(port=port, password=password)

    def answers():
        try:
            return client.ping()
        except redis_client.ConnectionError:
            return False

    wait_for(answers)
    yield f"redis://:{password}@127.0.0.1:{port}/0"
    process.kill()
    process.wait()


def started(log, *arguments, **environment):
    """`log` is a file: a pipe that nobody reads yet would stop a process that says much."""
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, env={**os.environ, **environment}, stderr=out)


def ended(process, log):
    """Its exit code and what it logged."""
    try:
        process.wait(60)
    finally:
        process.kill()
    return process.returncode, log.read_text()


def test_a_worker_is_woken_by_redis_and_stops_when_it_is_told(hosted, broker, tmp_path):
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a secret", "max_tokens": 1}}
        for n in range(20)
    ]
    made = hosted.start(*lines)
    folder = ("--jobs.folder", str(hosted.folder), "--jobs.server", hosted.url)
    log = tmp_path / "log"
    process = started(log, *folder, LITMUS_JOBS__BROKER=broker, LITMUS_SERVER__LOG_LEVEL="debug")
    try:
        wait_for(lambda: hosted.client().batches.retrieve(made.id).status == "completed", 120)
    finally:
        process.send_signal(signal.SIGTERM)
        code, said = ended(process, log)
    output, errors = hosted.output(made)
    assert ([line["custom_id"] for line in output], errors) == ([f"r{n}" for n in range(20)], [])
    assert code == 0 and "the worker has stopped" in said and "privileges" not in said
    password = broker.partition("@")[0].rpartition(":")[2]
    assert not any(text in said for text in ("a secret", password, (hosted.folder / "secret").read_text()))


def test_a_redis_without_memory_is_asked_again(broker, tmp_path, caplog):
    wake = Waker(create_celery(JobSettings(folder=str(tmp_path), broker=broker)))
    client = redis_client.Redis.from_url(broker)
    client.config_set("maxmemory", 1)
    wake(1)
    wake(1)
    assert [record.message.startswith("the broker takes no messages") for record in caplog.records] == [True]
    client.config_set("maxmemory", 0)
    wake(3)
    assert client.llen(QUEUE) == 3


def test_a_thread_that_an_error_ends_is_not_missed(monkeypatch, caplog):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(threading, "excepthook", end_process)
    thread = threading.Thread(target=lambda: {}["a secret"])
    thread.start()
    thread.join()
    assert codes == [1] and "ended by KeyError" in caplog.text
    (record,) = caplog.records
    line = json.loads(JSONFormatter().format(record))["exception"]
    assert '{}["' in line and "builtins.KeyError (its message is not logged)" in line


def test_a_worker_ends_with_the_process_that_it_stands_beside(tmp_path):
    log = tmp_path / "log"
    code, said = ended(
        started(log, "--beside", "1", "--jobs.folder", str(tmp_path / "jobs")), log
    )  # not its parent: as if that had been killed
    assert code == 0, said


def test_the_process_beside_is_no_setting():
    assert beside(["--beside", "7", "--port", "9000"]) == (7, ["--port", "9000"])
    assert beside(["--port", "9000"]) == (None, ["--port", "9000"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs.broker", "redis://:pw@cache.example:6379"], "jobs.database"),
        (["--jobs.server", "http://10.0.0.7:8000"], "jobs.database"),
        (["--jobs.folder", "/proc/nowhere"], "jobs.folder"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(arguments, said):
    from app.errors import SetupError
    from app.settings import read
    from jobs.__main__ import work

    with pytest.raises(SetupError, match=said):
        work(read(arguments, "jobs"), None)


def test_celery_quotes_no_exception(tmp_path, caplog):
    app = create_celery(JobSettings(folder=str(tmp_path)))
    quiet_libraries()

    @app.task
    def fails():
        raise ValueError(SECRET)

    build_tracer(fails.name, fails, app=app)("id", (), {}, {"id": "id", "is_eager": True})
    (record,) = [each for each in caplog.records if each.name == "celery.app.trace"]
    said = JSONFormatter().format(record)
    assert "ValueError (its message is not logged)" in said and SECRET not in said
