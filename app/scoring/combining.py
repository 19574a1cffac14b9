"""Learns the weights of `combined` from scored texts. Needs scikit-learn, which the serving process does not import."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from app.schemas import Method
from app.scoring.combined import LIMIT, CombinedModel, Question, QuestionName, Term
from app.scoring.fitting import BUCKET_STARTS, fit_methods, with_counts
from app.scoring.sample import ScoreRow, auroc, sample_of
from app.scoring.thresholds import MethodCalibration

# Few, and none that looks at where in the text a token stands: in pairs that share their opening, that tells the two apart. Those of both
# models are left out where no observer read the texts.
QUESTIONS: dict[QuestionName, tuple[str, ...]] = {
    "likely": ("surprise_where_sure", "share_of_first_rank", "binoculars", "likelihood_ratio"),
    "drawn": (
        "spread_of_surprise", "spread_of_entropy", "surprise_to_rank", "standard_score", "excess_surprise", "share_beyond_rank_100",
        "binoculars", "likelihood_ratio",
    ),
    "pair": ("likelihood_ratio",),
}  # fmt: skip
TELLING: dict[QuestionName, Method] = {"likely": "perplexity", "drawn": "fast_detect"}  # the method that finds the question's writers
MIN_TEXTS = 100  # of each class that a question is fitted on
FOLDS = 5


def fit_all(
    rows: Sequence[ScoreRow], targets: Sequence[float], starts: Sequence[int] = BUCKET_STARTS, people: Sequence[ScoreRow] = ()
) -> tuple[CombinedModel | None, dict[Method, MethodCalibration], list[str], list[ScoreRow]]:
    """`combined` and every method, calibrated; what was refused; the rows, with the held-out scores that `combined` is calibrated on.

    Thresholds and probabilities of `combined` come from the held-out scores. How many texts lie where, and what a threshold finds, is
    counted by the scores of the returned weights, which judge from then on. `people`: texts of more kinds, for stricter thresholds.
    """
    model = fit_combined(rows)
    held_out = with_held_out_combined(rows) if model else list(rows)
    methods, refused = fit_methods(held_out, targets, starts, with_combined(people, model))
    if model is None or "combined" not in methods:
        return None, methods, refused, held_out
    methods["combined"] = with_counts(methods["combined"], "combined", with_combined(rows, model))
    return model, methods, refused, held_out


def fit_combined(rows: Sequence[ScoreRow]) -> CombinedModel | None:
    """One question for each kind of writer among the machine texts, and `pair` for all of them; None for too few texts.

    A generator belongs to the question whose method (`TELLING`) tells it from the human texts better. `pair` does not depend on the kind of
    writer: kinds that were not fitted on are found by it, too. A question without a statistic that all texts have is left out.
    """
    humans = [row for row in rows if not row.machine and row.values]
    by_question: dict[QuestionName, list[ScoreRow]] = {name: [] for name in QUESTIONS}
    for texts in _by_generator(rows).values():
        by_question[question_of(humans, texts)].extend(texts)
        by_question["pair"].extend(texts)
    fitted = (_fit(name, humans, texts) for name, texts in by_question.items() if min(len(humans), len(texts)) >= MIN_TEXTS)
    questions = tuple(question for question in fitted if question)
    return CombinedModel(questions=questions) if questions else None


def _by_generator(rows: Sequence[ScoreRow]) -> dict[str, list[ScoreRow]]:
    found: dict[str, list[ScoreRow]] = {}
    for row in rows:
        if row.machine and row.values:
            found.setdefault(row.generator, []).append(row)
    return found


def question_of(humans: Sequence[ScoreRow], texts: Sequence[ScoreRow]) -> QuestionName:
    """Compared on the human texts of the domains that the machine texts have; on all of them where those have none."""
    domains = {row.domain for row in texts}
    compared = [*([row for row in humans if row.domain in domains] or humans), *texts]
    return max(TELLING, key=lambda name: auroc(sample_of(compared, TELLING[name])) if humans else 0.0)


def _fit(name: QuestionName, humans: Sequence[ScoreRow], machines: Sequence[ScoreRow]) -> Question | None:
    """Logistic regression with both classes weighted equally, on standardised and clipped statistics: those that all texts have."""
    statistics = [each for each in QUESTIONS[name] if all(each in row.values for row in (*humans, *machines))]
    if not statistics:
        return None
    values = np.array([[row.values[statistic] for statistic in statistics] for row in (*humans, *machines)])
    truth = np.arange(len(values)) >= len(humans)
    centre, spread = values.mean(0), np.maximum(values.std(0), 1e-9)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(class_weight="balanced", max_iter=2000).fit(np.clip((values - centre) / spread, -LIMIT, LIMIT), truth)
    terms = zip(statistics, centre, spread, fitted.coef_[0], strict=True)
    return Question(
        name=name,
        intercept=float(fitted.intercept_[0]),
        terms=tuple(Term(statistic=each, centre=float(c), spread=float(s), weight=float(w)) for each, c, s, w in terms),
    )


def with_combined(rows: Sequence[ScoreRow], model: CombinedModel | None) -> list[ScoreRow]:
    """The rows with the score of `combined` by the model, where they have statistics; as they are without a model."""
    if model is None:
        return list(rows)
    return [replace(row, scores={**row.scores, "combined": model.score(row.values) if row.values else None}) for row in rows]


def with_held_out_combined(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """The rows with the score of `combined` by a model that was fitted without their group, in at most five folds.

    Weights that a whole domain was left out of score on another scale than those that judge, so a border from them would not fit.
    A row has no such score where too few texts are left to fit on.
    """
    groups = [row.group for row in rows]
    if len(set(groups)) < FOLDS:
        return list(rows)
    from sklearn.model_selection import GroupKFold

    scored = list(rows)
    for _, held_out in GroupKFold(FOLDS, shuffle=True, random_state=0).split(groups, groups=groups):
        numbers = set(map(int, held_out))
        if model := fit_combined([row for number, row in enumerate(rows) if number not in numbers]):
            for number in numbers:
                scored[number] = with_combined([rows[number]], model)[0]
    return scored
