import hashlib
import json
import re
from html import unescape
from typing import Any

import pytest

from app.schemas import Score, UsedCalibration
from ui.client import ScoreResult
from ui.score import report

STATISTICS = {"log_perplexity": 3.1, "mean_log_rank": 1.2, "mean_entropy": 3.4, "cross_entropy": 4.18, "perplexity": 22.2}
SURE: dict[str, Any] = {
    "threshold": 0.901,
    "p_machine": {"value": 0.834, "interval": (0.71, 0.912)},
    "false_positive_rate": {"target": 0.01, "measured": 0.0125, "interval": (0.0061, 0.02), "n": 2000, "tokens": "128-256"},
}
NOT_CALIBRATED = UsedCalibration(source=None, reason="the calibration belongs to <falcon>")
CALIBRATED = UsedCalibration(source="measured on <stories>", reason=None)
THRESHOLD_ROW = "Threshold of a machine verdict"
HOSTILE = "<img src=x onerror=alert(1)>{{value}}${value}`"


def score(**changes: object) -> Score:
    fields = {"index": 0, "method": "binoculars", "direction": "lower", "verdict": "machine", "explanation": "Below <0.9>."}
    counts = {"scored_tokens": 80, "windows": 1, "truncated": False, "normalisations": {}, "warnings": [], "statistics": STATISTICS}
    return Score.model_validate({**fields, **counts, "scores": {"binoculars": 0.75}, **changes})


def report_html(text: str = "", calibration: UsedCalibration = CALIBRATED, flags: bool = False, **changes: object) -> str:
    return report.report_html(ScoreResult(score(**changes), calibration, 0.254, "<base>", "nf4"), text, flags)


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


def test_the_verdict_comes_first_in_words_with_what_it_means():
    html = report_html(**SURE)
    assert html.index("<h2") < html.index("Probability of machine text") < html.index("Measurements")
    assert '<h2 class="verdict machine">Reads like machine text</h2>' in html
    assert re.findall(r'<li class="(\w+)" aria-current=true>', html) == ["machine"]
    assert "It is a reason to ask, not a proof" in html


def test_the_numbers_name_what_they_assume_and_how_often_the_threshold_is_wrong():
    html = report_html(**SURE)
    rows = facts(html)
    assert rows["Probability of machine text"] == "83% (95% interval 71% to 91%)"
    assert (rows["Binoculars score"], rows[THRESHOLD_ROW]) == ("0.750", "below 0.901")
    assert "assumes that half of all texts are machine text. At this threshold 12 of 1,000 human texts are wrongly flagged" in html
    assert "measured on 2,000 texts of 128-256 tokens; 95% interval 6.1 to 20)" in html and "It finds" not in html
    found = {**SURE["false_positive_rate"], "found": 0.25, "n_machine": 1900}
    assert "It finds 250 of 1,000 of the 1,900 machine texts that were measured." in report_html(**{**SURE, "false_positive_rate": found})
    assert rows["Calibration"] == "measured on &lt;stories&gt;"


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [(0.9991, (0.985, 1.0), "over 99% (95% interval 98% to over 99%)"), (0.004, (0.0, 0.014), "under 1% (95% interval under 1% to 1%)")],
)
def test_a_probability_is_never_shown_as_0_or_100(value: float, interval: tuple[float, float], expected: str):
    assert expected in facts(report_html(p_machine={"value": value, "interval": interval})).values()


def test_a_threshold_published_without_a_measurement():
    rate = {"target": None, "measured": None, "interval": None, "n": None, "tokens": "64+"}
    html = report_html(threshold=0.9, false_positive_rate=rate)
    assert "It was published, without saying on how many texts it was measured (texts of 64+ tokens)." in html
    assert "Probability of machine text" not in facts(html)
    assert "for a target of 0.1 of 1,000" in report_html(threshold=0.9, false_positive_rate={**rate, "target": 0.0001})


def test_flags_are_asked_for_only_where_they_are_kept():
    assert "This verdict is wrong" in report_html(flags=True) and "This verdict is wrong" not in report_html()


def test_the_row_for_exports_has_a_hash_and_never_the_text():
    html = report_html("a secret text", **SURE)
    row = json.loads(unescape(re.search(r'data-row="([^"]*)"', html)[1]))
    assert row["hash"] == hashlib.sha256(b"a secret text").hexdigest() and "secret" not in json.dumps(row)
    assert (row["verdict"], row["threshold"], row["model"], row["n"]) == ("Reads like machine text", 0.901, "<base>", 2000)


def test_where_higher_is_machine_like_the_verdict_is_above_the_threshold():
    assert facts(report_html(**SURE, method="fast_detect", scores={"fast_detect": 3.0}, direction="higher"))[THRESHOLD_ROW] == "above 0.901"


def test_without_a_calibration_the_reason_is_shown():
    html = report_html(verdict="uncalibrated", calibration=NOT_CALIBRATED)
    assert facts(html)["Calibration"] == "none: the calibration belongs to &lt;falcon&gt;"
    assert "Cannot tell" in html and "have not been measured on known texts" in html and THRESHOLD_ROW not in facts(html)


def test_the_explanation_is_the_servers_and_escaped():
    assert "Below &lt;0.9&gt;." in report_html()


def test_a_score_names_its_model_and_precision():
    assert facts(report_html())["Model"] == "&lt;base&gt;, nf4"


def test_measurements_show_only_what_is_known():
    rows = facts(report_html(windows=3, scored_tokens=4321, truncated=True))
    expected = {"Perplexity of the text": "22.200", "Cross-entropy": "4.180", "Windows": "3", "Time": "0.25 s"}
    assert {name: rows[name] for name in expected} == expected
    assert rows["Scored tokens"] == "4,321, only the beginning of the text"
    plain = facts(report_html(statistics={**STATISTICS, "cross_entropy": None}))
    assert plain["Scored tokens"] == "80"
    assert not {"Cross-entropy", "Windows", "Changed before scoring"} & set(plain)


