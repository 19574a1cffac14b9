"""Locust makes its whole process cooperative, so it runs in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def push(url, folder, seconds):
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest/locustfile.py"), "--headless", "--only-summary", "--host", url]
    command += ["--users", "4", "--spawn-rate", "4", "--run-time", f"{seconds}s", "--stop-timeout", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def lines_of(folder):
    (path,) = folder.glob("runs/load-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_users_chat_and_score(fake, tmp_path):
    fake.chats[:] = ["busy"]
    done = push(fake.url, tmp_path, seconds=4)
    assert done.returncode == 0, done.stderr
    manifest, *lines = lines_of(tmp_path)
    assert manifest["tool"] == "load" and manifest["users"] == 4 and manifest["model"]["id"] == "fake"
    assert {line["kind"] for line in lines} == {"chat", "score"}
    assert {line["outcome"] for line in lines} == {"ok", "shed"}
    assert all(line["ttft_ms"] >= 5 and line["tpot_ms"] > 0 for line in lines if line["kind"] == "chat" and line["outcome"] == "ok")
    assert "TTFT" in done.stdout + done.stderr and "chat (shed)" in done.stdout + done.stderr


def test_a_truncated_stream_is_a_failure(fake, tmp_path):
    fake.chats[:] = ["truncated", "broken"]
    done = push(fake.url, tmp_path, seconds=2)
    assert done.returncode == 1
    reasons = [line["reason"] for line in lines_of(tmp_path)[1:] if line["outcome"] == "failed"]
    assert len(reasons) == 2 and all(reason.startswith("truncated") for reason in reasons)


def test_no_server(free_port, tmp_path):
    done = push(f"http://127.0.0.1:{free_port}", tmp_path, seconds=100)
    assert done.returncode == 2, "at once, not after the run time"
    assert "make run" in done.stderr and "Traceback" not in done.stderr
