"""Fine-tuning beside the batches of a worker: a look into the table every second, one job examined and one trained at a time.

No message wakes it, as a second is nothing to a job of minutes. What is trained runs in a process of its own, which this one outlives.
"""

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from app.errors import StorageFull, first_line
from app.ledger.folder import Folder
from app.ledger.recipe import FINISHED, RESULTS, RUN_FILE, STATE, Run
from app.ledger.room import FULL, is_full
from app.ledger.tunings import EXAMINE, TUNE
from app.schemas.tuning import Hyperparameters, JobError
from app.settings import Settings
from jobs import policy
from jobs.leases import LeaseLost
from jobs.runs import Claim, Runs
from jobs.server import Refused, Server, Unavailable
from jobs.trainer import Trainer

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks into the table
TELL_S = 0.5  # between two looks at what a process tells
BEAT_S = 1.0  # at most, between two looks whether the job is still wanted
PAUSE_S = 5.0  # before a job is taken again whose process ended, or that met a server or disk that did not answer
COMMANDS = {EXAMINE: "examine", TUNE: "train"}
LEFTOVERS = (STATE, "*.npy", "lock", FINISHED, RESULTS, RUN_FILE, "*.part")  # of a run that has succeeded


class Lane:
    """`stopping` is set when the worker was told to stop."""

    def __init__(self, settings: Settings, runs: Runs, secret: str, stopping: threading.Event) -> None:
        self._settings, self._runs, self._secret, self._stopping = settings, runs, secret, stopping
        self._folder = Folder(settings.jobs.folder)

    def run(self) -> None:
        """Until the worker stops."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with Server(self._settings, self._secret) as server:
            await asyncio.gather(*(self._look(kind, server) for kind in (EXAMINE, TUNE)))

    async def _look(self, kind: str, server: Server) -> None:
        while not self._stopping.is_set():
            try:
                claim = await asyncio.to_thread(self._runs.take, kind)
                if claim is not None:
                    await self._work(claim, server)
                    continue
            except LeaseLost:
                log.info("a fine-tuning job was cancelled or paused, or another worker has it")
            except DBAPIError as error:
                log.warning("the table of jobs does not answer (%s: %s); trying again", type(error).__name__, first_line(error))
            await asyncio.sleep(LOOK_S)

    async def _work(self, claim: Claim, server: Server) -> None:
        """Raises `LeaseLost`."""
        where = {"fields": {"job": claim.batch, "task": claim.kind, "fence": claim.fence}}
        if policy.gives_up(claim.attempts):
            log.error("a fine-tuning job ended %d processes without a saved state: it is not tried again", claim.attempts - 1, extra=where)
            message = (
                f"{claim.attempts - 1} processes ended one after the other and saved nothing; the server's log says how, often for memory"
            )
            await asyncio.to_thread(self._runs.fail, claim, JobError(code="trainer_lost", message=message))
            return
        try:
            await self._try(claim, server)
        except Refused as error:
            await asyncio.to_thread(self._runs.fail, claim, JobError(code="input_unavailable", message=f"the server refuses it: {error}"))
        except (Unavailable, OSError, DBAPIError) as error:
            if is_full(error) and not (self._folder.run(claim.batch) / FINISHED).exists():
                await self._fail_full(claim)
                return
            if isinstance(error, DBAPIError):
                raise
            log.warning("a fine-tuning job waits %.0f s: %s", PAUSE_S, type(error).__name__, extra=where)
            await asyncio.to_thread(self._runs.release, claim, PAUSE_S)
        except LeaseLost:
            raise
        except Exception as error:  # whatever one job meets, those of others go on
            log.error("a fine-tuning job was ended by %s, and waits %.0f s", type(error).__name__, PAUSE_S, exc_info=error, extra=where)
            await asyncio.to_thread(self._runs.release, claim, PAUSE_S, failed=True)

    async def _fail_full(self, claim: Claim) -> None:
        """The disk takes nothing more of this job, be it its files or its rows in the table; a result that is whole would wait for room."""
        log.error("a fine-tuning job ends: the disk of jobs.folder is full", extra={"fields": {"job": claim.batch}})
        await asyncio.to_thread(self._runs.fail, claim, JobError(code=StorageFull.code, message=FULL))
        self._folder.delete_run(claim.batch)
        self._runs.keep_reserve()

    async def _try(self, claim: Claim, server: Server) -> None:
        folder = self._prepare(claim, await asyncio.to_thread(self._runs.last_step, claim))
        if claim.kind == TUNE:
            await asyncio.to_thread(self._runs.begin, claim)
        trainer = await Trainer.start(COMMANDS[claim.kind], folder)
        try:
            end = await self._attend(claim, trainer)
        finally:
            await trainer.stop(self._settings.jobs.grace_s)
            if not await asyncio.to_thread(self._runs.is_wanted, claim.batch):
                self._folder.delete_run(claim.batch)
        await self._end(claim, server, end, trainer.status)

    def _prepare(self, claim: Claim, told: int | None) -> Path:
        """The run's folder. Raises `OSError`."""
        folder, jobs = self._folder.run(claim.batch), self._settings.jobs
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [None if id is None else str(self._folder.file(id)) for id in (claim.training_file, claim.validation_file)]
        assert paths[0] is not None
        half = max(1, (os.cpu_count() or 1) // 2)
        files = {"training_file": paths[0], "validation_file": paths[1]}
        Run(
            recipe=claim.recipe, **files, threads=jobs.train_threads or half, nice=jobs.train_nice, told=-1 if told is None else told
        ).write(folder)
        return folder

    async def _attend(self, claim: Claim, trainer: Trainer) -> dict[str, object]:
        """Commit what the process tells, and keep the lease, until it ends. Returns the last thing that it told of its end, or nothing."""
        end: dict[str, object] = {}
        quiet_s, told_to_stop = 0.0, False
        while True:
            await trainer.wait(TELL_S)
            ended, messages = trainer.ended, trainer.take()
            end = next((message for message in messages if message["kind"] in {"done", "failed", "examined"}), end)
            quiet_s += TELL_S
            if messages:
                await asyncio.to_thread(self._runs.tell, claim, messages)
                quiet_s = 0.0
            elif quiet_s >= min(policy.beat_s(self._runs.lease_s), BEAT_S):
                await asyncio.to_thread(self._runs.beat, claim)
                quiet_s = 0.0
            if ended and not trainer.told:
                return end
            if self._stopping.is_set() and not told_to_stop:
                told_to_stop = True
                await trainer.stop(self._settings.jobs.grace_s)

    async def _end(self, claim: Claim, server: Server, end: dict[str, object], status: int | None) -> None:
        kind = end.get("kind")
        if kind == "examined":
            await asyncio.to_thread(self._runs.examined, claim, Hyperparameters.model_validate(end["hyperparameters"]))
        elif kind == "failed":
            error = JobError.model_validate({name: end[name] for name in ("code", "message", "param")})
            await asyncio.to_thread(self._runs.fail, claim, error)
            self._folder.delete_run(claim.batch)
        elif kind == "done":
            await self._succeed(claim, server, int(str(end["trained_tokens"])))
        elif self._stopping.is_set():
            await asyncio.to_thread(self._runs.release, claim)
        else:
            log.warning("a fine-tuning process ended with %s", status, extra={"fields": {"job": claim.batch}})
            message = f"The job's process {_words_of(status)}; another one goes on from what was saved"
            await asyncio.to_thread(self._runs.tell, claim, [{"kind": "event", "level": "warn", "message": message}])
            await asyncio.to_thread(self._runs.release, claim, failed=True)
            await self._pause()

    async def _pause(self) -> None:
        """Take no other job meanwhile: the one that was just given back is the first of those that wait."""
        end_s = asyncio.get_running_loop().time() + PAUSE_S
        while not self._stopping.is_set() and (left_s := end_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left_s, LOOK_S))

    async def _succeed(self, claim: Claim, server: Server, trained_tokens: int) -> None:
        """The losses become a file, and the model is served; then the job has succeeded."""
        folder = self._folder.run(claim.batch)
        with (folder / RESULTS).open("rb") as content:
            results = await server.keep_results(claim, content)
        try:
            refused = await server.serve(claim)
        except Refused as error:  # the job knows of its end from this worker alone, so its result is kept
            refused = str(error)
        event = "New fine-tuned model created" if refused is None else f"The model is not served: {refused}"
        message = {"kind": "event", "level": "info" if refused is None else "warn", "message": event}
        await asyncio.to_thread(self._runs.tell, claim, [message])
        await asyncio.to_thread(self._runs.succeed, claim, results, trained_tokens)
        for pattern in LEFTOVERS:
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)


def _words_of(status: int | None) -> str:
    """How a process ended that told nothing of it."""
    if status is None or status >= 0:
        return f"ended with code {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status)})"
