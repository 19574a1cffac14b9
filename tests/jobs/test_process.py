"""`python -m jobs` as a process, woken by Redis with a password; and how such a process ends."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis as redis_client

from jobs.__main__ import beside

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def broker(tmp_path):
    """The URL of a Redis server that keeps nothing on the disk."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server is installed (Debian's package of that name)")
    port, password = free_port(), secrets.token_hex(8)
    options = ["--bind", "127.0.0.1", "--requirepass", password, "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    process = subprocess.Popen(["redis-server", "--port", str(port), *options], stdout=subprocess.DEVNULL)
    client = redis_client.Redis(port=port, password=password)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis_client.ConnectionError:
            time.sleep(0.02)
    yield f"redis://:{password}@127.0.0.1:{port}/0"
    process.kill()
    process.wait()


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, seconds=20):
    """Its exit code and what it logged."""
    try:
        said = process.communicate(timeout=seconds)[1]
    finally:
        process.kill()
    return process.returncode, said


def test_a_worker_is_woken_by_redis_and_stops_when_it_is_told(hosted, broker):
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a secret", "max_tokens": 1}}
        for n in range(20)
    ]
    made = hosted.start(*lines)
    folder = ("--jobs.folder", str(hosted.folder), "--jobs.server", hosted.url)
    process = started(*folder, LITMUS_JOBS__BROKER=broker, LITMUS_SERVER__LOG_LEVEL="debug")
    try:
        for _ in range(400):
            if hosted.client().batches.retrieve(made.id).status == "completed":
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    finally:
        code, said = ended(process)
    output, errors = hosted.output(made)
    assert ([line["custom_id"] for line in output], errors) == ([f"r{n}" for n in range(20)], [])
    assert code == 0 and "the worker has stopped" in said and "privileges" not in said
    password = broker.partition("@")[0].rpartition(":")[2]
    assert not any(text in said for text in ("a secret", password, (hosted.folder / "secret").read_text()))


def test_a_worker_ends_with_the_process_that_it_stands_beside(tmp_path):
    code, said = ended(started("--beside", "1", "--jobs.folder", str(tmp_path)))  # not its parent: as if that had been killed
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
