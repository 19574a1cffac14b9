"""The statistics of a text, the score that `combined` makes of them, and the weights that it learns."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import ValidationError

from app.engine.events import Columns
from app.scoring.combined import LIMIT, CombinedModel, Question, Term
from app.scoring.combining import MIN_TEXTS, QUESTIONS, fit_all, fit_combined, question_of, with_combined, with_held_out_combined
from app.scoring.features import OBSERVED, STATISTICS, statistics_of
from app.scoring.methods import method_score
from app.scoring.sample import ScoreRow, auroc, sample_of

COLUMNS = Columns(
    logprob=(-1.0, -3.0, -0.5, -9.0), rank=(1, 8, 1, 500), mean=(-2.0, -2.5, -0.25, -1.0), variance=(1.0, 4.0, 0.25, 1.0)
)  # fmt: skip


def test_each_statistic_is_its_formula() -> None:
    assert statistics_of(COLUMNS) == pytest.approx(
        {
            "surprise_where_sure": (0.5 + 9.0) / 2,  # entropies 2, 2.5, 0.25 and 1: the median is 1.5
            "share_of_first_rank": 0.5,
            "spread_of_surprise": math.sqrt(sum((s - 3.375) ** 2 for s in (1, 3, 0.5, 9)) / 4),
            "spread_of_entropy": math.sqrt(sum((s - 1.4375) ** 2 for s in (2, 2.5, 0.25, 1)) / 4),
            "surprise_to_rank": 3.375 / ((math.log(8) + math.log(500)) / 4),
            "standard_score": (1.0 - 0.25 - 0.5 - 4.0) / 4,
            "excess_surprise": (9 - 1 - 2) / 4,
            "share_beyond_rank_100": 0.25,
        }
    )


def test_a_text_that_the_observer_read_has_the_statistics_of_both_models() -> None:
    crossed, observed = (2.0, 3.0, 0.5, 1.5), (-1.5, -2.5, -1.0, -10.0)
    values = statistics_of(replace(COLUMNS, cross_entropy=crossed, observed=observed))
    assert values.keys() == STATISTICS.keys() and values.keys() - statistics_of(COLUMNS).keys() == OBSERVED
    ratio = 0.0
    for performer, observer in zip(COLUMNS.logprob, observed, strict=True):
        ratio += (performer - observer) / 4
    assert values["binoculars"] == pytest.approx(13.5 / 7.0) and values["likelihood_ratio"] == pytest.approx(ratio)
    certain = statistics_of(Columns((-0.0,), (1,), (0.0,), (0.0,), (0.0,), (-0.5,)))
    assert (certain["binoculars"], certain["likelihood_ratio"]) == (0.0, 0.5)


@pytest.mark.parametrize(
    "columns",
    [
        Columns((-1.0,), (1,), (-1.0,), (0.0,)),
        Columns((-0.0,) * 9, (1,) * 9, (0.0,) * 9, (0.0,) * 9),
        Columns((-99.0,) * 70, (49152,) * 70, (-10.0,) * 70, (0.5,) * 70),
    ],
)
def test_the_strangest_texts_have_finite_statistics(columns: Columns) -> None:
    assert all(math.isfinite(value) for value in statistics_of(columns).values())


def model(**changes: float) -> CombinedModel:
    term = Term(statistic="share_of_first_rank", centre=0.5, spread=0.1, weight=2.0)
    likely = Question(name="likely", intercept=-1.0, terms=(term.model_copy(update=changes),))
    drawn = Question(name="drawn", intercept=0.5, terms=(Term(statistic="spread_of_surprise", centre=2.0, spread=0.5, weight=-1.0),))
    return CombinedModel(questions=(likely, drawn))


def test_the_score_is_that_of_a_mixture() -> None:
    values = {"share_of_first_rank": 0.6, "spread_of_surprise": 2.5}
    likely, drawn = -1.0 + 2.0, 0.5 - 1.0
    assert model().score(values) == pytest.approx(math.log((math.exp(likely) + math.exp(drawn)) / 2))
    assert model().leading(values).name == "likely" and model(weight=-2.0).leading(values).name == "drawn"
    assert model().score({**values, "share_of_first_rank": 1e9}) == pytest.approx(-1.0 + 2.0 * LIMIT, abs=0.7)  # clipped
    assert method_score("combined", COLUMNS) is None
    assert method_score("combined", COLUMNS, model()) == pytest.approx(model().score(statistics_of(COLUMNS)))


def test_weights_of_an_unknown_statistic_are_refused() -> None:
    with pytest.raises(ValidationError, match="magic is none of surprise_where_sure"):
        Term(statistic="magic", centre=0, spread=1, weight=1)
    with pytest.raises(ValidationError, match="greater than 0"):
        Term(statistic="spread_of_surprise", centre=0, spread=0, weight=1)


def rows_of(kind: str, count: int, shift: dict[str, float], seed: int, domain: str = "news", tokens: int = 100) -> list[ScoreRow]:
    """Rows whose statistics are drawn around 0, shifted. `kind`: the generator, or "" for people."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        values = {name: rng.gauss(shift.get(name, 0.0), 1.0) for name in STATISTICS}
        scores = {"perplexity": math.exp(values["surprise_where_sure"]), "fast_detect": -values["spread_of_surprise"]}
        rows.append(ScoreRow(bool(kind), f"{domain}/{kind}/{number}", domain, tokens, scores, values, kind))
    return rows


LIKELY, DRAWN = {"surprise_where_sure": -3.0}, {"spread_of_surprise": -3.0}


def mixed(domain: str = "news") -> list[ScoreRow]:
    return [
        *rows_of("", 300, {}, 1, domain), *rows_of("chat", 150, LIKELY, 2, domain), *rows_of("samples", 150, DRAWN, 3, domain)
    ]  # fmt: skip


