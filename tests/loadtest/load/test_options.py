import argparse

import pytest

from loadtest.load.options import add_options, read_options, seconds_of


class Parser(argparse.ArgumentParser):
    """Locust's takes one more word."""

    def add_argument(self, *names, include_in_web_ui=True, **more):
        return super().add_argument(*names, **more)


def load_of(*words, users=None, **page):
    parser = Parser()
    add_options(parser)
    return read_options(argparse.Namespace(**{"num_users": users, **vars(parser.parse_args(words)), **page}))


def test_a_crowd_without_stages():
    load = load_of(users=7)
    (stage,) = load.plan
    assert (stage.level, stage.opened, stage.seconds, stage.warm_up_s) == (7, False, None, 5)
    assert load.mix.lengths == {"short": 6, "medium": 3, "long": 1} and load.extra == {} and not load.opened


def test_a_ladder_and_a_sweep():
    assert [(one.level, one.seconds) for one in load_of("--ladder", "1, 2 8", "--stage", "1m", "--warm-up", "2s").plan] == [
        (1, 62),
        (2, 62),
        (8, 62),
    ]
    sweep = load_of("--rates", "0.5 2")
    assert sweep.opened and [one.name for one in sweep.plan] == ["0.5/s", "2/s"]


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("1m30s", 90), ("0s", 0), ("2h", 7200)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--ladder", "1", "--rates", "1"], "give one of them"),
        (["--ladder", "1.5"], "whole users"),
        (["--ladder", "0"], "above 0"),
        (["--rates", "fast"], "list of numbers"),
        (["--stage", "soon"], "no time"),
        (["--stage", ""], "no time"),
        (["--goodput", "0.9"], "needs --slo"),
        (["--goodput", "90", "--slo-ttft-ms", "5"], "a share"),
        (["--lengths", "tiny=1"], "is made of"),
        (["--lengths", "short=0"], "is made of"),
        (["--prefix-share", "2"], "from 0 to 1"),
        (["--max-tokens", "0"], "at least 1"),
        (["--extra-body", "[]"], "JSON object"),
        (["--extra-body", "{"], "property name"),
    ],
)
def test_what_cannot_be_meant(words, why):
    with pytest.raises(ValueError, match=why):
        load_of(*words)


def test_lengths_without_a_weight_count_once():
    assert load_of("--lengths", "short long=2.5", "--prefixes", "0").mix.lengths == {"short": 1, "long": 2.5}


def test_what_the_page_sends():
    """Texts, and empty ones, for what has no value of its own."""
    load = load_of(slo_ttft_ms="200", slo_tpot_ms="", goodput="0.9", served_model="", quantization="")
    assert (load.slo.ttft_ms, load.slo.tpot_ms, load.slo.share, load.model, load.quantization) == (200, None, 0.9, None, None)
