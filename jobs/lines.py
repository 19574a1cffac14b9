"""Sends the lines of a task to the server, several at once, and commits the answers. Knows how a line of output looks."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.schemas.batches import LineError, LineResponse, OutputLine
from jobs import policy
from jobs.check import parsed
from jobs.leases import Leases, Result, Task
from jobs.reading import raw_lines
from jobs.server import Answer, Server, Unavailable

log = logging.getLogger(__name__)

TAKES_SLOT = frozenset({"/v1/chat/completions", "/v1/completions"})
LINE_ENDS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}  # JSON may have them raw, and Python's splitlines() cuts there
TIER = "flex"  # batch work fills idle slots and gives way to people


class Lines:
    """One task's lines, at most `at_once` in flight. `stop` ends the taking of further lines; `drop` also those that are in flight."""

    def __init__(self, task: Task, server: Server, leases: Leases, at_once: int) -> None:
        self.task, self._at_once = task, at_once
        self._server, self._leases = server, leases
        self._finished: list[Result] = []  # not committed yet
        self._lanes: list[asyncio.Task[None]] = []
        self._stopped = False
        self._left = 0

    def stop(self) -> None:
        self._stopped = True

    def drop(self) -> None:
        self.stop()
        for lane in self._lanes:
            lane.cancel()

    async def run(self) -> bool:
        """Whether every line has been answered. Raises `LeaseLost`, `Refused`, `Unavailable`."""
        saved = await asyncio.to_thread(self._leases.saved_lines, self.task)
        texts = [line.text async for line in raw_lines(self._server.input(self.task, whole=False))]
        first = self.task.part.first_line
        todo = [(n, parsed(text)) for n, text in enumerate(texts, first) if n not in saved and text is not None]
        self._left = len(todo)
        lines = iter(todo)
        self._lanes = [asyncio.create_task(self._lane(lines)) for _ in range(await self._count_lanes([line for _, line in todo]))]
        try:
            while any(not lane.done() for lane in self._lanes):
                await asyncio.wait(self._lanes, timeout=policy.GROUP_S)
                await self._save()
        finally:
            for lane in self._lanes:
                lane.cancel()
        for lane in self._lanes:
            if not lane.cancelled():
                lane.result()
        await self._save(last=True)
        return self._left == 0

    async def _count_lanes(self, lines: Sequence[dict[str, Any]]) -> int:
        """As many lines as the models that they name have slots for; where one of these is not there, as any model has. Raises
        `Unavailable`, `Refused`.
        """
        if self.task.endpoint not in TAKES_SLOT:
            return min(self._at_once, len(lines))
        slots = await self._server.slots(self.task)
        named = [line["body"].get("model") for line in lines]
        known = all(isinstance(model, str | None) and model in slots for model in named)
        counts = [count for model, count in slots.items() if model in named or not known]
        return min(policy.lines_at_once(self._at_once, counts), len(lines))

    async def _lane(self, lines: Iterator[tuple[int, dict[str, Any]]]) -> None:
        for n, line in lines:
            if self._stopped:
                return
            result = await self._answer(n, line)
            self._finished.append(result)
            self._left -= 1

    async def _save(self, last: bool = False) -> None:
        """Commit what is finished. While the table does not answer, keep it; the lease says for how long that is of use."""
        finished, self._finished = self._finished, []
        if not finished:
            return
        try:
            await asyncio.to_thread(self._leases.save, self.task, finished)
        except DBAPIError:
            self._finished = finished + self._finished
            if last:
                raise

    async def _answer(self, n: int, request: dict[str, Any]) -> Result:
        body = {**request["body"], "service_tier": TIER}
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._server.answer(self.task, body)
                if not policy.tries_again(None if answer is None else answer.status, tries):
                    return _result(self.task, n, request["custom_id"], answer)
            except Unavailable as error:
                if tries == 1:
                    log.warning("a line waits for the server, and is sent again: %s", error)
                await asyncio.sleep(policy.pause_s(tries))
                continue
            except Exception as error:  # noqa: BLE001 - whatever one line meets, the others go on
                log.error("a line was ended by %s", type(error).__name__, extra={"fields": {"batch": self.task.batch, "line": n + 1}})
                message = f"the line could not be sent, or its answer not be kept ({type(error).__name__})"
                return failed(self.task, n, request["custom_id"], "line_failed", message)
            await asyncio.sleep(policy.pause_s(tries, None if answer is None else policy.retry_after_s(answer.retry_after)))


def _result(task: Task, n: int, custom_id: str, answer: Answer | None) -> Result:
    if answer is None:
        return failed(task, n, custom_id, "request_timeout", "no answer came in time (jobs.line_timeout_s)")
    response = LineResponse(status_code=answer.status, request_id=answer.request_id, body=answer.body)
    return Result(n, answer.status == 200, _line(task, n, custom_id, response=response))


def failed(task: Task, n: int, custom_id: str, code: str, message: str) -> Result:
    return Result(n, False, _line(task, n, custom_id, error=LineError(code=code, message=message)))


def _line(task: Task, n: int, custom_id: str, response: LineResponse | None = None, error: LineError | None = None) -> str:
    id = f"batch_req_{task.batch.removeprefix('batch_')[:24]}{n:08x}"
    known = custom_id.encode("utf-8", "replace").decode()  # in files that an earlier version has checked it may be no Unicode
    text = OutputLine(id=id, custom_id=known, response=response, error=error).model_dump_json()
    for letter, escape in LINE_ENDS.items():
        text = text.replace(letter, escape)
    return text
