"""Methods as arithmetic on columns worked out by hand, and verdicts that do not claim more than is known."""

import math

import pytest

from app.engine.request import Columns, Score, Window
from app.scoring.score import Reading, Text, assess, clean, score_of
from app.tokenizer import Encoded

COLUMNS = Columns(
    logprob=(-1.0, -3.0), rank=(1, 8), mean=(-2.0, -2.5), variance=(1.0, 3.0), cross_entropy=(2.0, 3.0)
)  # fmt: skip


def reading(text: str, ids: tuple[int, ...], offsets: tuple[tuple[int, int], ...]) -> Reading:
    return Reading(Text(text, 1), Encoded(ids, offsets), Score("s", ids, (Window(0, len(ids), 1),)))


def test_each_method_is_its_formula() -> None:
    assert score_of("binoculars", COLUMNS) == pytest.approx(2.0 / 2.5)
    assert score_of("fast_detect", COLUMNS) == pytest.approx((-4.0 + 4.5) / 2.0)
    assert score_of("perplexity", COLUMNS) == pytest.approx(math.exp(2.0))
    assert score_of("log_rank", COLUMNS) == pytest.approx(math.log(8) / 2)


@pytest.mark.parametrize("method", ["binoculars", "fast_detect", "perplexity", "log_rank"])
@pytest.mark.parametrize("surprise", [1e-9, 30.0, 5000.0])
def test_the_most_and_the_least_surprising_texts_have_an_explanation(method: str, surprise: float) -> None:
    count = 70
    columns = Columns((-surprise,) * count, (4000,) * count, (-2.0,) * count, (1.0,) * count, (2.0,) * count)
    made = assess(0, method, columns, reading("a", (5,) * (count + 1), ((0, 1),) * (count + 1)), True)  # type: ignore[arg-type]
    assert made.score is not None and math.isfinite(made.score) and len(made.explanation) > 60


@pytest.mark.parametrize("method", ["binoculars", "fast_detect", "perplexity", "log_rank"])
def test_no_scored_token_is_no_score(method: str) -> None:
    assert score_of(method, Columns()) is None  # type: ignore[arg-type]
    made = assess(0, method, Columns(), reading("a", (5,), ((0, 1),)), True)  # type: ignore[arg-type]
    assert (made.score, made.verdict, made.statistics, made.tokens) == (None, "insufficient", None, [])
    assert "too short" in made.explanation


def test_a_text_the_model_is_sure_of_has_no_spread_to_divide_by() -> None:
    assert score_of("fast_detect", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None
    assert score_of("binoculars", Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,))) is None


@pytest.mark.parametrize(("count", "verdict"), [(63, "insufficient"), (64, "uncalibrated")])
def test_the_verdict_without_a_calibration(count: int, verdict: str) -> None:
    columns = Columns(*[(value,) * count for value in (-1.0, 1, -1.0, 1.0, 2.0)])
    text = reading("a" * count, (0,) * (count + 1), ((0, 0), *[(i, i + 1) for i in range(count)]))
    made = assess(3, "binoculars", columns, text, False)
    assert (made.index, made.verdict, made.scored_tokens, made.tokens) == (3, verdict, count, None)
    assert "0.50 times" in made.explanation


def test_tokens_point_into_the_text() -> None:
    made = assess(0, "log_rank", COLUMNS, reading("ab cd", (0, 1, 2), ((0, 0), (0, 2), (2, 5))), True)
    assert made.tokens is not None
    assert [(token.text, token.rank) for token in made.tokens] == [("ab", 1), (" cd", 8)]
    assert (made.removed_characters, made.windows) == (1, 1)


def test_zero_width_characters_are_taken_out_and_counted() -> None:
    assert clean("a\u200bb\ufeffc d") == Text("abc d", 2)
