"""How lines look, and that they never hold what a request said."""

import json
import logging
import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from observing import Observed
from planting import BODIES, SECRET, TEXT, ask_everything
from serving import ENVIRONMENT, ROOT


def test_no_log_holds_what_a_request_said(
    observed: Observed, json_log: StringIO, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At level debug, of every library; httpx is the client of this test."""
    for name in ("httpx", "httpx2"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    statuses = ask_everything(observed.client)
    assert {200, 400, 404, 405, 413, 415, 500} <= set(statuses)

    def fail(model: str | None = None) -> Any:
        try:
            json.loads(SECRET)
        except ValueError as error:
            raise RuntimeError(SECRET) from error

    monkeypatch.setattr(observed.router, "fleet", fail)
    assert observed.client.post(TEXT, json={"prompt": SECRET}).status_code == 500
    text = json_log.getvalue()
    assert "RuntimeError (its message is not logged)" in text and "JSONDecodeError" in text and ", in fail" in text
    assert len(text.splitlines()) > len(BODIES)
    assert SECRET.lower() not in text.lower()
    assert SECRET.lower() not in "".join(capfd.readouterr()).lower()


PROGRAM = """
import logging
from litserve.utils import configure_logging
from serve.observe.logs import LogSettings
LogSettings("info", FORMAT).configure()
configure_logging("INFO")
LogSettings.adopt_libraries()
logging.getLogger("litserve.server").info("of a library")
logging.getLogger("uvicorn.error").info("of another")
logging.getLogger("httpx").info("never")
logging.getLogger("ours").debug("not at this level")
try:
    raise ValueError("quoted")
except ValueError:
    logging.getLogger("ours").exception("failed")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_libraries_write_in_the_same_form(form: str) -> None:
    program = PROGRAM.replace("FORMAT", repr(form))
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0 and run.stdout == "", run.stderr
    if form == "json":
        lines = [json.loads(line) for line in run.stderr.splitlines()]
        assert [line["message"] for line in lines] == ["of a library", "of another", "failed"]
        assert "ValueError" in lines[-1]["exception"]
    else:
        assert [" INFO litserve.server: of a library" in run.stderr, " INFO uvicorn.error: of another" in run.stderr] == [True, True]
    assert "quoted\n" not in run.stderr.replace('"quoted")\n', "") and "never" not in run.stderr
