"""`python -m jobs.measure`: what this machine's table, broker and worker carry. Measures one at a time; the figures of docs/scale.md.

A server that answers at once stands in for the real one, so that the worker is what is measured.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from app.ledger.batches import Batches
from app.ledger.database import Database
from app.ledger.files import Files, NewFile
from app.ledger.folder import Folder
from app.schemas.batches import BatchRequest
from app.settings import JobSettings, ServerSettings, Settings
from jobs.broker import QUEUE, create_celery
from jobs.leases import Leases, Result, Task
from jobs.policy import Part
from jobs.worker import Worker

FILE = f"file-{'0' * 32}"
ENDPOINT: Literal["/v1/score"] = "/v1/score"
LINE = json.dumps({"custom_id": "x" * 20, "method": "POST", "url": ENDPOINT, "body": {"text": "word " * 300}})
ANSWER = json.dumps({"id": "score-1", "data": [{"index": 0, "object": "score", "scores": {"fast_detect": 1.0}, "explanation": "x" * 600}]})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", help="postgresql://user:password@host/name; SQLite in a temporary folder when left out")
    parser.add_argument("--broker", default="filesystem")
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--lines-at-once", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="litmus-measure-") as folder:
        jobs = JobSettings(
            folder=folder, database=options.database, broker=options.broker, lines_at_once=options.lines_at_once, lines_per_task=500
        )
        report = {"database": "sqlite" if options.database is None else "postgresql", "broker": jobs.broker.partition(":")[0]}
        measured = {**measure_table(jobs, options.commits), **measure_broker(jobs, options.messages), **measure_worker(jobs, options.lines)}
    sys.stdout.write(json.dumps({**report, **measured}, indent=1) + "\n")


Rate = dict[str, float]


def rate(count: int, function: Callable[[int], object]) -> Rate:
    """How often a second, and what this process computes for each, called `count` times."""
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        function(number)
    return _rate(count, time.perf_counter() - began, time.process_time() - cpu)


def _rate(count: int, seconds: float, cpu_s: float) -> Rate:
    return {"per_s": round(count / seconds, 1), "cpu_ms": round(cpu_s / count * 1000, 3)}


def measure_table(jobs: JobSettings, count: int) -> dict[str, Rate]:
    database = Database(jobs.database_url)
    leases = Leases(database, "measure", 3600)

    def save(task: Task, group: int) -> Callable[[int], None]:
        return lambda number: leases.save(task, [Result(number * group + n, True, ANSWER) for n in range(group)])

    task = begin(database, leases, count)
    one_by_one = rate(count, save(task, 1))
    leases.fail(task, [])
    task = begin(database, leases, count * 32)
    grouped = rate(count, save(task, 32))
    beats = rate(count, lambda _: leases.beat(task))
    leases.fail(task, [])
    begin(database, leases, 500 * count, tasks=count)
    takes = rate(count - 1, lambda _: leases.take())
    return {"commits_of_1_line": one_by_one, "commits_of_32_lines": grouped, "beats": beats, "takes": takes}


def begin(database: Database, leases: Leases, lines: int, tasks: int = 1) -> Task:
    """A batch in progress, and its first task, taken."""
    files, batches = Files(database), Batches(database, 10_000)
    files.add(NewFile(FILE, "", 1, "measure.jsonl", "batch", 3600, made_for="batch_0/output"))
    batches.create("", BatchRequest(input_file_id=FILE, endpoint=ENDPOINT, completion_window="24h"), None)
    check = leases.take()
    assert check is not None
    share = lines // tasks
    leases.divide(check, [Part(n * share, share, 0, 1) for n in range(tasks)], None)
    task = leases.take()
    assert task is not None
    return task


def measure_broker(jobs: JobSettings, count: int) -> dict[str, Rate]:
    """Messages sent, and read one after the other, by one process."""
    app = create_celery(jobs)
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue(f"{QUEUE}.measure", no_ack=True)
        sent = rate(count, lambda _: queue.put({"task": "wake"}))
        read = rate(count, lambda _: queue.get(timeout=5))
        queue.close()
    return {"messages_sent": sent, "messages_read": read}


def measure_worker(jobs: JobSettings, lines: int) -> dict[str, Rate]:
    """From a file that was uploaded to the files that are finished."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stub = multiprocessing.get_context("spawn").Process(target=serve, args=(port, lines), daemon=True)
    stub.start()
    settings = Settings(jobs=jobs, server=ServerSettings(port=port))
    database = Database(jobs.database_url)
    leases = Leases(database, "measure", 30)
    while leases.take() is not None:
        pass  # what the other measurements left
    Files(database).add(NewFile(FILE, "", 1, "measure.jsonl", "batch", 3600, made_for="batch_0/output"))
    batch = Batches(database, 10_000).create("", BatchRequest(input_file_id=FILE, endpoint=ENDPOINT, completion_window="24h"), None)
    while not listens(port):
        time.sleep(0.05)
    began, cpu = time.perf_counter(), time.process_time()
    Worker(settings, leases, Folder(jobs.folder).secret(), threading.Event()).run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    shown = Batches(database, 10_000).get("", batch.id)
    stub.kill()
    if shown.request_counts.completed != lines:
        raise SystemExit(f"{shown.request_counts.completed} of {lines} lines were answered")
    return {"lines": _rate(lines, seconds, cpu)}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve(port: int, lines: int) -> None:
    """The server that answers at once. It knows one file, whose lines have custom_ids of their own."""
    content = b"".join(LINE.replace("x" * 20, f"{n:020}").encode() + b"\n" for n in range(lines))
    asyncio.run(_serve(port, content))


async def _serve(port: int, content: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            await reader.readexactly(int(fields.get(b"content-length", b"0")))
            body = _body(head, fields, content)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(quietly, "127.0.0.1", port) as server:
        await server.serve_forever()


def _body(head: bytes, fields: dict[bytes, Any], content: bytes) -> bytes:
    if head.startswith(b"POST /v1/files"):
        return json.dumps({"id": f"file-{'1' * 32}"}).encode()
    if head.startswith(b"POST"):
        return ANSWER.encode()
    first, _, last = fields.get(b"range", b"bytes=0-").removeprefix(b"bytes=").partition(b"-")
    return content[int(first) : int(last) + 1 if last else None]


if __name__ == "__main__":
    main()
