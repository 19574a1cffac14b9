"""The process that examines or trains: started, listened to, stopped. It tells one JSON object a line. Knows no table."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

from app.settings import offline_environment

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "app.tuning")
MAX_LINE_BYTES = 2**20


class Trainer:
    """`told` has what the process has told and nobody has taken yet."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.told: list[dict[str, Any]] = []
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, command: str, folder: Path) -> "Trainer":
        """Raises `OSError`."""
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, command, str(folder)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=offline_environment(),
            limit=MAX_LINE_BYTES,
        )
        return cls(process)

    @property
    def ended(self) -> bool:
        return self._listening.done()

    @property
    def status(self) -> int | None:
        """Negative: the number of the signal that ended it."""
        return self._process.returncode

    def take(self) -> list[dict[str, Any]]:
        taken, self.told = self.told, []
        return taken

    async def wait(self, seconds: float) -> None:
        """Until it ends, at most so long."""
        await asyncio.wait({self._listening}, timeout=seconds)

    async def stop(self, grace_s: float) -> None:
        """Let it save what it has; whatever it is at after the grace is lost."""
        self._signal(signal.SIGTERM)
        await self.wait(grace_s)
        self._signal(signal.SIGKILL)
        await self._listening

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                self.told.append(json.loads(line))
            except ValueError:  # it was killed while it wrote
                log.warning("a fine-tuning process told something that is no message")
        await self._process.wait()
