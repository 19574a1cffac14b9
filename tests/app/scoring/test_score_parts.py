"""Passages of a long text, sentences by their place, and texts on which no verdict is given."""

from dataclasses import replace

import pytest

from app.engine.events import Columns
from app.engine.request import Score
from app.schemas import Granularity
from app.scoring.calibration import Calibration, ModelIdentity
from app.scoring.combined import CombinedModel, Question, Term
from app.scoring.detector import CalibrationChoice, ScoreOptions
from app.scoring.normalize import normalize
from app.scoring.prepare import PreparedText
from app.scoring.score import build_score
from app.scoring.thresholds import Bucket, MethodCalibration, Threshold
from app.scoring.windows import passages
from app.tokenizer import Encoded

BUCKET = Bucket(
    min_tokens=64, max_tokens=None, n_human=200, n_machine=200, chance=None,
    machine=(Threshold(value=1.0, target=0.01),), human=(Threshold(value=-1.0, target=0.01),),
)  # fmt: skip
CALIBRATION = Calibration(
    made="2026",
    source="a test",
    models=ModelIdentity(performer="a", revision=None, observer=None, observer_revision=None, quantize="none", dtype="float32"),
    collapse=True,
    passage_tokens=100,
    combined=CombinedModel(
        questions=(Question(name="likely", intercept=0.0, terms=(Term(statistic="surprise_where_sure", centre=2, spread=1, weight=-2),)),)
    ),
    methods={"combined": MethodCalibration(direction="higher", buckets=(BUCKET,))},
)
WORDS = "it was the best of times and it was the worst of times for the king who had three sons at home".split()


def options(granularity: Granularity = "none", target_fpr: float | None = None) -> ScoreOptions:
    return ScoreOptions(("combined",), CalibrationChoice(CALIBRATION, frozenset({"combined"})), granularity, target_fpr)


def prepared_words(count: int, join: str = " ") -> PreparedText:
    """One token a word; a sentence has ten words."""
    words = [WORDS[n % len(WORDS)] + ("." if n % 10 == 9 else "") for n in range(count)]
    words = [word.capitalize() if n % 10 == 0 else word for n, word in enumerate(words)]
    sent = join.join(words)
    text, offsets, end = normalize(sent, collapse=True), [], 0
    for word in words:
        offsets.append((max(0, end - (end > 0)), end + len(word)))
        end += len(word) + 1
    ids = tuple(range(count))
    return PreparedText(sent, text, Encoded(ids, tuple(offsets)), Score("s", ids, passages(count, 100, range(0, count, 10))))


def columns(*surprises: float) -> Columns:
    count = len(surprises)
    return Columns(tuple(-nats for nats in surprises), (9,) * count, (-2.0,) * count, (1.0,) * count)


def test_a_text_that_changes_shows_where() -> None:
    prepared = prepared_words(401)
    score = build_score(0, options(), columns(*[4.0] * 199, *[0.9] * 201), prepared)
    assert score.passages is not None and score.windows == 4
    assert [passage.verdict for passage in score.passages] == ["human", "human", "machine", "machine"]
    assert sum(passage.tokens for passage in score.passages) == score.scored_tokens == 400
    assert score.passages[2].score == pytest.approx(2.2) and score.passages[0].score == pytest.approx(-4.0)
    assert [prepared.sent[passage.start] for passage in score.passages[1:]] == [" "] * 3  # the blank counts to the word after it
    assert prepared.sent[score.passages[1].start :].strip()[0].isupper()


def test_a_short_text_has_no_passages() -> None:
    assert build_score(0, options(), columns(*[2.0] * 99), prepared_words(100)).passages is None


def test_sentences_have_places_by_their_score() -> None:
    surprises = [nats for nats in (3.0, 1.0, 2.0) for _ in range(10)]
    score = build_score(0, options("sentence"), columns(*surprises[1:]), prepared_words(30))
    assert score.sentences is not None and [sentence.place for sentence in score.sentences] == [3, 1, 2]


def test_a_verdict_says_what_it_comes_from() -> None:
    score = build_score(0, options(), columns(*[0.9] * 99), prepared_words(100))
    assert score.verdict == "machine" and score.contributions is not None
    (only,) = score.contributions
    assert (only.question, only.statistic, only.value, only.log_odds) == (
        "likely",
        "surprise_where_sure",
        pytest.approx(0.9),
        pytest.approx(2.2),
    )
    assert "point to a machine's writing" in score.explanation


def test_an_uncertain_verdict_points_to_no_side() -> None:
    score = build_score(0, options(), columns(*[2.05] * 99), prepared_words(100))
    assert score.verdict == "uncertain" and score.threshold is not None
    assert score.explanation.startswith(f"Taken together, the statistics of the text's tokens give {score.scores['combined']:.3f}; higher")
    assert "point to" not in score.explanation and "Texts of both kinds score like this" in score.explanation


@pytest.mark.parametrize(
    ("prepared", "surprise", "code"),
    [
        (prepared_words(100, join="\n- "), 0.9, "list"),
        (prepared_words(200), 0.2, "memorised"),
    ],
)
def test_a_text_that_the_detector_was_not_made_for_is_uncertain(prepared: PreparedText, surprise: float, code: str) -> None:
    score = build_score(0, options(), columns(*[surprise] * (len(prepared.encoded.ids) - 1)), prepared)
    assert score.verdict == "uncertain" and score.p_machine is None
    warning = next(warning for warning in score.warnings if warning.code == code)
    assert score.explanation.startswith(f"No verdict: {warning.message}.") and "point to" not in score.explanation


def test_a_passage_that_is_no_prose_has_no_verdict_and_the_others_keep_theirs() -> None:
    prepared = prepared_words(401)
    foreign = prepared.text.content[: len(prepared.text.content) // 2].translate(str.maketrans("aeo", "жфц"))
    content = foreign + prepared.text.content[len(foreign) :]
    mixed = replace(prepared, sent=content, text=replace(prepared.text, content=content))
    score = build_score(0, options(), columns(*[0.9] * 400), mixed)
    assert score.passages is not None
    assert [(passage.verdict, passage.warnings) for passage in score.passages] == [
        ("uncertain", ["not_english"]),
        ("uncertain", ["not_english"]),
        ("machine", []),
        ("machine", []),
    ]
    assert score.passages[0].p_machine is None


def test_a_text_whose_passages_differ_says_so() -> None:
    mixed = build_score(0, options(), columns(*[4.0] * 199, *[0.9] * 201), prepared_words(401))
    assert "2 of the 4 passages read like a machine's" in mixed.explanation
    same = build_score(0, options(), columns(*[0.9] * 400), prepared_words(401))
    assert "passages" not in same.explanation
