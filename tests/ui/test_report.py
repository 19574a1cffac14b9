import html
import re
import time

import pytest

from app.schemas import Score, ScoredToken
from ui import report

STATISTICS = {"log_perplexity": 3.1, "mean_log_rank": 1.2, "mean_entropy": 3.4, "cross_entropy": 4.18, "perplexity": 22.2}


def token(text: str, rank: int = 1, start: int = 0) -> ScoredToken:
    return ScoredToken(text=text, start=start, end=start + len(text), logprob=-2.31, rank=rank, entropy=3.02)


def score(**changes: object) -> Score:
    fields = {"index": 0, "method": "binoculars", "score": 0.75, "direction": "lower", "verdict": "machine", "explanation": "Below <0.9>."}
    counts = {"scored_tokens": 80, "windows": 1, "removed_characters": 0, "statistics": STATISTICS}
    return Score.model_validate({**fields, **counts, **changes})


@pytest.mark.parametrize(
    ("value", "direction", "percent"),
    [
        (0.5, "lower", 0),
        (1.0, "lower", 50),
        (1.5, "lower", 100),
        (0.5, "higher", 100),
        (1.25, "higher", 25),
        (-3, "lower", 0),
        (9, "lower", 100),
    ],
)
def test_the_machine_end_of_the_axis_is_on_the_left(value: float, direction: str, percent: float):
    assert report.Axis(0.5, 1.5).position(value, direction) == pytest.approx(percent)


def test_the_needle_and_the_ticks_of_a_rising_score():
    shown = report.report(score(method="fast_detect", score=5.0, direction="higher"), "")
    assert 'class="needle" style="left:25.0%"' in shown
    assert re.findall(r'class="tick" style="left:([\d.]+)%[^>]*>([-\d.]+)<', shown) == [
        ("100.0", "-4"), ("75.0", "-1"), ("50.0", "2"), ("25.0", "5"), ("0.0", "8"),
    ]  # fmt: skip
    assert "higher is more machine-like" in shown


def test_a_score_beyond_the_axis_says_so():
    assert "beyond the end of this axis" in report.report(score(score=7.0), "")
    assert "beyond the end of this axis" not in report.report(score(), "")


def test_perplexity_is_drawn_by_its_powers():
    shown = report.report(score(method="perplexity", score=100.0), "")
    assert 'class="needle" style="left:50.0%"' in shown
    assert re.findall(r'class="tick"[^>]*>([\d]+)<', shown) == ["1", "10", "100", "1000", "10000"]


def test_an_enormous_number_stays_short():
    assert "1.01e+304" in report.report(score(method="perplexity", score=1.014e304), "")


@pytest.mark.parametrize(("verdict", "words"), report.VERDICTS.items())
def test_every_verdict_has_a_badge(verdict: str, words: str):
    assert f'<strong class="badge {verdict}">{words}</strong>' in report.report(score(verdict=verdict), "")


def test_the_explanation_is_the_servers_and_escaped():
    assert "Below &lt;0.9&gt;." in report.report(score(), "")


def test_a_score_names_its_model_where_several_are_served():
    assert "</b> by &lt;base&gt;</span>" in report.report(score(), "", "<base>")
    assert " by " not in re.sub(r'<p class="explanation">.*?</p>', "", report.report(score(tokens=[]), ""))


def test_statistics_show_what_there_is():
    shown = report.report(score(windows=3, removed_characters=7), "")
    for name, value in {"Perplexity": "22.200", "Cross-entropy": "4.180", "Windows": "3", "Invisible characters removed": "7"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in shown
    plain = report.report(score(statistics={**STATISTICS, "cross_entropy": None}), "")
    assert not any(name in plain for name in ("Cross-entropy", "Windows", "Invisible"))


def test_nothing_scored_has_neither_gauge_nor_tokens():
    shown = report.report(score(score=None, verdict="insufficient", statistics=None, tokens=[]), "Hi")
    assert "no score" in shown
    assert not any(name in shown for name in ('class="gauge"', 'class="tokens"', 'class="facts"'))


@pytest.mark.parametrize(("rank", "bucket"), [(1, 0), (10, 0), (11, 1), (100, 1), (101, 2), (1000, 2), (1001, 3), (150_000, 3)])
def test_the_bucket_of_a_rank(rank: int, bucket: int):
    assert f'class="t b{bucket}"' in report.report(score(tokens=[token("a", rank)]), "a")


def test_tokens_are_escaped_and_line_breaks_shown():
    shown = report.report(
        score(tokens=[token("<script>alert(1)</script>"), token("${value}{{value}}", start=25), token("a\r\n", start=42)]), ""
    )
    assert "<script" not in shown
    assert "${" not in shown
    assert "{{" not in shown
    assert 'a<i class="eol">↵</i>\n</span>' in shown


def test_tokens_carry_their_numbers_and_one_tab_stop():
    shown = report.report(score(tokens=[token("a", 5), token("b", 50, start=1)]), "")
    assert 'data-n="-2.310 5 3.020"' in shown
    assert shown.count('tabindex="0"') == 1
    assert shown.count('tabindex="-1"') == 1


def plain(shown: str) -> str:
    run = re.search(r'<div class="run">(.*?)</div>', shown, re.DOTALL)
    assert run is not None
    return html.unescape(re.sub(r"<[^>]*>|↵", "", run[1]))


def test_what_no_token_covers_is_shown_uncoloured():
    tokens = [token("upon", start=5), token("a", start=10)]
    shown = report.report(score(tokens=tokens), "O<ce upon a ")
    assert '<span class="unscored">O&lt;ce </span>' in shown
    assert plain(shown) == "O<ce upon a "


def test_a_character_of_several_tokens_is_shown_once():
    tokens = [token("a"), token("é", start=1), token("é", start=1), token("b", start=2)]
    assert plain(report.report(score(tokens=tokens), "aéb")) == "aé·b"


def test_a_text_with_invisible_characters_is_not_cut_at_wrong_places():
    tokens = [token("One"), token("two", start=4)]
    assert plain(report.report(score(tokens=tokens, removed_characters=2), "O\u200bne\u200b two")).rstrip() == "One two"


def test_the_legend_gives_shares():
    tokens = [token(text, rank, start) for start, (text, rank) in enumerate({"a": 1, "b": 1, "c": 5000, "d": 500}.items())]
    assert re.findall(r"</span> (\d+)%", report.report(score(tokens=tokens), "")) == ["50", "0", "25", "25"]


def test_a_long_text_is_quick_and_small():
    tokens = [token(" word", index % 3000 + 1, start=5 * index) for index in range(4000)]
    before_s = time.process_time()
    shown = report.report(score(tokens=tokens), "")
    assert time.process_time() - before_s < 1
    assert shown.count('class="t b') == 4000
    assert len(shown) < 100 * 4000
