import argparse
import re
from pathlib import Path

import pytest

from loadtest.load.options import add_options, read_options, seconds_of

ROOT = Path(__file__).parents[3]


class Parser(argparse.ArgumentParser):
    """Locust's parser takes one more keyword, `include_in_web_ui`."""

    def add_argument(self, *names, include_in_web_ui=True, **options):
        return super().add_argument(*names, **options)


def load_of(*argv, users=None, **page):
    parser = Parser()
    add_options(parser)
    return read_options(argparse.Namespace(**{"num_users": users, **vars(parser.parse_args(argv)), **page}))


def test_the_page_has_every_option_with_its_default_and_every_user():
    page = (ROOT / "docs/loadtest.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {name: row[1] for row in rows for name in re.findall(r"--[a-z-]+", row[0])}
    parser = Parser(add_help=False)
    add_options(parser)
    shown = {None: "none", "": "none"}
    expected = {action.option_strings[0]: shown.get(action.default, str(action.default)) for action in parser._actions}
    expected |= {"--served-model": "the first one", "--quantization": "as reported", "--think": "1"}
    assert told == expected
    users = (ROOT / "loadtest/load/users.py").read_text()  # to import it would import gevent
    weights = {row[0].strip("`"): row[1] for row in rows if row[0].endswith("User`")}
    assert weights == dict(re.findall(r"^class (\w+)\(LitmusUser\):.*?^    weight = (\d+)$", users, re.M | re.S))


def test_a_load_without_stages():
    load = load_of(users=7)
    (stage,) = load.plan
    assert (stage.level, stage.opened, stage.seconds, stage.warm_up_s) == (7, False, None, 5)
    assert load.mix.lengths == {"short": 6, "medium": 3, "long": 1} and load.extra == {} and not load.is_open_loop


def test_a_ladder_and_a_sweep():
    assert [(stage.level, stage.seconds) for stage in load_of("--ladder", "1, 2 8", "--stage", "1m", "--warm-up", "2s").plan] == [
        (1, 62),
        (2, 62),
        (8, 62),
    ]
    sweep = load_of("--rates", "0.5 2")
    assert sweep.is_open_loop and [stage.name for stage in sweep.plan] == ["0.5/s", "2/s"]


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("1m30s", 90), ("0s", 0), ("2h", 7200)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ladder", "1", "--rates", "1"], "give only one of them"),
        (["--ladder", "1.5"], "whole numbers of users"),
        (["--ladder", "0"], "above 0"),
        (["--rates", "fast"], "list of numbers"),
        (["--stage", "soon"], "not a duration"),
        (["--stage", ""], "not a duration"),
        (["--goodput", "0.9"], "needs --slo"),
        (["--goodput", "90", "--slo-ttft-ms", "5"], "a share"),
        (["--lengths", "tiny=1"], "takes the classes"),
        (["--lengths", "short=0"], "not all 0"),
        (["--prefix-share", "2"], "from 0 to 1"),
        (["--max-tokens", "0"], "at least 1"),
        (["--extra-body", "[]"], "JSON object"),
        (["--extra-body", "{"], "property name"),
    ],
)
def test_invalid_options_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        load_of(*argv)


def test_a_length_without_a_weight_has_weight_1():
    assert load_of("--lengths", "short long=2.5", "--prefixes", "0").mix.lengths == {"short": 1, "long": 2.5}


def test_values_from_the_web_page():
    """The page sends strings, and empty ones for fields without a value."""
    load = load_of(slo_ttft_ms="200", slo_tpot_ms="", goodput="0.9", served_model="", quantization="")
    assert (load.slo.ttft_ms, load.slo.tpot_ms, load.slo.share, load.model, load.quantization) == (200, None, 0.9, None, None)
