import logging
import sys

from ui.telegram.log import Discreet


def line(name: str, message: str, *args: object, error: BaseException | None = None) -> str:
    exc_info = None
    if error is not None:
        try:
            raise error
        except type(error):
            exc_info = sys.exc_info()
    return Discreet(["1:secret", ""]).format(logging.LogRecord(name, logging.ERROR, "", 1, message, args, exc_info))


def test_our_own_lines_have_their_values():
    assert line("ui.telegram.bot", "answers that were cut: %d", 2) == "ERROR ui.telegram.bot answers that were cut: 2"


def test_a_librarys_lines_have_none_as_they_may_quote_a_message():
    assert "A fox" not in line("telegram.request", 'Can not load invalid JSON data: "%s"', "A fox met a crow.")
    assert line("asyncio", "never retrieved\nfuture: <Task text='A fox'>") == "ERROR asyncio never retrieved"


def test_an_error_has_its_kind_and_not_its_words():
    assert line("ui.telegram", "it failed", error=ValueError("A fox")) == "ERROR ui.telegram it failed (ValueError)"


def test_no_line_has_a_secret():
    assert line("httpx", "POST https://api.telegram.org/bot1:secret/getMe") == "ERROR httpx POST https://api.telegram.org/bot***/getMe"
