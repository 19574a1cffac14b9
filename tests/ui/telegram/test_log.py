import json
import logging
import re
import sys

from ui.telegram.log import Discreet, Form


def line(name: str, message: str, *args: object, error: BaseException | None = None, form: Form = "text") -> str:
    """Without its time."""
    exc_info = None
    if error is not None:
        try:
            raise error
        except type(error):
            exc_info = sys.exc_info()
    written = Discreet(form, ["1:secret", ""]).format(logging.LogRecord(name, logging.ERROR, "", 1, message, args, exc_info))
    return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", written)


def test_our_own_lines_have_their_values():
    assert line("ui.telegram.bot", "answers that were cut: %d", 2) == "ERROR ui.telegram.bot: answers that were cut: 2"


def test_a_librarys_lines_have_none_as_they_may_quote_a_message():
    said = line("telegram.request", 'Can not load %d%% of invalid JSON data: "%-8.3s"', 7, "A fox met a crow.")
    assert said == 'ERROR telegram.request: Can not load ...% of invalid JSON data: "..."'
    assert line("asyncio", "never retrieved\nfuture: <Task text='A fox'>") == "ERROR asyncio: never retrieved"


def test_an_error_has_its_kind_and_not_its_words():
    assert line("ui.telegram", "it failed", error=ValueError("A fox")) == "ERROR ui.telegram: it failed (ValueError)"


def test_no_line_has_a_secret():
    assert line("httpx", "POST https://api.telegram.org/bot1:secret/getMe") == "ERROR httpx: POST https://api.telegram.org/bot***/getMe"


def test_a_line_has_its_time_and_may_be_json():
    record = logging.LogRecord("ui.telegram", logging.INFO, "", 1, "it has 1:secret", (), None)
    assert re.match(r"\d{4}-\d\d-\d\d .* INFO ui.telegram: it has \*{3}$", Discreet("text", ["1:secret"]).format(record))
    told = json.loads(line("telegram.ext", "%s it failed", "A fox", error=ValueError("A fox"), form="json"))
    assert told.pop("time") and told == {"level": "error", "logger": "telegram.ext", "message": "... it failed (ValueError)"}