def test_each_kind_of_writer_gets_the_question_that_finds_it() -> None:
    rows = mixed()
    humans = [row for row in rows if not row.machine]
    assert question_of(humans, [row for row in rows if row.generator == "chat"]) == "likely"
    assert question_of(humans, [row for row in rows if row.generator == "samples"]) == "drawn"
    fitted = fit_combined(rows)
    assert fitted is not None and [question.name for question in fitted.questions] == ["likely", "drawn", "pair"]
    assert all(tuple(term.statistic for term in question.terms) == QUESTIONS[question.name] for question in fitted.questions)
    weights = {term.statistic: term.weight for question in fitted.questions for term in question.terms}
    assert weights["surprise_where_sure"] < -1 and weights["spread_of_surprise"] < -1


def test_texts_that_no_observer_read_are_weighed_by_the_performers_statistics() -> None:
    rows = [replace(row, values={name: value for name, value in row.values.items() if name not in OBSERVED}) for row in mixed()]
    alone, pair = fit_combined(rows), fit_combined(mixed())
    assert alone is not None and pair is not None and not alone.needs_observer and pair.needs_observer
    assert [question.name for question in alone.questions] == ["likely", "drawn"]
    assert {term.statistic for question in alone.questions for term in question.terms} == STATISTICS.keys() - OBSERVED


def test_writers_of_a_kind_that_was_not_fitted_on_are_found_by_the_pair() -> None:
    """The pair's question is fitted on all machine texts, and says nothing where the ratio tells nothing."""
    like_the_model = {"likelihood_ratio": 3.0}
    rows = [*rows_of("", 300, {}, 1), *rows_of("chat", 150, {**LIKELY, **like_the_model}, 2)]
    fitted, blind = fit_combined(rows), fit_combined(mixed())
    assert fitted is not None and blind is not None
    fresh = [*rows_of("", 200, {}, 9), *rows_of("other", 100, like_the_model, 10)]
    assert auroc(sample_of(with_combined(fresh, fitted), "combined")) > 0.9 > auroc(sample_of(fresh, "perplexity"))
    assert abs(blind.questions[-1].terms[0].weight) < 0.3


def test_writers_of_a_domain_without_people_are_compared_with_all_people() -> None:
    samples = [replace(row, domain="T=1") for row in rows_of("samples", 150, DRAWN, 3)]
    assert question_of(rows_of("", 300, {}, 1), samples) == "drawn"


def test_both_kinds_of_writers_are_found_by_one_score() -> None:
    fitted = fit_combined(mixed())
    assert fitted is not None
    fresh = [*rows_of("", 200, {}, 9), *rows_of("other chat", 100, LIKELY, 10), *rows_of("other samples", 100, DRAWN, 11)]
    found = auroc(sample_of(with_combined(fresh, fitted), "combined"))
    assert found > 0.95 > max(auroc(sample_of(fresh, method)) for method in ("perplexity", "fast_detect"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("few_draws")
def test_too_few_texts_give_no_weights() -> None:
    few = [*rows_of("", 300, {}, 1), *rows_of("chat", MIN_TEXTS - 1, LIKELY, 2)]
    assert fit_combined(few) is None and fit_combined([]) is None
    combined, methods, _, rows = fit_all(few, (0.05,), (64,))
    assert combined is None and "combined" not in methods and "combined" not in rows[0].scores


@pytest.mark.parametrize("domains", [("news",), ("news", "tales")])
def test_groups_are_held_out(domains: tuple[str, ...]) -> None:
    rows = [row for domain in domains for row in mixed(domain)]
    scored = with_held_out_combined(rows)
    everything = fit_combined(rows)
    assert everything is not None and all(row.scores["combined"] is not None for row in scored)
    assert scored[0].scores["combined"] != pytest.approx(everything.score(rows[0].values), rel=1e-9)
    assert [row.scores["combined"] for row in scored] == pytest.approx([everything.score(row.values) for row in rows], abs=2)


@pytest.mark.usefixtures("few_draws")
def test_what_a_border_finds_is_counted_by_the_weights_that_judge() -> None:
    """Not by the weights that a domain was left out of: those give scores of another scale."""
    rows = [*mixed("news"), *rows_of("", 300, {"surprise_where_sure": -1.5}, 5, "manuals"), *rows_of("chat", 150, LIKELY, 6, "manuals")]
    weights, methods, _, held_out = fit_all(rows, (0.05,), (64,))
    assert weights is not None
    threshold = methods["combined"].buckets[0].machine[0]

    def share(scored: Sequence[ScoreRow]) -> float:
        scores = [row.scores["combined"] or 0.0 for row in scored if row.machine]
        return sum(score > threshold.value for score in scores) / len(scores)

    assert threshold.found == pytest.approx(share(with_combined(rows, weights))) != pytest.approx(share(held_out))


@pytest.mark.usefixtures("few_draws")
def test_the_border_is_that_of_the_strictest_domain() -> None:
    """Texts of a domain whose people write likelier texts are not called a machine's more often than promised."""
    plain = [*mixed("news"), *rows_of("", 300, {"surprise_where_sure": -1.5}, 5, "manuals"), *rows_of("chat", 150, LIKELY, 6, "manuals")]
    _, methods, _, rows = fit_all(plain, (0.01,), (64,))
    border = methods["combined"].buckets[0].machine[0].value
    manuals = [row.scores["combined"] for row in rows if row.domain == "manuals" and not row.machine]
    assert sum(score > border for score in manuals if score is not None) <= 0.005 * len(manuals)
    assert all(replace(row, scores={}).values for row in rows)
