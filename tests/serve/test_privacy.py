"""A running server and its worker log nothing of what requests said."""

import httpx
from planting import SECRET, ask_everything
from serving import RunningServer


def test_the_log_of_a_server_and_its_worker_holds_no_text(api: RunningServer) -> None:
    with httpx.Client(base_url=api.url, timeout=60) as client:
        statuses = ask_everything(client)
    assert {200, 400, 404, 405, 413, 415} <= set(statuses)
    log = api.log.read_text()
    assert "route=/v1/chat/completions status=200" in log and "route=/v1/completions status=400" in log
    assert SECRET.lower() not in log.lower()
