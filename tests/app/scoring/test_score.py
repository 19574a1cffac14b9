"""Methods as arithmetic on columns worked out by hand, and verdicts that do not claim more than is known."""

import math
from dataclasses import replace

import pytest

from app.engine.request import Columns, Score, Window
from app.schemas import Method
from app.scoring.calibration import Calibration, Models
from app.scoring.detector import Ground
from app.scoring.fitting import METHODS
from app.scoring.normalize import normal
from app.scoring.score import Question, Reading, assess, score_of
from app.scoring.thresholds import Border, Bucket, Chance, Scale
from app.tokenizer import Encoded

COLUMNS = Columns(
    logprob=(-1.0, -3.0), rank=(1, 8), mean=(-2.0, -2.5), variance=(1.0, 3.0), cross_entropy=(2.0, 3.0), observed=(-1.5, -4.5)
)  # fmt: skip


def reading(text: str, ids: tuple[int, ...], offsets: tuple[tuple[int, int], ...]) -> Reading:
    return Reading(normal(text), Encoded(ids, offsets), Score("s", ids, (Window(0, len(ids), 1),)))


def test_each_method_is_its_formula() -> None:
    assert score_of("binoculars", COLUMNS) == pytest.approx(2.0 / 2.5)
    assert score_of("likelihood_ratio", COLUMNS) == pytest.approx(1.0)
    assert score_of("likelihood_ratio", replace(COLUMNS, observed=())) is None
    assert score_of("fast_detect", COLUMNS) == pytest.approx((-4.0 + 4.5) / 2.0)
    assert score_of("perplexity", COLUMNS) == pytest.approx(math.exp(2.0))
    assert score_of("log_rank", COLUMNS) == pytest.approx(math.log(8) / 2)


BORDERS = Bucket(
    min_tokens=64,
    max_tokens=None,
    n_human=200,
    n_machine=200,
    machine=(Border(value=0.8, target=0.01, measured=0.005, low=0.0001, high=0.03, n=200),),
    human=(Border(value=1.1, target=0.01, measured=0.01, low=0.001, high=0.04, n=200),),
    chance=Chance(
        kind="isotonic", score=(0.5, 1.5), p=(1.0, 0.0), low=(0.9, 0.0), high=(1.0, 0.1), brier=0.1, log_loss=0.3
    ),
)  # fmt: skip
CALIBRATION = Calibration(
    made="2026",
    source="a test",
    models=Models(performer="a", revision=None, observer="b", observer_revision=None, quantize="none", dtype="float32"),
    collapse=True,
    methods={"binoculars": Scale(direction="lower", buckets=(BORDERS,))},
)
CALIBRATED = Ground(CALIBRATION, frozenset({"binoculars"}))
NONE = Ground(reason="there is none")


def even(count: int, surprise: float, crossed: float = 2.0) -> Columns:
    return Columns((-surprise,) * count, (9,) * count, (-2.0,) * count, (1.0,) * count, (crossed,) * count, (-crossed,) * count)


