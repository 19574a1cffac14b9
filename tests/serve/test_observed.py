"""A running server and its worker: they log nothing of what requests said, and their metrics are there."""

import httpx
import pytest
from observing import samples_of, value_of
from planting import SECRET, ask_everything
from serving import RunningServer


def test_the_log_of_a_server_and_its_worker_holds_no_text(api: RunningServer) -> None:
    with httpx.Client(base_url=api.url, timeout=60) as client:
        statuses = ask_everything(client)
    assert {200, 400, 404, 415} <= set(statuses)
    log = api.log.read_text()
    assert "route=/v1/chat/completions status=200" in log and "route=/v1/completions status=400" in log
    assert SECRET.lower() not in log.lower()


def test_the_metrics_of_a_server_tell_its_worker(api: RunningServer) -> None:
    httpx.post(f"{api.url}/v1/completions", json={"prompt": "Once", "max_tokens": 5, "ignore_eos": True}, timeout=60)
    samples = samples_of(httpx.get(f"{api.url}/metrics").text)
    assert value_of(samples, "generation_tokens_total", model="storyteller") >= 5
    assert value_of(samples, "request_prefill_time_seconds_sum", model="storyteller") > 0
    assert value_of(samples, "slots", model="storyteller", replica=0, version="served") > 0
    memory = {
        process: value_of(samples, "process_resident_memory_bytes", process=process, model="", replica="", version="")
        for process in ("main", "api")
    }
    assert all(bytes_ > 10e6 for bytes_ in memory.values()), memory
    resident = value_of(samples, "process_resident_memory_bytes", process="worker", model="storyteller", replica=0, version="served")
    assert resident == pytest.approx(api.worker().memory_info().rss, rel=0.1)
