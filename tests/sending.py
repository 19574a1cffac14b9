"""What the processes of `test_transport.py` run: without what the tests import, so that they are there at once."""

from serve.workers.transport import MAX_PACKET_BYTES, SocketTransport

SIZES = (0, 1, MAX_PACKET_BYTES - 100, MAX_PACKET_BYTES, 1_000_000)


def send_all(transport: SocketTransport, name: str) -> None:
    for number, size in enumerate(SIZES * 20):
        transport.send((name, number, bytes([number]) * size))


def send_until_killed(transport: SocketTransport) -> None:
    while True:
        transport.send(("killed", 0, b"x" * 50 * MAX_PACKET_BYTES))
