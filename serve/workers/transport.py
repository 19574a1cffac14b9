"""Carries what the workers send to the API process: over one Unix socket, with no process between.

LitServe's own queue lives in a process of its own, which costs a decode step of a small model on two cores a tenth. Knows nothing of what
it carries.
"""

import asyncio
import os
import pickle
import socket
import struct
import threading
from typing import Any

import psutil
from litserve.transport.base import MessageTransport

MAX_PACKET_BYTES = 64 * 1024  # a packet arrives whole or not at all; longer messages are sent in several
BUFFER_BYTES = 4 * 1024 * 1024  # so much may wait for a busy API process before a worker waits for it; Linux may give less
HEADER = struct.Struct("=i??")  # pid of the sender; whether the packet is the first, and the last, of its message
PAYLOAD_BYTES = MAX_PACKET_BYTES - HEADER.size


class SocketTransport(MessageTransport):
    """Created in the main process. The API process inherits it, and every worker gets a copy of the sending end, also when it restarts.

    A worker that is killed in the middle of a message leaves a part of it, which is dropped once nothing more of it can be on the way.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._receiver.setblocking(False)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._parts: dict[int, list[bytes]] = {}  # of messages that are not complete, by the sender's pid
        self._received = 0  # bytes
        self._gone: dict[int, int] = {}  # by the pid of a sender that has ended: how many bytes had been received when that was seen
        self._sending = threading.Lock()  # a message's packets follow each other

    def __getstate__(self) -> dict[str, Any]:
        """A worker gets the sending end only."""
        return {"_sender": self._sender}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _sending=threading.Lock())

    def send(self, item: Any, consumer_id: int = 0) -> None:
        """Send any picklable item. Waits while the API process is far behind. Raises `OSError` when that process is gone."""
        message, pid = pickle.dumps(item), os.getpid()
        with self._sending:
            for start in range(0, len(message), PAYLOAD_BYTES):
                end = start + PAYLOAD_BYTES
                self._sender.sendmsg([HEADER.pack(pid, start == 0, end >= len(message)), memoryview(message)[start:end]])

    async def areceive(self, consumer_id: int | None = None, timeout: float | None = None) -> Any:  # noqa: ASYNC109  (LitServe's signature)
        """Return the next item of any worker."""
        loop = asyncio.get_running_loop()
        while True:
            packet = await loop.sock_recv(self._receiver, MAX_PACKET_BYTES)
            self._received += len(packet)
            pid, is_first, is_last = HEADER.unpack_from(packet)
            if is_first and not is_last:
                self._forget_dead()
            if is_first:
                self._parts[pid] = []
            if pid not in self._parts:  # it died meanwhile
                continue
            self._parts[pid].append(packet[HEADER.size :])
            if is_last:
                self._gone.pop(pid, None)
                return pickle.loads(b"".join(self._parts.pop(pid)))

    def _forget_dead(self) -> None:
        """Drop the parts of messages whose senders are gone, but first receive as much as the socket may still hold of theirs."""
        for pid in [pid for pid in self._parts if not psutil.pid_exists(pid)]:
            if self._received - self._gone.setdefault(pid, self._received) > 2 * BUFFER_BYTES:
                del self._parts[pid], self._gone[pid]

    def close_receiver(self) -> None:
        """Call it in the main process once the API process runs: workers then notice that the API process is gone."""
        self._receiver.close()

    def close(self, **options: Any) -> None:
        """Nothing to wake: who receives is cancelled."""
