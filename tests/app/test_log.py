"""How lines look."""

import json
import logging
from typing import Any

from app.log import JSONFormatter, TextFormatter


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
