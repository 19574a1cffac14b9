"""Contenders that run at once and take turns: each runs one round before any runs its next.

The speed of a machine drifts over minutes; by turns the drift affects all contenders alike. A contender that waits uses almost no CPU.
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
from loadtest.process import exit_message

RunRound = Callable[[Sequence[str]], Awaitable[Round]]
MAX_LINE_BYTES = 1 << 20  # a longer line of output is an error


@asynccontextmanager
async def server_contender(peer: Peer, folder: Path, options: Options, count: int) -> AsyncIterator[RunRound]:
    """Starts a server, with its log in `folder`, and yields a function that runs a round of `count` clients. Raises `PeerFailed`."""
    with servers.running(peer, folder) as server:
        async with clients.connect(server) as client:
            client.concurrency = count
            await clients.warm_up(client, options)
            yield lambda messages: clients.run_round(client, messages, count, options.new_tokens)


@asynccontextmanager
async def program_contender(command: Sequence[str], new_tokens: int) -> AsyncIterator[RunRound]:
    """Starts a program and yields a function that runs a round in it. Raises `PeerFailed`.

    The program, such as `app.benchmarks.engine --chats`, prints a line of JSON when it is ready, and one for each round of messages.
    """
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, limit=MAX_LINE_BYTES
        )
        assert process.stdin is not None and process.stdout is not None
        requests, replies = process.stdin, process.stdout

        async def read_reply() -> dict[str, float]:
            async for line in replies:
                if line.startswith(b"{"):
                    return dict(json.loads(line))
            code = await process.wait()
            stderr.seek(0)
            raise PeerFailed(exit_message(command[1:], code, stderr.read().decode(errors="replace")))

        async def run_round(messages: Sequence[str]) -> Round:
            with suppress(ConnectionError):  # it has ended; `read_reply` reports why
                requests.write(json.dumps(messages).encode() + b"\n")
                await requests.drain()
            measured = await read_reply()
            count, tokens = len(messages), len(messages) * new_tokens
            return Round(count, round(count * measured["prompt_tokens"]), tokens, tokens / measured["tokens_per_s"])

        try:
            await read_reply()
            yield run_round
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
