"""Methods against values worked out by hand, and verdicts that do not claim more than the calibration supports."""

import math
from dataclasses import replace

import pytest

from app.engine.events import Columns
from app.engine.request import Score, Window
from app.schemas import Method
from app.scoring.calibration import Calibration, ModelIdentity
from app.scoring.detector import CalibrationChoice, ScoreOptions
from app.scoring.methods import FORMULAS, method_score
from app.scoring.normalize import normalize
from app.scoring.prepare import PreparedText
from app.scoring.score import build_score
from app.scoring.thresholds import Bucket, Histogram, MethodCalibration, ProbabilityMap, Threshold
from app.tokenizer import Encoded

COLUMNS = Columns(
    logprob=(-1.0, -3.0), rank=(1, 8), mean=(-2.0, -2.5), variance=(1.0, 3.0), cross_entropy=(2.0, 3.0), observed=(-1.5, -4.5)
)  # fmt: skip


def prepare(text: str, ids: tuple[int, ...], offsets: tuple[tuple[int, int], ...]) -> PreparedText:
    return PreparedText(text, normalize(text), Encoded(ids, offsets), Score("s", ids, (Window(0, len(ids), 1),)))


def test_each_method_is_its_formula() -> None:
    assert method_score("binoculars", COLUMNS) == pytest.approx(2.0 / 2.5)
    assert method_score("likelihood_ratio", COLUMNS) == pytest.approx(1.0)
    assert method_score("likelihood_ratio", replace(COLUMNS, observed=())) is None
    assert method_score("fast_detect", COLUMNS) == pytest.approx((-4.0 + 4.5) / 2.0)
    assert method_score("perplexity", COLUMNS) == pytest.approx(math.exp(2.0))
    assert method_score("log_rank", COLUMNS) == pytest.approx(math.log(8) / 2)


BUCKET = Bucket(
    min_tokens=64,
    max_tokens=None,
    n_human=200,
    n_machine=200,
    machine=(Threshold(value=0.8, target=0.01, measured=0.005, low=0.0001, high=0.03, n=200),),
    human=(Threshold(value=1.1, target=0.01, measured=0.01, low=0.001, high=0.04, n=200),),
    chance=ProbabilityMap(
        kind="isotonic", score=(0.5, 1.5), p=(1.0, 0.0), low=(0.9, 0.0), high=(1.0, 0.1), brier=0.1, log_loss=0.3
    ),
)  # fmt: skip
CALIBRATION = Calibration(
    made="2026",
    source="a test",
    models=ModelIdentity(performer="a", revision=None, observer="b", observer_revision=None, quantize="none", dtype="float32"),
    collapse=True,
    methods={"binoculars": MethodCalibration(direction="lower", buckets=(BUCKET,))},
)
CALIBRATED = CalibrationChoice(CALIBRATION, frozenset({"binoculars"}))
UNCALIBRATED = CalibrationChoice(reason="there is no calibration")


def uniform_columns(count: int, surprise: float, cross_entropy: float = 2.0) -> Columns:
    return Columns((-surprise,) * count, (9,) * count, (-2.0,) * count, (1.0,) * count, (cross_entropy,) * count, (-cross_entropy,) * count)


def prepare_long(count: int) -> PreparedText:
    return prepare("a" * count, tuple(range(count + 1)), ((0, 0), *[(i, i + 1) for i in range(count)]))


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("surprise", [1e-9, 30.0, 5000.0])
def test_extremely_surprising_and_unsurprising_texts_have_an_explanation(method: Method, surprise: float) -> None:
    score = build_score(0, ScoreOptions((method,), UNCALIBRATED, "token"), uniform_columns(70, surprise), prepare_long(70))
    value = score.scores[method]
    assert value is not None and math.isfinite(value) and len(score.explanation) > 60


@pytest.mark.parametrize("method", FORMULAS)
def test_without_a_scored_token_there_is_no_score(method: Method) -> None:
    assert method_score(method, Columns()) is None
    score = build_score(0, ScoreOptions((method,), CALIBRATED, "token"), Columns(), prepare("a", (5,), ((0, 1),)))
    assert (score.scores, score.verdict, score.statistics, score.tokens) == ({method: None}, "insufficient", None, [])
    assert "too short" in score.explanation and score.p_machine is None


