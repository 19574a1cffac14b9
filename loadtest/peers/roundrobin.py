"""Contenders that take turns: all are up at once, and each plays a round before any plays its next.

A machine's speed changes with the minutes; so it changes for all of them alike. One that waits for its turn takes next to nothing of it.
"""

import asyncio
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from loadtest.peers import clients, servers
from loadtest.peers.clients import Options, Round
from loadtest.peers.servers import Peer, PeerFailed
from loadtest.process import ended

Play = Callable[[Sequence[str]], Awaitable[Round]]
LINE = 1 << 20  # bytes of the longest line that is read


@asynccontextmanager
async def served(peer: Peer, folder: Path, options: Options, count: int) -> AsyncIterator[Play]:
    """`count` clients of a server that is started here, its log in `folder`. Raises `PeerFailed`."""
    with servers.running(peer, folder) as server:
        async with clients.chatter(server) as chatter:
            chatter.clients = count
            await clients.warm(chatter, options)
            yield lambda messages: clients.play(chatter, messages, count, options.new_tokens)


@asynccontextmanager
async def bare(command: Sequence[str], new_tokens: int) -> AsyncIterator[Play]:
    """A program that says in a line of JSON that it is ready, and answers each round with one, such as `app.benchmarks.engine --chats`.
    Raises `PeerFailed`.
    """
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, limit=LINE)
        assert process.stdin is not None and process.stdout is not None
        sent, answers = process.stdin, process.stdout

        async def answer() -> dict[str, float]:
            async for line in answers:
                if line.startswith(b"{"):
                    return dict(json.loads(line))
            code = await process.wait()
            said.seek(0)
            raise PeerFailed(ended(command[1:], code, said.read().decode(errors="replace")))

        async def play(messages: Sequence[str]) -> Round:
            with suppress(ConnectionError):  # it has ended; `answer` says why
                sent.write(json.dumps(messages).encode() + b"\n")
                await sent.drain()
            found = await answer()
            requests, tokens = len(messages), len(messages) * new_tokens
            return Round(requests, round(requests * found["prompt_tokens"]), tokens, tokens / found["tokens_per_s"])

        try:
            await answer()
            yield play
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
