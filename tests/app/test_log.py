"""How lines look."""

import asyncio
import gc
import json
import logging
from typing import Any

import pytest

from app.log import JSONFormatter, TextFormatter, configure


def record(**extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "a.b", "levelname": "INFO", "msg": "it %s", "args": ("works",), **extra})


def test_a_text_line_cannot_be_forged_by_a_value() -> None:
    line = TextFormatter().format(record(fields={"route": "/v1/models/{name:path}", "status": 200, "request_id": 'a status=500 "x"'}))
    assert line.endswith(r'INFO a.b: it works route=/v1/models/{name:path} status=200 request_id="a status=500 \"x\""')


def test_a_json_line_is_an_object_with_the_fields() -> None:
    line = json.loads(JSONFormatter().format(record(fields={"status": 200}, created=0.0)))
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "logger": "a.b",
        "message": "it works",
        "status": 200,
    }


def test_every_line_has_the_context() -> None:
    fields = {"status": 200}
    assert TextFormatter(lambda: {"request_id": "a b"}).format(record(fields=fields)).endswith('status=200 request_id="a b"')
    assert json.loads(JSONFormatter(lambda: {"request_id": "a b"}).format(record(fields=fields)))["request_id"] == "a b"
    assert fields == {"status": 200}


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def logged(error: BaseException) -> str:
    return TextFormatter().formatException((type(error), error, error.__traceback__))


def test_a_traceback_has_every_exception_once_and_no_message() -> None:
    group = ExceptionGroup("SECRET", [raised(ValueError("SECRET")), raised(KeyError("SECRET"))])
    text = logged(raised(group, raised(OSError("SECRET"))))
    kinds = [line.split()[0] for line in text.splitlines() if line.endswith("(its message is not logged)")]
    assert kinds == ["builtins.ExceptionGroup", "builtins.ValueError", "builtins.KeyError", "builtins.OSError"] and "SECRET" not in text


def test_a_traceback_of_exceptions_that_cause_each_other_ends() -> None:
    one, other = raised(ValueError()), raised(KeyError())
    one.__cause__, other.__cause__ = other, one
    assert logged(one).count("(its message is not logged)") == 2


def test_what_was_suppressed_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None
    assert "KeyError" not in logged(caught.value)


def test_asyncio_quotes_no_exception_and_no_arguments(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("SECRET")

    def fails_with(text: str) -> None:
        raise ValueError(text)

    async def run() -> None:
        task = asyncio.ensure_future(fails())
        asyncio.get_running_loop().call_soon(fails_with, "SECRET")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()

    configure("info", "text")
    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert len(said) == 2 and "Task exception was never retrieved" in said and not any("SECRET" in each for each in said)
