import re
from typing import Any

import pytest

from app.schemas import Score, UsedCalibration
from ui import report
from ui.client import Scored

STATISTICS = {"log_perplexity": 3.1, "mean_log_rank": 1.2, "mean_entropy": 3.4, "cross_entropy": 4.18, "perplexity": 22.2}
SURE: dict[str, Any] = {
    "threshold": 0.901,
    "p_machine": {"value": 0.834, "interval": (0.71, 0.912)},
    "false_positive_rate": {"target": 0.01, "measured": 0.0125, "interval": (0.0061, 0.02), "n": 2000, "tokens": "128-256"},
}
NONE = UsedCalibration(source=None, reason="the calibration belongs to <falcon>")
SOURCE = UsedCalibration(source="measured on <stories>", reason=None)
HOSTILE = "<img src=x onerror=alert(1)>{{value}}${value}`"


def score(**changes: object) -> Score:
    fields = {"index": 0, "method": "binoculars", "direction": "lower", "verdict": "machine", "explanation": "Below <0.9>."}
    counts = {"scored_tokens": 80, "windows": 1, "truncated": False, "normalisations": {}, "warnings": [], "statistics": STATISTICS}
    return Score.model_validate({**fields, **counts, "scores": {"binoculars": 0.75}, **changes})


def shown(text: str = "", model: str | None = None, calibration: UsedCalibration = SOURCE, **changes: object) -> str:
    return report.report(Scored(score(**changes), calibration, 0.254), text, model)


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))


@pytest.mark.parametrize("calibration", [SOURCE, NONE])
@pytest.mark.parametrize(("verdict", "words"), report.VERDICTS.items())
def test_every_verdict_has_a_badge(verdict: str, words: str, calibration: UsedCalibration):
    html = shown(verdict=verdict, calibration=calibration, **(SURE if calibration.source else {}))
    assert f'<strong class="badge {verdict}">{words}</strong>' in html
    assert ("border" in html) == (calibration is SOURCE)


def test_how_sure_a_calibrated_verdict_is():
    found = facts(shown(**SURE))
    assert found["Probability of a machine, were half of all texts a machine’s"] == "0.83, 95% interval 0.71 to 0.91"
    assert found["Machine’s border"] == "below 0.901"
    assert found["Human texts taken for a machine’s"] == ("1.25% of 2,000, 95% interval 0.61% to 2%, aimed at 1%, texts of 128-256 tokens")
    assert found["Calibration"] == "measured on &lt;stories&gt;"


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (0.9991, (0.985, 1.0), "over 0.99, 95% interval 0.98 to over 0.99"),
        (0.004, (0.0, 0.014), "under 0.01, 95% interval under 0.01 to 0.01"),
    ],
)
def test_a_probability_is_never_a_certainty(value: float, interval: tuple[float, float], words: str):
    assert words in facts(shown(p_machine={"value": value, "interval": interval})).values()


def test_a_border_published_without_its_numbers():
    rate = {"target": None, "measured": None, "interval": None, "n": None, "tokens": "64+"}
    found = facts(shown(threshold=0.9, false_positive_rate=rate))
    assert found["Human texts taken for a machine’s"] == "published without a measurement; texts of 64+ tokens"
    aimed = facts(shown(threshold=0.9, false_positive_rate={**rate, "target": 0.0001}))
    assert aimed["Human texts taken for a machine’s"] == "aimed at 0.01%, published without a measurement; texts of 64+ tokens"
    assert not any(name.startswith("Probability") for name in found)


@pytest.mark.parametrize(("share", "words"), [(0, "0%"), (0.0000867, "0.01%"), (0.01, "1%"), (0.0125, "1.25%"), (0.1, "10%"), (1, "100%")])
def test_a_rate_is_no_longer_than_it_is_known(share: float, words: str):
    rate = {**SURE["false_positive_rate"], "measured": share}
    assert facts(shown(false_positive_rate=rate))["Human texts taken for a machine’s"].startswith(f"{words} of 2,000")


def test_a_rising_method_has_its_border_below():
    assert facts(shown(**SURE, method="fast_detect", scores={"fast_detect": 3.0}, direction="higher"))["Machine’s border"] == "above 0.901"


