"""Sends malformed and half-valid requests to a server of its own and counts statuses: no 500, readable errors, alive afterwards."""

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.chaos.catalogue import PROBE
from loadtest.chaos.clients import ask, get, wait_ready
from loadtest.chaos.exchange import Response, exchange, request_bytes, send_raw
from loadtest.chaos.malformed import Shot, Target, shot, targets
from loadtest.chaos.server import OwnServer, ServerFailed
from loadtest.chaos.trial import connect, log_faults
from loadtest.process import markdown_table
from loadtest.run import machine_facts

log = logging.getLogger(__name__)

SERVER_OPTIONS = ("--model.context", "256")  # so that a half-valid request with a large limit still ends soon
AT_ONCE = 16
DEADLINE_S = 60.0
PROGRESS = 1000  # requests between two lines
OF_THE_LINE = {"method", "where", "headers"}  # uvicorn itself refuses these where they break HTTP, in plain words


@dataclass(slots=True)
class Fuzzed:
    """`statuses` by kind of request; `faults` are requests that were answered as they must not be: number, kind, method, route, what."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    alive: bool = False
    seconds: float = 0.0
    aborted: str | None = None
    end: dict[str, Any] = field(default_factory=dict)

    def add(self, made: Shot, status: str, fault: str | None) -> None:
        self.statuses.setdefault(made.kind, Counter())[status] += 1
        if fault:
            route = made.path.partition("?")[0][:80]
            self.faults.append(
                {"number": made.number, "kind": made.kind, "method": made.method, "route": route, "status": status, "what": fault}
            )


def run(count: int, seed: int, server: OwnServer, out: Path) -> int:
    """Fuzz, write fuzz.json, print a table. Returns the exit code."""
    fuzzed = asyncio.run(fuzz(count, seed, server))
    tracebacks = log_faults(server.log)
    result = {
        "manifest": {"requests": count, "seed": seed, **machine_facts()},
        "seconds": round(fuzzed.seconds, 1),
        "statuses": fuzzed.statuses,
        "faults": fuzzed.faults,
        "alive": fuzzed.alive,
        "tracebacks_in_log": tracebacks,
        "aborted": fuzzed.aborted,
        "end": fuzzed.end,
    }
    (out / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n")
    sentences = missed(fuzzed, tracebacks)
    sys.stdout.write("\n".join([table(fuzzed), "", *(sentences or ["Every mark was met."])]) + "\n")
    return 1 if sentences else 0


async def fuzz(count: int, seed: int, server: OwnServer) -> Fuzzed:
    fuzzed = Fuzzed()
    async with connect() as http:
        server.start()
        try:
            await wait_ready(http, server)
            found = targets(await get(http, f"{server.url}/openapi.json"))
            begin_s = time.monotonic()
            numbers = iter(range(count))
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(_shoot(server.port, numbers, seed, found, fuzzed))
            fuzzed.seconds = time.monotonic() - begin_s
            fuzzed.alive = (await ask(http, server.url, PROBE, DEADLINE_S)).complete
        except ServerFailed as error:
            fuzzed.aborted = str(error)
        except ExceptionGroup as group_error:
            fuzzed.aborted = "; ".join(str(error) for error in group_error.exceptions)
        finally:
            server.terminate()
            fuzzed.end = await asyncio.to_thread(server.clean_up)
    return fuzzed


async def _shoot(port: int, numbers: Iterator[int], seed: int, found: Sequence[Target], fuzzed: Fuzzed) -> None:
    for number in numbers:
        made = shot(number, seed, found)
        if made.raw is not None:
            response = await send_raw(port, made.raw)
            fuzzed.add(made, response.said, "server error" if response.status >= 500 else None)
        else:
            response = await exchange(port, request_bytes(made), made.method == "HEAD", DEADLINE_S)
            fuzzed.add(made, response.said, fault_of(made, response))
        if number % PROGRESS == PROGRESS - 1:
            log.info("%d requests sent, %d faults", number + 1, len(fuzzed.faults))


def fault_of(made: Shot, response: Response) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if response.status == 0:
        return "no answer within the deadline" if response.late else "the connection was closed without an answer"
    if response.status >= 500 and response.status != 503:
        return "server error"
    if b"Traceback" in response.body or b'"type":"server_error"' in response.body.replace(b" ", b""):
        return "an error of the server's own in the answer"
    if response.status < 400 or made.method == "HEAD" or (made.kind in OF_THE_LINE and response.body.startswith(b"Invalid HTTP")):
        return None
    try:
        error = json.loads(response.body)["error"]
        return None if error["message"] else "an error without a message"
    except (KeyError, TypeError, ValueError):
        return "an error that is not readable"


def missed(fuzzed: Fuzzed, tracebacks: int) -> list[str]:
    """A sentence for each mark that was missed."""
    sentences = []
    if fuzzed.aborted:
        sentences.append(f"The run ended early: {fuzzed.aborted}.")
    for what, count in Counter(fault["what"] for fault in fuzzed.faults).items():
        first = next(fault for fault in fuzzed.faults if fault["what"] == what)
        sentences.append(f"{count} times: {what}; first at number {first['number']}, {first['kind']}, {first['method']} {first['route']}.")
    if not fuzzed.alive:
        sentences.append("The server did not answer an ordinary request afterwards.")
    if tracebacks:
        sentences.append(f"{tracebacks} tracebacks in the server's log.")
    if fuzzed.end.get("exit_code") != 0 or fuzzed.end.get("orphans"):
        sentences.append(f"The server did not end in order: {fuzzed.end}.")
    return sentences


def table(fuzzed: Fuzzed) -> str:
    """The number of each status, by kind of request."""
    statuses = sorted({status for counted in fuzzed.statuses.values() for status in counted})
    rows = [[kind, *(str(counted[status]) for status in statuses)] for kind, counted in fuzzed.statuses.items()]
    totals = [str(sum(counted[status] for counted in fuzzed.statuses.values())) for status in statuses]
    return markdown_table(("requests", *statuses), [*rows, ["all", *totals]]) + f"\n\n{fuzzed.seconds:.0f} s"
