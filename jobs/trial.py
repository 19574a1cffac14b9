"""`python -m jobs.trial`: kills workers and Redis while batches run, and compares what comes out with what went in, line by line.

Starts a server with the bundled model, a Redis that keeps nothing on the disk, and workers, all on this machine and in a folder that is
removed afterwards. Wants redis-server (Debian's package of that name).
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from app.ledger.batches import LINES
from app.ledger.database import Database
from app.ledger.tables import NEVER, tasks
from app.schemas.batches import ENDED

LOOK_S = 0.1
START_S = 120.0
ENDPOINT = "/v1/completions"


class Processes:
    """Everything that the trial started, each in a session of its own, so that a kill takes the whole tree."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        process = self._running.pop(name)
        os.killpg(process.pid, number)
        process.wait(60)

    def stop(self) -> None:
        for name in list(self._running):
            self.kill(name, signal.SIGTERM if name == "server" else signal.SIGKILL)


class Stalls:
    """How long a task that somebody took stood still, by what the table says."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[tuple[str, int], tuple[int, float]] = {}  # by task: lines written, and since when
        self.longest_s = 0.0
        self.taken_again = 0

    def look(self) -> None:
        columns = (tasks.c.batch, tasks.c.n, tasks.c.completed, tasks.c.failed, tasks.c.due, tasks.c.fence)
        with self._database.transaction() as connection:
            rows = connection.execute(select(*columns).where(tasks.c.kind == LINES, tasks.c.fence > 0)).all()
        now = time.monotonic()
        self.taken_again = max(self.taken_again, sum(row.fence - 1 for row in rows))
        for row in rows:
            written, since = self._seen.get((row.batch, row.n), (-1, now))
            if row.completed + row.failed != written or row.due >= NEVER:
                written, since = row.completed + row.failed, now
            self._seen[row.batch, row.n] = (written, since)
            self.longest_s = max(self.longest_s, now - since)


class Trial:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.processes = Processes(folder)
        self.url = f"http://127.0.0.1:{options.port}"
        self._password = secrets.token_hex(16)
        self._http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._random = random.Random(options.seed)
        self.kills = self.redis_kills = 0

    def run(self) -> dict[str, Any]:
        try:
            self._start()
            began = time.monotonic()
            batches = [self._begin(number) for number in range(self.options.batches)]
            stalls = Stalls(Database(f"sqlite:///{self.folder / 'jobs' / 'jobs.db'}"))
            self._disturb(batches, stalls)
            return self._report(batches, stalls, time.monotonic() - began)
        finally:
            self.processes.stop()

    def _start(self) -> None:
        self._start_redis()
        self.processes.start("server", self._command("serve", "--ui.enabled", "false", "--server.access_log", "false"))
        end = time.monotonic() + START_S
        while not self._is_ready():
            if time.monotonic() > end:
                raise SystemExit(f"the server did not start; see {self.folder / 'server.log'}")
            time.sleep(0.2)
        for number in range(self.options.workers):
            self._start_worker(number)

    def _start_redis(self) -> None:
        secured = ("--bind", "127.0.0.1", "--port", str(self.options.port + 1), "--requirepass", self._password)
        self.processes.start("redis", ["redis-server", *secured, "--save", "", "--appendonly", "no", "--dir", str(self.folder)])

    def _start_worker(self, number: int) -> None:
        self.processes.start(f"worker-{number}", self._command("jobs"))

    def _command(self, module: str, *more: str) -> list[str]:
        settings = {
            "model.path": "models/storyteller",
            "server.port": self.options.port,
            "jobs.folder": self.folder / "jobs",
            "jobs.broker": f"redis://:{self._password}@127.0.0.1:{self.options.port + 1}/0",
            "jobs.worker": "false",
            "jobs.lease_s": self.options.lease_s,
            "jobs.lines_per_task": self.options.lines_per_task,
        }
        return [sys.executable, "-m", module, *(f"--{name}={value}" for name, value in settings.items()), *more]

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _ids(self, number: int) -> list[str]:
        share = self.options.lines // self.options.batches + (number < self.options.lines % self.options.batches)
        return [f"batch-{number}/line-{n}" for n in range(share)]

    def _begin(self, number: int) -> str:
        body = {"max_tokens": self.options.max_tokens, "ignore_eos": True}
        lines = [
            {"custom_id": id, "method": "POST", "url": ENDPOINT, "body": {"prompt": f"Once upon a time {id}", **body}}
            for id in self._ids(number)
        ]
        data = "\n".join(map(json.dumps, lines)).encode()
        file = self._http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", data)}).raise_for_status().json()
        batch = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        id: str = self._http.post("/v1/batches", json=batch).raise_for_status().json()["id"]
        return id

    def _shown(self, batch: str) -> dict[str, Any]:
        shown: dict[str, Any] = self._http.get(f"/v1/batches/{batch}").raise_for_status().json()
        return shown

    def _disturb(self, batches: Sequence[str], stalls: Stalls) -> None:
        """Until all batches have ended. Kills are spread over the first nine tenths of the lines."""
        ended: set[str] = set()
        while len(ended) < len(batches):
            shown = [self._shown(batch) for batch in batches]
            ended = {batch["id"] for batch in shown if batch["status"] in ENDED}
            share = sum(batch["request_counts"]["completed"] for batch in shown) / self.options.lines / 0.9
            if self.kills < min(share, 1) * self.options.kills:
                self._kill_worker()
            if self.redis_kills < min(share, 1) * (self.options.redis_kills + 1) - 1:
                self.redis_kills += 1
                self.processes.kill("redis")
                self._start_redis()
            stalls.look()
            time.sleep(LOOK_S * self._random.uniform(0.5, 1.5))

    def _kill_worker(self) -> None:
        number = self._random.randrange(self.options.workers)
        self.processes.kill(f"worker-{number}")
        self._start_worker(number)
        self.kills += 1

    def _report(self, batches: Sequence[str], stalls: Stalls, seconds: float) -> dict[str, Any]:
        expected = Counter(id for number in range(self.options.batches) for id in self._ids(number))
        answers, errors = Counter[str](), Counter[str]()
        for batch in batches:
            shown = self._shown(batch)
            for counter, file in ((answers, shown["output_file_id"]), (errors, shown["error_file_id"])):
                text = self._http.get(f"/v1/files/{file}/content").text if file else ""
                counter.update(json.loads(line)["custom_id"] for line in text.split("\n") if line)
        return {
            "lines_in": expected.total(),
            "answers": answers.total(),
            "errors": errors.total(),
            "missing": (expected - answers).total(),
            "twice": sum(count > 1 for count in answers.values()),
            "worker_trees_killed": self.kills,
            "redis_killed": self.redis_kills,
            "tasks_taken_again": stalls.taken_again,
            "lines_answered_again": self._answered() - expected.total(),
            "longest_stall_s": round(stalls.longest_s, 1),
            "longest_stall_leases": round(stalls.longest_s / self.options.lease_s, 2),
            "seconds": round(seconds, 1),
            "lines_per_s": round(expected.total() / seconds, 1),
        }

    def _answered(self) -> int:
        """Answers of the server, those included that nobody was there to take."""
        start = f'litmus:http_requests_total{{method="POST",route="{ENDPOINT}",status="200"}} '
        found = [line.removeprefix(start) for line in self._http.get("/metrics").text.splitlines() if line.startswith(start)]
        return int(float(found[0])) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.trial", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of a worker and its children")
    parser.add_argument("--redis-kills", type=int, default=2)
    parser.add_argument("--lease-s", type=float, default=5.0)
    parser.add_argument("--lines-per-task", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--port", type=int, default=8000, help="of the server; Redis has the one above")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="litmus-trial-") as folder:
        report = Trial(options, Path(folder)).run()
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sound = report["answers"] == options.lines and not report["missing"] and not report["twice"] and not report["errors"]
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