def long_reading(count: int) -> Reading:
    return reading("a" * count, (0,) * (count + 1), ((0, 0), *[(i, i + 1) for i in range(count)]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("surprise", [1e-9, 30.0, 5000.0])
def test_the_most_and_the_least_surprising_texts_have_an_explanation(method: Method, surprise: float) -> None:
    made = assess(0, Question((method,), NONE, "token"), even(70, surprise), long_reading(70))
    value = made.scores[method]
    assert value is not None and math.isfinite(value) and len(made.explanation) > 60


@pytest.mark.parametrize("method", METHODS)
def test_no_scored_token_is_no_score(method: Method) -> None:
    assert score_of(method, Columns()) is None
    made = assess(0, Question((method,), CALIBRATED, "token"), Columns(), reading("a", (5,), ((0, 1),)))
    assert (made.scores, made.verdict, made.statistics, made.tokens) == ({method: None}, "insufficient", None, [])
    assert "too short" in made.explanation and made.p_machine is None


def test_a_text_the_model_is_sure_of_has_no_spread_to_divide_by() -> None:
    assert score_of("fast_detect", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None
    assert score_of("binoculars", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None


@pytest.mark.parametrize(("count", "verdict"), [(63, "insufficient"), (64, "uncalibrated")])
def test_the_verdict_without_a_calibration(count: int, verdict: str) -> None:
    made = assess(3, Question(("binoculars",), NONE), even(count, 1.0), long_reading(count))
    assert (made.index, made.verdict, made.scored_tokens, made.tokens, made.sentences) == (3, verdict, count, None, None)
    assert "0.50 times" in made.explanation and made.threshold is None and made.false_positive_rate is None


@pytest.mark.parametrize(("surprise", "verdict", "p"), [(1.2, "machine", 0.9), (1.9, "uncertain", 0.55), (2.6, "human", 0.2)])
def test_the_verdict_of_a_calibration_says_how_sure_it_is(surprise: float, verdict: str, p: float) -> None:
    made = assess(0, Question(("binoculars",), CALIBRATED), even(100, surprise), long_reading(100))
    assert made.verdict == verdict and made.p_machine is not None and made.p_machine.value == pytest.approx(p)
    assert made.p_machine.interval[0] <= made.p_machine.value <= made.p_machine.interval[1]
    rate = made.false_positive_rate
    assert rate is not None and (rate.target, rate.measured, rate.interval, rate.n, rate.tokens) == (
        0.01,
        0.005,
        (0.0001, 0.03),
        200,
        "64+",
    )
    assert made.threshold == 0.8 and "200 human texts" in made.explanation and "not a proof" in made.explanation


def test_a_score_beyond_every_text_that_was_measured_is_uncertain() -> None:
    made = assess(0, Question(("binoculars",), CALIBRATED), even(100, 9.0), long_reading(100))
    assert (made.verdict, made.p_machine) == ("uncertain", None) and "beyond every text" in made.explanation


def test_the_verdict_rests_on_the_first_method_that_is_calibrated() -> None:
    made = assess(0, Question(("log_rank", "binoculars"), CALIBRATED), even(100, 1.2), long_reading(100))
    assert (made.method, made.verdict) == ("binoculars", "machine") and set(made.scores) == {"log_rank", "binoculars"}
    alone = assess(0, Question(("log_rank",), CALIBRATED), even(100, 1.2), long_reading(100))
    assert (alone.method, alone.verdict) == ("log_rank", "uncalibrated")
    elsewhere = Ground(CALIBRATION, frozenset({"log_rank"}))  # its binoculars belong to another observer
    assert assess(0, Question(("binoculars",), elsewhere), even(100, 1.2), long_reading(100)).verdict == "uncalibrated"


def test_tokens_and_sentences_point_into_the_text_as_it_was_sent() -> None:
    sent = "O\u200bne  two. Thr\u0435e."
    text = normal(sent, collapse=True)
    assert text.content == "One two. Three."
    offsets = ((0, 0), (0, 3), (3, 8), (8, 15))
    columns = Columns((-1.0, -2.0, -3.0), (1, 2, 3), (-1.0,) * 3, (1.0,) * 3, (1.0,) * 3)
    reading_ = Reading(text, Encoded((0, 1, 2, 3), offsets), Score("s", (0, 1, 2, 3), (Window(0, 4, 1),)))
    made = assess(0, Question(("binoculars",), NONE, "token"), columns, reading_)
    assert made.tokens is not None and made.sentences is not None
    assert [sent[token.start : token.end] for token in made.tokens] == ["O\u200bne", "  two.", " Thr\u0435e."]
    assert [(sent[one.start : one.end], one.tokens, one.score) for one in made.sentences] == [
        ("O\u200bne  two.", 2, 1.5), ("Thr\u0435e.", 1, 3.0)
    ]  # fmt: skip
    assert made.normalisations == {"zero_width": 1, "white_space": 1, "homoglyph": 1}


def test_what_was_left_out_is_warned_of() -> None:
    cut = Reading(normal("a" * 70), Encoded((0,) * 71, ((0, 0), *[(i, i + 1) for i in range(70)])), Score("s", (0,) * 71, ()), True)
    made = assess(0, Question(("binoculars",), NONE), even(70, 1.0), cut)
    assert made.truncated and [one.code for one in made.warnings][0] == "short" and made.warnings[-1].code == "truncated"