def test_without_a_calibration_the_reason_stands_there():
    html = shown(verdict="uncalibrated", calibration=NONE)
    assert facts(html)["Calibration"] == "none: the calibration belongs to &lt;falcon&gt;"
    assert not {"Machine’s border", "Human texts taken for a machine’s"} & set(facts(html))


def test_the_explanation_is_the_servers_and_escaped():
    assert "Below &lt;0.9&gt;." in shown()


def test_a_score_names_its_model_where_several_are_served():
    assert "</b> by &lt;base&gt;</span>" in shown(model="<base>")
    assert " by " not in shown()


def test_measures_show_what_there_is():
    found = facts(shown(windows=3, scored_tokens=4321, truncated=True))
    wanted = {"Perplexity of the text": "22.200", "Cross-entropy": "4.180", "Windows": "3", "Time": "0.25 s"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["Scored tokens"] == "4,321, only the beginning of the text"
    plain = facts(shown(statistics={**STATISTICS, "cross_entropy": None}))
    assert plain["Scored tokens"] == "80"
    assert not {"Cross-entropy", "Windows", "Read differently than sent"} & set(plain)


def test_other_methods_stand_beside_the_one_that_decided():
    found = facts(shown(scores={"binoculars": 0.75, "fast_detect": 2.5, "log_rank": None}))
    assert (found["Fast-DetectGPT"], found["Log-rank"], "Binoculars" in found) == ("2.500", "no score", False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_width": 3}, "3 zero-width characters left out"),
        ({"zero_width": 1, "homoglyph": 1200}, "1 zero-width character left out; 1,200 look-alike letters read as Latin"),
        ({"control": 1, "compatibility": 2}, "1 control character left out; 2 styled letters read as plain"),
        ({"white_space": 5}, "5 blanks and line breaks merged"),
    ],
)
def test_normalisations_are_words(changes: dict[str, int], words: str):
    assert facts(shown(normalisations=changes))["Read differently than sent"] == words


def test_warnings_are_sentences():
    html = shown(warnings=[{"code": "short", "message": "only 70 tokens"}, {"code": "not_english", "message": "It is <i>not</i> English."}])
    assert "<li>Only 70 tokens.</li><li>It is &lt;i&gt;not&lt;/i&gt; English.</li>" in html
    assert "Take care" not in shown()


def test_nothing_scored_has_neither_gauge_nor_passages():
    html = shown("Hi", scores={"binoculars": None}, verdict="insufficient", statistics=None, scored_tokens=0, sentences=[], tokens=[])
    assert "no score" in html
    assert not any(name in html for name in ('class="gauge"', 'class="tokens"', 'class="sentences"', "Perplexity"))


def test_one_sentence_is_the_whole_text_and_gets_no_list():
    one = {"start": 0, "end": 2, "tokens": 1, "score": 0.7, "logprob": -1.0}
    assert 'class="sentences"' not in shown("A. B.", sentences=[one])
    assert 'class="sentences"' in shown("A. B.", sentences=[one, {**one, "start": 3, "end": 5}])


def test_nothing_hostile_survives_from_any_field():
    token = {"text": HOSTILE, "start": 0, "end": len(HOSTILE), "logprob": -1.0, "rank": 1, "entropy": 1.0}
    sentence = {"start": 0, "end": len(HOSTILE), "tokens": 1, "score": 0.7, "logprob": -1.0}
    rate = {**SURE["false_positive_rate"], "tokens": HOSTILE}
    html = shown(
        HOSTILE,
        HOSTILE,
        UsedCalibration(source=HOSTILE, reason=None),
        explanation=HOSTILE,
        warnings=[{"code": "short", "message": HOSTILE}],
        false_positive_rate=rate,
        sentences=[sentence, sentence],
        tokens=[token],
    )
    assert html.count("&lt;img") == 8
    assert not any(mark in html for mark in ("<img", "{{", "${", "`"))


def test_the_caveat_names_who_is_wronged():
    for words in ("not a proof", "short texts", "first language is not English", "famous", "paraphrased"):
        assert words in report.caveat()
