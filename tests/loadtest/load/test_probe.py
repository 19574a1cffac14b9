import pytest

from loadtest.load.probe import Abilities, Unusable, card_of, probe
from loadtest.load.transport import Host
from loadtest.record import Wants
from tests.loadtest.metronome import Metronome, ticking

PAGES = {
    "/metrics": "a 1\n",
    "/slots": [{"is_processing": False}],
    "/version": {"version": "9"},
    "/props": {"build_info": "b1", "long": "x"},
}


def probed(extra=None, model=None, **flaws):
    with ticking(Metronome(0.01, 0.01, 2, 2, **flaws)) as metronome:
        return probe(Host(metronome.url, timeout_s=10), model, extra or {}), metronome


def test_a_server_that_has_everything():
    found, metronome = probed(pages=PAGES, extra={"top_k": 3})
    assert found.card["id"] == "metronome" and found.wants == Wants() and found.chat and found.score and found.missing == []
    assert found.sources == ("/metrics", "/slots") and found.facts == {"version": "9", "build_info": "b1"}
    (one,) = metronome.served
    assert one.body["top_k"] == 3 and one.body["model"] == "metronome"


def test_what_is_missing_is_said():
    found, _ = probed(lacks=frozenset({"usage", "done", "score"}))
    assert found.wants == Wants(usage=False, done=False) and not found.score and found.sources == ()
    assert len(found.missing) == 4


@pytest.mark.parametrize("fate", ["busy", "truncated", "cut"])
def test_a_probe_that_is_not_answered_says_nothing(fate):
    found, _ = probed(fate=lambda number: fate)
    assert found.chat and found.wants == Wants()


@pytest.mark.parametrize(
    ("card", "told"),
    [({"quantize": "nf4"}, "nf4"), ({"meta": {"ftype": "Q4_0"}}, "Q4_0"), ({"meta": None}, "not told"), ({"quantize": 4}, "not told")],
)
def test_quantization(card, told):
    assert Abilities({"id": "m", **card}).quantization == told


def test_models():
    with ticking(Metronome(lacks=frozenset({"models"}))) as metronome:
        host = Host(metronome.url)
        assert card_of(host, "mine") == {"id": "mine"}
        with pytest.raises(Unusable, match="--served-model"):
            card_of(host, None)


def test_no_server(free_port):
    with pytest.raises(Unusable, match="make run"):
        probe(Host(f"http://127.0.0.1:{free_port}"), None, {})
