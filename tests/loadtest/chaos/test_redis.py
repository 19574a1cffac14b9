import shutil
import socket

import pytest

from loadtest.chaos import redis as module
from loadtest.chaos.redis import NoRedis, Redis
from loadtest.chaos.server import port_is_free


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on PATH")
def test_it_starts_stops_and_starts_again_on_its_port(free_port, monkeypatch):
    monkeypatch.setattr(module, "START_S", 60.0)
    redis = Redis(free_port)
    try:
        for _ in range(2):
            redis.start()
            with socket.create_connection(("127.0.0.1", free_port), 60) as connection:
                connection.sendall(b"PING\r\n")
                assert connection.recv(10) == b"+PONG\r\n"
            redis.stop()
            assert port_is_free(free_port)
    finally:
        redis.stop()


def test_without_redis_server_a_sentence_says_what_to_do(monkeypatch, free_port):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoRedis, match="install it"):
        Redis(free_port).start()
