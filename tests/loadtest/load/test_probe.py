import pytest

from loadtest.load.probe import Capabilities, UnusableServer, card_of, probe
from loadtest.load.transport import Host
from loadtest.record import Expectations
from tests.loadtest.timed_server import TimedServer, running

PAGES = {
    "/metrics": "a 1\n",
    "/slots": [{"is_processing": False}],
    "/version": {"version": "9"},
    "/props": {"build_info": "b1", "long": "x"},
}


def run_probe(extra=None, model=None, **faults):
    with running(TimedServer(0.01, 0.01, 2, 2, **faults)) as server:
        return probe(Host(server.url, timeout_s=10), model, extra or {}), server


def test_a_server_that_has_everything():
    capabilities, server = run_probe(pages=PAGES, extra={"top_k": 3})
    assert (
        capabilities.card["id"] == "timed-model"
        and capabilities.expected == Expectations()
        and capabilities.can_chat
        and capabilities.can_score
        and capabilities.missing == []
    )
    assert capabilities.sources == ("/metrics", "/slots") and capabilities.facts == {"version": "9", "build_info": "b1"}
    (chat,) = server.served
    assert chat.body["top_k"] == 3 and chat.body["model"] == "timed-model"


def test_missing_features_are_named():
    capabilities, _ = run_probe(lacks=frozenset({"usage", "done", "score"}))
    assert (
        capabilities.expected == Expectations(has_usage=False, has_done=False) and not capabilities.can_score and capabilities.sources == ()
    )
    assert len(capabilities.missing) == 4


@pytest.mark.parametrize("behaviour", ["busy", "truncated", "cut"])
def test_a_probe_without_a_complete_answer_rules_nothing_out(behaviour):
    capabilities, _ = run_probe(behaviour_of=lambda number: behaviour)
    assert capabilities.can_chat and capabilities.expected == Expectations()


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"quantize": "nf4"}, "nf4"),
        ({"quantize": "none"}, "none"),
        ({"quantize": "none", "weights": {"format": "float", "types": ["bfloat16"]}}, "none"),
        ({"quantize": "none", "weights": {"format": "gguf", "types": ["Q4_1", "Q8_0"]}}, "gguf Q4_1, Q8_0"),
        ({"meta": {"ftype": "Q4_0"}}, "Q4_0"),
        ({"meta": None}, "not told"),
        ({"quantize": 4}, "not told"),
    ],
)
def test_quantization(card, expected):
    assert Capabilities({"id": "m", **card}).quantization == expected


def test_models():
    with running(TimedServer(lacks=frozenset({"models"}))) as server:
        host = Host(server.url)
        assert card_of(host, "mine") == {"id": "mine"}
        with pytest.raises(UnusableServer, match="--served-model"):
            card_of(host, None)


def test_no_server(free_port):
    with pytest.raises(UnusableServer, match="make run"):
        probe(Host(f"http://127.0.0.1:{free_port}"), None, {})
