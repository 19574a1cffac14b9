import json
from dataclasses import dataclass

from loadtest.load.monitor import ServerMonitor, parse_metrics, parse_slots, read_source
from loadtest.run import create_run

LITMUS = {
    "slots": [{"slot": 0, "stage": "decode"}, {"slot": 1, "stage": "idle"}, {"slot": 2, "stage": "prefill"}],
    "waiting": [{"request": "chatcmpl-3/0"}],
    "texts": 4,
    "decisions": [{"request": "chatcmpl-1/0", "waited_s": 0.5}, {"request": "chatcmpl-1/1", "waited_s": 9.0}],
}
LLAMA = [{"id": 0, "is_processing": True, "prompt": "secret"}, {"id": 1, "is_processing": False, "prompt": ""}]


@dataclass
class FakeHost:
    """Responses by route: status and body."""

    pages: dict

    def get(self, route):
        return self.pages.get(route, (404, b""))


def test_prometheus_text():
    text = '# TYPE a counter\na_total{x="1, 2"} 3\na_bucket{le="1"} 4\na_sum 0.5\npython_info 1\nb NaN\nc{y="z"} 1e3 1700000000\n oddly\n'
    assert parse_metrics(text).values == {'a_total{x="1, 2"}': 3, "a_sum": 0.5, 'c{y="z"}': 1000}
    assert parse_metrics("<html>") is None


def test_slots_of_litmus_and_llama_server():
    sample = parse_slots(LITMUS)
    assert sample.values == {"slots": 3, "busy": 2, "waiting": 1, "texts": 4}
    assert sample.queue_times_ms == {"chatcmpl-1": 500}, "of a response with several choices, the first"
    assert parse_slots(LLAMA).values == {"slots": 2, "busy": 1}
    assert all(parse_slots(odd) is None for odd in ({}, [1], "x", None, {"slots": [{}], "waiting": [], "texts": 0, "decisions": []}))


def test_a_source_that_is_missing_or_has_another_format():
    assert read_source(FakeHost({}), "/slots") is None
    assert read_source(FakeHost({"/slots": (200, b"no json")}), "/slots") is None
    assert read_source(FakeHost({"/slots": (501, b"{}")}), "/slots") is None


def test_a_sample_is_a_line_of_numbers(tmp_path):
    run = create_run(tmp_path, "server", {})
    host = FakeHost({"/metrics": (200, b"a 1\n"), "/slots": (200, json.dumps(LLAMA).encode())})
    monitor = ServerMonitor(host, ("/metrics", "/slots"), run, 0.0)
    assert monitor.sample() == {}
    host.pages["/slots"] = (200, json.dumps(LITMUS).encode())
    assert monitor.sample() == {"chatcmpl-1": 500}
    host.pages.clear()
    monitor.sample()
    run.close()
    _, first, second, third = map(json.loads, run.path.read_text().splitlines())
    assert first["values"] == {"a": 1, "slots": 2, "busy": 1} and second["values"]["waiting"] == 1 and third["values"] == {}
    assert "secret" not in run.path.read_text()
