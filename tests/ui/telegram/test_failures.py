import asyncio

import httpx
import pytest

from ui.client import Client, ServerError
from ui.telegram import failures


def caused(cause: Exception) -> ServerError:
    error = ServerError("No server answers at http://10.0.0.7:8000.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (caused(httpx.ConnectError("x")), failures.UNREACHABLE),
        (caused(httpx.ConnectTimeout("x")), failures.UNREACHABLE),
        (caused(httpx.ReadTimeout("x")), failures.SLOW),
        (caused(httpx.RemoteProtocolError("x")), failures.LOST),
        (caused(ValueError("x")), failures.UNKNOWN),
        (ServerError("this key is banned", code="forbidden"), failures.CLOSED),
        (ServerError("the model 'a' is still loading; GET /ready says when.", code="not_ready"), failures.LOADING),
        (ServerError("the worker died."), "The worker died."),
        (ServerError("256 requests wait already."), "256 requests wait already."),
    ],
)
def test_a_sentence_for_a_user_who_knows_no_server(error: ServerError, sentence: str):
    assert failures.sentence(error) == sentence and "10.0.0.7" not in sentence


def test_the_client_says_what_failed():
    async def run() -> None:
        await Client("http://127.0.0.1:9").score("text", None)

    with pytest.raises(ServerError) as raised:
        asyncio.run(run())
    assert failures.sentence(raised.value) == failures.UNREACHABLE
