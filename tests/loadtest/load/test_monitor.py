import json
from dataclasses import dataclass

from loadtest.load.monitor import Watch, metrics, slots, told
from loadtest.run import create_run

LITMUS = {
    "slots": [{"slot": 0, "stage": "decode"}, {"slot": 1, "stage": "idle"}, {"slot": 2, "stage": "prefill"}],
    "waiting": [{"request": "chatcmpl-3/0"}],
    "texts": 4,
    "decisions": [{"request": "chatcmpl-1/0", "waited_s": 0.5}, {"request": "chatcmpl-1/1", "waited_s": 9.0}],
}
LLAMA = [{"id": 0, "is_processing": True, "prompt": "secret"}, {"id": 1, "is_processing": False, "prompt": ""}]


@dataclass
class Shelf:
    """Answers by route."""

    pages: dict

    def get(self, route):
        return self.pages.get(route, (404, b""))


def test_prometheus_text():
    text = '# TYPE a counter\na_total{x="1, 2"} 3\na_bucket{le="1"} 4\na_sum 0.5\npython_info 1\nb NaN\nc{y="z"} 1e3 1700000000\n oddly\n'
    assert metrics(text).values == {'a_total{x="1, 2"}': 3, "a_sum": 0.5, 'c{y="z"}': 1000}
    assert metrics("<html>") is None


def test_slots_of_both_makes():
    found = slots(LITMUS)
    assert found.values == {"slots": 3, "busy": 2, "waiting": 1, "texts": 4}
    assert found.waits_ms == {"chatcmpl-1": 500}, "of an answer of several parts, the first"
    assert slots(LLAMA).values == {"slots": 2, "busy": 1}
    assert all(slots(odd) is None for odd in ({}, [1], "x", None, {"slots": [{}], "waiting": [], "texts": 0, "decisions": []}))


def test_what_a_server_does_not_tell():
    assert told(Shelf({}), "/slots") is None
    assert told(Shelf({"/slots": (200, b"no json")}), "/slots") is None
    assert told(Shelf({"/slots": (501, b"{}")}), "/slots") is None


def test_a_sample_is_a_line_of_numbers(tmp_path):
    run = create_run(tmp_path, "server", {})
    host = Shelf({"/metrics": (200, b"a 1\n"), "/slots": (200, json.dumps(LLAMA).encode())})
    watch = Watch(host, ("/metrics", "/slots"), run, 0.0)
    assert watch.sample() == {}
    host.pages["/slots"] = (200, json.dumps(LITMUS).encode())
    assert watch.sample() == {"chatcmpl-1": 500}
    host.pages.clear()
    watch.sample()
    run.close()
    _, one, two, three = map(json.loads, run.path.read_text().splitlines())
    assert one["values"] == {"a": 1, "slots": 2, "busy": 1} and two["values"]["waiting"] == 1 and three["values"] == {}
    assert "secret" not in run.path.read_text()