def test_scores_of_other_methods_are_measurements():
    rows = facts(report_html(scores={"binoculars": 0.75, "fast_detect": 2.5, "log_rank": None}))
    assert (rows["Fast-DetectGPT"], rows["Log-rank"], "Binoculars" in rows) == ("2.500", "no score", False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"zero_width": 3}, "3 zero-width characters left out"),
        ({"zero_width": 1, "homoglyph": 1200}, "1 zero-width character left out; 1,200 look-alike letters read as Latin"),
        ({"control": 1, "compatibility": 2}, "1 control character left out; 2 styled letters read as plain"),
        ({"white_space": 5}, "5 blanks and line breaks merged"),
    ],
)
def test_normalisations_are_described(changes: dict[str, int], expected: str):
    assert facts(report_html(normalisations=changes))["Changed before scoring"] == expected


def test_warnings_are_sentences():
    html = report_html(
        warnings=[{"code": "short", "message": "only 70 tokens"}, {"code": "not_english", "message": "It is <i>not</i> English."}]
    )
    assert "<li>Only 70 tokens.</li><li>It is &lt;i&gt;not&lt;/i&gt; English.</li>" in html
    assert "Warnings" not in report_html()


def test_a_text_without_scored_tokens_has_no_gauge_sentences_or_tokens():
    html = report_html("Hi", scores={"binoculars": None}, verdict="insufficient", statistics=None, scored_tokens=0, sentences=[], tokens=[])
    assert "no score" in html
    assert not any(name in html for name in ('class="gauge"', 'class="tokens"', 'class="sentences"', "Perplexity"))


def test_a_single_sentence_gets_no_list():
    one = {"start": 0, "end": 2, "tokens": 1, "score": 0.7, "logprob": -1.0}
    assert 'class="sentences"' not in report_html("A. B.", sentences=[one])
    assert 'class="sentences"' in report_html("A. B.", sentences=[one, {**one, "start": 3, "end": 5}])


def test_hostile_text_in_any_field_is_escaped():
    other = [{"text": HOSTILE, "logprob": -1.0}]
    token = {"text": HOSTILE, "start": 0, "end": len(HOSTILE), "logprob": -1.0, "rank": 1, "entropy": 1.0, "alternatives": other}
    sentence = {"start": 0, "end": len(HOSTILE), "tokens": 1, "score": 0.7, "logprob": -1.0}
    rate = {**SURE["false_positive_rate"], "tokens": HOSTILE}
    html = report_html(
        HOSTILE,
        UsedCalibration(source=HOSTILE, reason=None),
        explanation=HOSTILE,
        warnings=[{"code": "short", "message": HOSTILE}],
        false_positive_rate=rate,
        sentences=[sentence, sentence],
        tokens=[token],
        distribution={"method": "binoculars", "tokens": HOSTILE, "edges": [0.0, 1.0, 2.0], "human": [1, 1], "machine": [1, 1]},
    )
    assert html.count("&lt;img") == 11
    assert not any(mark in html for mark in ("<img", "{{", "${", "`"))


def test_the_caveat_names_the_texts_that_detectors_misjudge():
    for phrase in ("not a proof", "short texts", "first language is not English", "famous", "paraphrased"):
        assert phrase in report.caveat_html()


def test_what_the_score_comes_from_and_the_passages_are_shown():
    contributions = [
        {"question": "likely", "statistic": "a", "meaning": "share of <words> ranked first", "value": 0.5, "log_odds": 1.1},
        {"question": "likely", "statistic": "b", "meaning": "spread", "value": 2.25, "log_odds": -0.7},
    ]
    passages = [
        {"start": 0, "end": 5, "tokens": 200, "score": -2.0, "verdict": "human"},
        {"start": 5, "end": 11, "tokens": 190, "score": 4.0, "verdict": "machine"},
        {"start": 11, "end": 12, "tokens": 1, "score": None, "verdict": "insufficient"},
        {"start": 12, "end": 13, "tokens": 99, "score": 5.0, "verdict": "uncertain", "warnings": ["list"]},
    ]
    changes = {
        "method": "combined",
        "direction": "higher",
        "scores": {"combined": 1.0},
        "contributions": contributions,
        "passages": passages,
    }
    html = report_html("Once <b>was.", **changes)
    assert facts(html)["Share of &lt;words&gt; ranked first"] == "0.500: 1.10 towards a machine"
    assert (
        "the question that leads, in log-odds: is the text too likely for a person?</h3>" in html and "do not add up to the score" in html
    )
    assert facts(html)["Spread"] == "2.250: 0.70 towards a person"
    listed = re.search(r'aria-label="Scored passages">(.*?)</ol>', html)
    assert listed is not None and listed[1].count("<li>") == 4
    assert "Once</span>" in listed[1] and "&lt;b&gt;was</span>" in listed[1]
    assert [badge in listed[1] for badge in ("reads like human text", "reads like machine text", "too short", "no score", "a list")] == [
        True
    ] * 5
    assert "Scored passages" not in report_html()


@pytest.mark.parametrize(
    ("text", "said"), [("One.", "1 word"), ("It was a day. " * 500, "2,000 words"), ("老国王走向大海。" * 60, "480 characters")]
)
def test_how_much_is_scored_is_said_in_words_or_where_no_blanks_divide_them_in_characters(text: str, said: str):
    assert f"Scoring {said}, 5 s so far." in report.scoring_html(text, 5.2)
