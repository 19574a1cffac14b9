import pytest

from serve.admission.client import client_of


@pytest.mark.parametrize(
    ("state", "client"),
    [
        ({"client": "alice"}, "key:alice"),
        ({"client": "alice", "worker": True}, "batches:alice"),
        ({"client": None, "worker": True}, "batches:"),
        ({"client": None, "worker": False}, "address:10.0.0.1"),
        ({}, "address:10.0.0.1"),
    ],
)
def test_the_lines_of_a_batch_count_apart_from_what_their_owner_asks(state, client):
    assert client_of({"state": state, "client": ("10.0.0.1", 5)}) == client