def test_a_denominator_of_zero_gives_no_score() -> None:
    assert method_score("fast_detect", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None
    assert method_score("binoculars", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None


@pytest.mark.parametrize(("count", "verdict"), [(63, "insufficient"), (64, "uncalibrated")])
def test_the_verdict_without_a_calibration(count: int, verdict: str) -> None:
    score = build_score(3, ScoreOptions(("binoculars",), UNCALIBRATED), uniform_columns(count, 1.0), prepare_long(count))
    assert (score.index, score.verdict, score.scored_tokens, score.tokens, score.sentences) == (3, verdict, count, None, None)
    assert ("0.50 times" in score.explanation) == (count >= 64) and score.threshold is None and score.false_positive_rate is None


@pytest.mark.parametrize(("surprise", "verdict", "p"), [(1.2, "machine", 0.9), (1.9, "uncertain", 0.55), (2.6, "human", 0.2)])
def test_a_verdict_comes_with_probability_and_error_rate(surprise: float, verdict: str, p: float) -> None:
    score = build_score(0, ScoreOptions(("binoculars",), CALIBRATED), uniform_columns(100, surprise), prepare_long(100))
    assert score.verdict == verdict and score.p_machine is not None and score.p_machine.value == pytest.approx(p)
    assert score.p_machine.interval[0] <= score.p_machine.value <= score.p_machine.interval[1]
    rate = score.false_positive_rate
    assert rate is not None and (rate.target, rate.measured, rate.interval, rate.n, rate.tokens) == (
        0.01,
        0.005,
        (0.0001, 0.03),
        200,
        "64+",
    )
    assert score.threshold == 0.8 and "200 human texts" in score.explanation and "not a proof" in score.explanation


def test_a_score_outside_the_calibration_is_uncertain() -> None:
    score = build_score(0, ScoreOptions(("binoculars",), CALIBRATED), uniform_columns(100, 9.0), prepare_long(100))
    assert (score.verdict, score.p_machine) == ("uncertain", None) and "beyond those of all calibration texts" in score.explanation


def test_the_first_calibrated_method_decides() -> None:
    score = build_score(0, ScoreOptions(("log_rank", "binoculars"), CALIBRATED), uniform_columns(100, 1.2), prepare_long(100))
    assert (score.method, score.verdict) == ("binoculars", "machine") and set(score.scores) == {"log_rank", "binoculars"}
    alone = build_score(0, ScoreOptions(("log_rank",), CALIBRATED), uniform_columns(100, 1.2), prepare_long(100))
    assert (alone.method, alone.verdict) == ("log_rank", "uncalibrated")
    other_observer = CalibrationChoice(CALIBRATION, frozenset({"log_rank"}))  # its binoculars need an observer that is not served
    mismatched = build_score(0, ScoreOptions(("binoculars",), other_observer), uniform_columns(100, 1.2), prepare_long(100))
    assert mismatched.verdict == "uncalibrated"


def test_tokens_and_sentences_point_into_the_text_as_it_was_sent() -> None:
    sent = "O\u200bne  two. Thr\u0435e."
    text = normalize(sent, collapse=True)
    assert text.content == "One two. Three."
    offsets = ((0, 0), (0, 3), (3, 8), (8, 15))
    columns = Columns((-1.0, -2.0, -3.0), (1, 2, 3), (-1.0,) * 3, (1.0,) * 3, (1.0,) * 3)
    prepared = PreparedText(sent, text, Encoded((0, 1, 2, 3), offsets), Score("s", (0, 1, 2, 3), (Window(0, 4, 1),)))
    score = build_score(0, ScoreOptions(("binoculars",), UNCALIBRATED, "token"), columns, prepared)
    assert score.tokens is not None and score.sentences is not None
    assert [sent[token.start : token.end] for token in score.tokens] == ["O\u200bne", "  two.", " Thr\u0435e."]
    assert [(sent[part.start : part.end], part.tokens, part.score, part.place) for part in score.sentences] == [
        ("O\u200bne  two.", 2, 1.5, None), ("Thr\u0435e.", 1, 3.0, None)
    ]  # fmt: skip
    assert score.normalisations == {"zero_width": 1, "white_space": 1, "homoglyph": 1}


def test_a_truncated_text_is_reported() -> None:
    truncated = PreparedText(
        "a" * 70, normalize("a" * 70), Encoded((0,) * 71, ((0, 0), *[(i, i + 1) for i in range(70)])), Score("s", (0,) * 71, ()), True
    )
    score = build_score(0, ScoreOptions(("binoculars",), UNCALIBRATED), uniform_columns(70, 1.0), truncated)
    assert score.truncated and [warning.code for warning in score.warnings][:2] == ["short", "truncated"]


HISTOGRAM = Histogram(edges=(0.5, 1.0, 1.5), human=(3, 197), machine=(190, 10))


def test_the_distribution_is_that_of_texts_of_this_length_and_only_if_asked_for() -> None:
    bucket = BUCKET.model_copy(update={"histogram": HISTOGRAM})
    methods = {"binoculars": MethodCalibration(direction="lower", buckets=(bucket,))}
    choice = CalibrationChoice(CALIBRATION.model_copy(update={"methods": methods}), frozenset({"binoculars"}))
    options = ScoreOptions(("binoculars",), choice, distributions=True)
    found = build_score(0, options, uniform_columns(100, 1.2), prepare_long(100)).distribution
    assert found is not None and (found.edges, found.human, found.machine) == ([0.5, 1.0, 1.5], [3, 197], [190, 10])
    assert (found.method, found.tokens) == ("binoculars", "64+")
    for without in (replace(options, distributions=False), replace(options, choice=CALIBRATED), replace(options, choice=UNCALIBRATED)):
        assert build_score(0, without, uniform_columns(100, 1.2), prepare_long(100)).distribution is None


def test_the_rate_says_how_many_machine_texts_the_threshold_finds() -> None:
    threshold = BUCKET.machine[0].model_copy(update={"found": 0.4})
    methods = {"binoculars": MethodCalibration(direction="lower", buckets=(BUCKET.model_copy(update={"machine": (threshold,)}),))}
    choice = CalibrationChoice(CALIBRATION.model_copy(update={"methods": methods}), frozenset({"binoculars"}))
    rate = build_score(0, ScoreOptions(("binoculars",), choice), uniform_columns(100, 1.2), prepare_long(100)).false_positive_rate
    assert rate is not None and (rate.found, rate.n_machine) == (0.4, 200)
    older = build_score(0, ScoreOptions(("binoculars",), CALIBRATED), uniform_columns(100, 1.2), prepare_long(100)).false_positive_rate
    assert older is not None and (older.found, older.n_machine) == (None, None)
