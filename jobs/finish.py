"""Makes the output and the error file of a batch from the committed lines, in the order of the input, and ends the batch."""

import asyncio
import json
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, cast

from sqlalchemy import Row

from app.schemas.batches import BatchUsage, InputDetails, OutputDetails
from jobs.check import parsed
from jobs.leases import Leases, Outcome, Result, Task
from jobs.lines import failed
from jobs.reading import raw_lines
from jobs.server import Refused, Server

log = logging.getLogger(__name__)

UNFINISHED = {  # by how the batch ends: code and message of a line without an answer
    "cancelled": ("batch_cancelled", "the batch was cancelled before this line was answered"),
    "expired": ("batch_expired", "the line was not answered within the completion window of the batch"),
    "completed": ("worker_lost", "every worker that took the lines around this one was lost; send it again"),
}


class Finish:
    """Two temporary files without a name, which are gone with the process."""

    def __init__(self, task: Task, server: Server, leases: Leases) -> None:
        self.task = task
        self._server, self._leases = server, leases
        self._counts: Counter[bool] = Counter()  # lines by whether they succeeded
        self._used: Counter[str] = Counter()  # tokens

    async def run(self) -> None:
        """Raises `LeaseLost`, `Refused`, `Unavailable`, `OSError`."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
            async for result in self._results():
                self._counts[result.succeeded] += 1
                (output if result.succeeded else error).write(result.line.encode() + b"\n")
            outcome = Outcome(
                output_file=await self._keep("output", cast(BinaryIO, output)),
                error_file=await self._keep("error", cast(BinaryIO, error)),
                completed=self._counts[True],
                failed=self._counts[False],
                usage=self._usage(),
            )
        await asyncio.to_thread(self._leases.finish, self.task, outcome)

    async def _results(self) -> AsyncIterator[Result]:
        """Every line of the input: its answer, or why it has none. A batch whose input was never checked has no lines. Where the input is
        gone, the answers alone: nothing else knows the other lines' names.

        Raises `Refused` for a batch that should be completed, without input and answers.
        """
        if self.task.ending != "completed" and not await asyncio.to_thread(self._leases.has_lines, self.task.batch):
            return
        committed = self._leases.results(self.task.batch)
        following = await asyncio.to_thread(next, committed, None)
        n = 0
        try:
            async for line in raw_lines(self._server.input(self.task)):
                if following is not None and following.n == n:
                    yield self._answer(following)
                    following = await asyncio.to_thread(next, committed, None)
                else:
                    yield failed(self.task, n, parsed(line.text or b"")["custom_id"], *UNFINISHED[self.task.ending or "completed"])
                n += 1
        except Refused as error:
            if following is None and self.task.ending == "completed":
                raise
            log.warning("the input of %s cannot be read (%s): its files have the lines that were answered", self.task.batch, error)
            while following is not None:
                yield self._answer(following)
                following = await asyncio.to_thread(next, committed, None)

    def _answer(self, row: Row) -> Result:
        if row.succeeded:
            self._count(row.line)
        return Result(row.n, row.succeeded, row.line)

    def _count(self, line: str) -> None:
        usage: dict[str, Any] = json.loads(line)["response"]["body"].get("usage") or {}
        self._used["input"] += usage.get("prompt_tokens", 0)
        self._used["output"] += usage.get("completion_tokens", 0)
        self._used["cached"] += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self._used["reasoning"] += (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)

    def _usage(self) -> BatchUsage:
        used = self._used
        return BatchUsage(
            input_tokens=used["input"],
            input_tokens_details=InputDetails(cached_tokens=used["cached"]),
            output_tokens=used["output"],
            output_tokens_details=OutputDetails(reasoning_tokens=used["reasoning"]),
            total_tokens=used["input"] + used["output"],
        )

    async def _keep(self, kind: str, file: BinaryIO) -> str | None:
        if file.tell() == 0:
            return None
        file.seek(0)
        return await self._server.keep(self.task, kind, file)
