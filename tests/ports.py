"""Ports for servers that are not there yet."""

import contextlib
import random
import socket

BELOW_CLIENTS = range(20_000, 32_000)  # the system gives its clients higher ones, so that none of them takes a port before its server does


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(BELOW_CLIENTS)  # not by a seed that two processes share
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
