"""What workers send arrives whole and in order, from several processes at once, also when one is killed in the middle of a message."""

import asyncio
import multiprocessing
import os
import pickle
import signal
from contextlib import closing
from typing import Any

import pytest
from fakes import DEAD_PID
from sending import SIZES, send_all, send_until_killed

from serve.workers.transport import BUFFER_BYTES, HEADER, MAX_PACKET_BYTES, SocketTransport

multiprocessing.set_forkserver_preload(["serve.workers.transport"])
forked = multiprocessing.get_context("forkserver")  # as workers are
LONG = b"x" * 3 * MAX_PACKET_BYTES


async def receive(transport: SocketTransport, count: int) -> list[Any]:
    return [await asyncio.wait_for(transport.areceive(0), 60) for _ in range(count)]


def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    transport = SocketTransport()
    workers = [forked.Process(target=send_all, args=(transport, name)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    received = asyncio.run(receive(transport, 2 * 20 * len(SIZES)))
    for name in ("a", "b"):
        assert [item[1:] for item in received if item[0] == name] == [
            (number, bytes([number]) * size) for number, size in enumerate(SIZES * 20)
        ]
    for worker in workers:
        worker.join()


def test_a_part_that_a_killed_worker_left_harms_no_other_message() -> None:
    transport = SocketTransport()

    async def scenario() -> None:
        for _ in range(3):
            worker = forked.Process(target=send_until_killed, args=(transport,))
            worker.start()
            assert (await receive(transport, 1))[0][0] == "killed"
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            sender = asyncio.to_thread(transport.send, ("next", 1, b""))
            task = asyncio.create_task(sender)
            while (item := (await receive(transport, 1))[0])[0] == "killed":
                pass
            assert item == ("next", 1, b"")
            await task

    asyncio.run(scenario())


def test_a_message_of_a_worker_that_has_ended_arrives_whole() -> None:
    """Its last packets may wait in the socket behind those of others."""
    transport, message = SocketTransport(), pickle.dumps("whole")

    async def scenario() -> None:
        transport._sender.sendmsg([HEADER.pack(DEAD_PID, True, False), message[:5]])
        sending = asyncio.create_task(asyncio.to_thread(transport.send, LONG))
        assert await receive(transport, 1) == [LONG] and list(transport._parts) == [DEAD_PID]
        await sending
        transport._sender.sendmsg([HEADER.pack(DEAD_PID, False, True), message[5:]])
        assert await receive(transport, 1) == ["whole"] and not transport._parts and not transport._gone

    asyncio.run(scenario())


def test_the_part_that_a_killed_worker_left_is_dropped() -> None:
    transport = SocketTransport()

    async def scenario() -> None:
        transport._sender.sendmsg([HEADER.pack(DEAD_PID, True, False), b"half"])
        count = 2 * BUFFER_BYTES // len(LONG) + 3  # more than the socket holds
        sending = asyncio.create_task(asyncio.to_thread(lambda: [transport.send(LONG) for _ in range(count)]))
        assert await receive(transport, count) == [LONG] * count and not transport._parts and not transport._gone
        await sending
        transport._sender.sendmsg([HEADER.pack(DEAD_PID, False, True), b"the other half"])
        transport.send("next")
        assert await receive(transport, 1) == ["next"]

    asyncio.run(scenario())


def test_a_worker_learns_that_the_api_process_is_gone() -> None:
    transport = SocketTransport()
    with closing(transport._sender):
        transport.close_receiver()
        with pytest.raises(OSError):
            transport.send("anything")


def test_a_worker_waits_for_an_api_process_that_is_behind() -> None:
    """Nothing is lost, and memory stays bounded."""
    transport = SocketTransport()
    worker = forked.Process(target=send_all, args=(transport, "a"))
    worker.start()
    assert len(asyncio.run(receive(transport, 1))) == 1
    worker.join(0.5)
    assert worker.is_alive()
    assert len(asyncio.run(receive(transport, 20 * len(SIZES) - 1))) == 20 * len(SIZES) - 1
    worker.join()
