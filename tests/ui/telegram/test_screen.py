import asyncio

import pytest
from telegram.error import BadRequest, Forbidden, NetworkError, TimedOut

from ui.telegram.screen import ATTEMPTS, deliver


def attempts(*errors: Exception) -> tuple[object, int]:
    """What `deliver` returns or raises, and how often it tried."""
    left, count = list(errors), 0

    async def send() -> str:
        nonlocal count
        count += 1
        if left:
            raise left.pop(0)
        return "sent"

    async def run() -> object:
        try:
            return await deliver(send, pause_s=0)
        except NetworkError as error:
            return error
        except Forbidden as error:
            return error

    return asyncio.run(run()), count


def test_an_error_of_the_network_is_tried_again():
    assert attempts() == ("sent", 1)
    assert attempts(TimedOut(), NetworkError("x")) == ("sent", 3)


@pytest.mark.parametrize("error", [BadRequest("chat not found"), Forbidden("blocked")])
def test_what_telegram_refuses_is_not_tried_again(error: Exception):
    assert attempts(error) == (error, 1)


def test_it_gives_up():
    result, count = attempts(*(TimedOut() for _ in range(ATTEMPTS)))
    assert isinstance(result, TimedOut) and count == ATTEMPTS
