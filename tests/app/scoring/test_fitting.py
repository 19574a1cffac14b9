"""Thresholds with a known error rate, intervals checked against SciPy, monotone maps, and refusals for too few texts."""

from dataclasses import replace

import numpy as np
import pytest

from app.errors import SetupError
from app.scoring import fitting
from app.scoring.calibration import Calibration, ModelIdentity
from app.scoring.fitting import (
    clopper_pearson,
    fit_and_predict,
    fit_bucket,
    fit_methods,
    fit_probability_map,
    fit_threshold,
    folds,
    losses,
    machine_thresholds,
    out_of_fold_probabilities,
    pooled_threshold,
    probability_bounds,
    texts_needed,
    threshold_at,
)
from app.scoring.rates import Rates, judged_out_of_fold, out_of_fold_rates, rates_at_threshold, rates_of, rows_by_domain
from app.scoring.report import rates_cell, render
from app.scoring.sample import Sample, ScoreRow, auroc, bootstrap_interval, bootstrap_samples, sample_of
from app.scoring.thresholds import sign_of


def normal_sample(humans=400, machines=400, apart=2.0, seed=0, per_group=1):
    rng = np.random.default_rng(seed)
    score = np.concatenate([rng.normal(0, 1, humans), rng.normal(apart, 1, machines)])
    machine = np.arange(humans + machines) >= humans
    return Sample(score, machine, np.arange(humans + machines) // per_group)


def rows_of(sample, method, sign, tokens=100):
    return [
        ScoreRow(bool(machine), str(group), "", tokens, {method: float(sign * score)})
        for score, machine, group in zip(sample.score, sample.machine, sample.group, strict=True)
    ]


def two_domains(method, seed, sizes=(150, 70), apart=1.0):
    """Human texts of two domains of so many texts, of which the smaller one looks more like a machine's, and 200 machine texts."""
    rng, sign = np.random.default_rng(seed), sign_of(method)
    domains = [domain for domain, size in zip(("large", "small"), sizes, strict=True) for _ in range(size)]
    rows = [
        ScoreRow(False, f"h{n}", domain, 100, {method: sign * float(rng.normal(apart * (domain == "small")))})
        for n, domain in enumerate(domains)
    ]
    return rows + [ScoreRow(True, f"m{n}", "large", 100, {method: sign * float(rng.normal(3))}) for n in range(200)]


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 300), (1, 20), (7, 150), (149, 150), (150, 150)])
def test_clopper_pearson(count, n):
    from scipy.stats import binomtest

    expected = binomtest(count, n).proportion_ci(method="exact")
    assert clopper_pearson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("target", "n"), [(0.05, 20), (0.05, 399), (0.05, 400), (0.01, 150), (0.1, 57), (1 / 3, 3)])
def test_a_threshold_is_crossed_at_most_at_its_rate(target, n):
    """Always on the texts it was chosen on; by a new text with at most that probability, averaged over many draws."""
    rng, beyond = np.random.default_rng(1), []
    for _ in range(400):
        scores = rng.normal(size=n + 200)
        value = threshold_at(scores[:n], target)
        assert (scores[:n] > value).mean() <= target
        beyond.append((scores[n:] > value).mean())
    error = 3 * np.std(beyond) / np.sqrt(len(beyond))
    assert np.mean(beyond) <= target + error
    assert np.mean(beyond) >= int(target * (n + 1) + 1e-9) / (n + 1) - error, "no stricter than necessary"


def test_tied_scores_do_not_cross_their_threshold():
    assert fit_threshold(np.ones(40), 0.05, -1).model_dump(exclude_none=True) == pytest.approx(
        {"value": -1.0, "target": 0.05, "measured": 0.0, "low": 0.0, "high": clopper_pearson(0, 40)[1], "n": 40}
    )


@pytest.mark.parametrize(("target", "count"), [(0.05, 20), (0.01, 100), (0.001, 1000), (0.0001, 10_000), (0.03, 34)])
def test_texts_needed_for_a_rate(target, count):
    assert texts_needed(target) == count
    assert threshold_at(np.arange(float(count)), target) == count - 1
    with pytest.raises(SetupError, match="human texts, got"):
        threshold_at(np.arange(float(count - 1)), target)


def test_a_refusal_names_the_numbers():
    assert fitting.why_too_few(0.0001, 750) == "0.01% needs at least 10,000 human texts, got 750"
    assert fitting.why_too_few(0.01, 100) is None


def test_auroc_is_the_share_of_ordered_pairs():
    score, machine = np.array([1.0, 2, 2, 3, 0, 2, 5]), np.array([0, 0, 0, 0, 1, 1, 1], bool)
    pairs = [(m > h) + (m == h) / 2 for m in score[machine] for h in score[~machine]]
    assert auroc(Sample(score, machine, np.arange(7))) == pytest.approx(np.mean(pairs))


def test_the_interval_of_auroc_covers_the_true_value():
    """The AUROC of two normals two standard deviations apart is 0.921."""
    covered = 0
    for seed in range(40):
        low, high = bootstrap_interval(normal_sample(100, 100, seed=seed), auroc, 200)
        covered += low <= 0.9214 <= high
    assert covered >= 34


def test_groups_are_drawn_whole():
    sample = normal_sample(30, 30, per_group=3)
    for resampled in bootstrap_samples(sample, 20):
        assert all(np.bincount(resampled.group) % 3 == 0)
    wide, narrow = (
        bootstrap_interval(Sample(s.score, s.machine, g), auroc)
        for s, g in ((sample, sample.group * 0 + sample.group // 4), (sample, sample.group))
    )
    assert wide != narrow


def test_a_fold_keeps_groups_whole():
    sample = normal_sample(60, 60, per_group=4)
    parts = [*folds(sample)]
    assert sorted(np.concatenate([part.held_out for part in parts])) == list(range(120))
    assert all(not set(sample.group[part.fit]) & set(sample.group[part.held_out]) for part in parts)
    assert [*folds(Sample(sample.score, sample.machine, sample.group * 0))] == []


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_map_rises_and_stays_within_its_bounds(kind):
    sample, scores = normal_sample(), np.linspace(-9, 9, 200)
    p = fit_and_predict(kind, sample, scores)
    assert (np.diff(p) >= 0).all()
    assert (p.min(), p.max()) == pytest.approx(probability_bounds(sample), abs=1e-3) if kind == "isotonic" else p[0] < 0.01 and p[-1] > 0.99
    assert fit_and_predict(kind, sample, np.array([1.0]))[0] == pytest.approx(0.5, abs=0.1), "halfway between the two means"


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_score_that_points_the_wrong_way_gives_one_half(kind):
    sample = normal_sample(apart=-2.0)
    assert fit_and_predict(kind, sample, np.linspace(-3, 3, 9)) == pytest.approx(np.full(9, 0.5), abs=0.05)


def test_both_classes_weigh_the_same():
    p = fit_and_predict("isotonic", normal_sample(900, 100, apart=0.0), np.array([0.0]))
    assert p[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.usefixtures("few_draws")
def test_the_kind_with_the_lower_out_of_fold_loss_is_chosen():
    smooth = fit_probability_map(normal_sample(60, 60, apart=1.0), 1)
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 1, 3000)
    steps = Sample(score, rng.uniform(size=3000) < np.where(score < 0.5, 0.1, np.where(score < 0.95, 0.5, 0.98)), np.arange(3000))
    assert (smooth.kind, fit_probability_map(steps, 1).kind) == ("logistic", "isotonic")
    assert 0 < smooth.brier < 0.25 and 0 < smooth.log_loss < 0.693


def test_losses_worked_out_by_hand():
    sample = Sample(np.zeros(3), np.array([False, True, True]), np.arange(3))
    brier, surprise = losses(np.array([0.2, 0.5, 0.9]), sample)
    assert brier == pytest.approx((0.04 + (0.25 + 0.01) / 2) / 2)
    assert surprise == pytest.approx((-np.log(0.8) - (np.log(0.5) + np.log(0.9)) / 2) / 2)
    assert losses(np.array([np.nan, 0.5, 0.9]), sample) is None


def test_out_of_fold_losses_show_overfitting():
    noise = Sample(np.random.default_rng(0).normal(size=200), np.arange(200) % 2 == 1, np.arange(200))
    fitted = losses(fit_and_predict("isotonic", noise, noise.score), noise)
    held_out = losses(out_of_fold_probabilities("isotonic", noise), noise)
    assert fitted[0] < 0.25 < held_out[0], "on noise, only the texts that were fitted on look good"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_map_has_the_direction_of_its_method(sign):
    fitted = fit_probability_map(normal_sample(), sign)
    assert list(fitted.score) == sorted(fitted.score)
    assert list(fitted.p) == sorted(fitted.p, reverse=sign < 0)
    low, middle, high = (np.array(column) for column in (fitted.low, fitted.p, fitted.high))
    assert (low <= middle).all() and (middle <= high).all()
    assert low.max() <= 1 - 3 / 400 and high.min() >= 3 / 400, "no surer than 400 texts allow"
    assert fitted.interpolate(sign * 99.0)[0] > 0.99 > 0.01 > fitted.interpolate(sign * -99.0)[0]


def test_few_texts_give_wide_intervals():
    few, many = (fit_probability_map(normal_sample(n, n, apart=1.0), 1).interpolate(0.5) for n in (30, 1500))
    assert few[2] - few[1] > 2 * (many[2] - many[1])


@pytest.mark.usefixtures("few_draws")
def test_a_single_group_gives_a_logistic_map_without_losses():
    sample = normal_sample(30, 30)
    fitted = fit_probability_map(Sample(sample.score, sample.machine, sample.group * 0), 1)
    assert (fitted.kind, fitted.brier, fitted.log_loss) == ("logistic", None, None)


@pytest.mark.parametrize(("method", "sign"), [("binoculars", -1), ("fast_detect", 1)])
@pytest.mark.usefixtures("few_draws")
def test_a_bucket_has_thresholds_for_both_verdicts(method, sign):
    bucket, refused = fit_bucket(rows_of(normal_sample(), method, sign), method, (64, 128), (0.05, 0.01))
    assert refused == [] and (bucket.n_human, bucket.n_machine) == (400, 400)
    humans, machines = normal_sample().human_scores, normal_sample().machine_scores
    for threshold in bucket.machine:
        assert (humans > sign * threshold.value).mean() == threshold.measured <= threshold.target
        assert threshold.low <= threshold.measured <= threshold.high
    for threshold in bucket.human:
        assert (machines < sign * threshold.value).mean() == threshold.measured <= threshold.target


@pytest.mark.parametrize(("method", "sign"), [("binoculars", -1), ("fast_detect", 1)])
@pytest.mark.usefixtures("few_draws")
def test_a_calibration_counts_how_its_texts_score(method, sign):
    rows = rows_of(normal_sample(), method, sign)
    bucket = fit_methods(rows, (0.05, 0.01), (64,))[0][method].buckets[0]
    humans, machines = normal_sample().human_scores, normal_sample().machine_scores
    for threshold in bucket.machine:
        assert (machines > sign * threshold.value).mean() == threshold.found > threshold.measured
    assert all(threshold.found is None for threshold in bucket.human)
    assert (sum(bucket.histogram.human), sum(bucket.histogram.machine)) == (len(humans), len(machines)) == (400, 400)


@pytest.mark.usefixtures("few_draws")
def test_a_bucket_refuses_by_target():
    bucket, refused = fit_bucket(rows_of(normal_sample(60, 60), "fast_detect", 1), "fast_detect", (64, None), (0.05, 0.01))
    assert [threshold.target for threshold in bucket.machine] == [0.05]
    assert refused == ["fast_detect, 64+ tokens: 1% needs at least 100 human texts, got 60"]
    bucket, refused = fit_bucket(rows_of(normal_sample(60, 10), "fast_detect", 1), "fast_detect", (64, 128), (0.05,))
    assert bucket is None
    assert refused == ["fast_detect, 64 to 128 tokens: 5% needs at least 20 machine texts, got 10"]


def test_few_groups_give_thresholds_but_no_probability():
    for group_of in (lambda n: 0, lambda n: 0 if n < 60 else n, lambda n: n if n < 60 else 60 + n % 4):
        sample = normal_sample(60, 60)
        grouped = Sample(sample.score, sample.machine, np.array([group_of(n) for n in range(120)]))
        bucket, refused = fit_bucket(rows_of(grouped, "fast_detect", 1), "fast_detect", (64, None), (0.05,))
        assert bucket.chance is None and len(bucket.machine) == 1
        assert "a probability needs 5 groups of each class" in refused[0]


@pytest.mark.usefixtures("few_draws")
def test_each_bucket_is_fitted_on_its_own_lengths():
    rows = rows_of(normal_sample(50, 50), "fast_detect", 1, 100) + rows_of(normal_sample(50, 50, apart=5.0), "fast_detect", 1, 300)
    rows += [ScoreRow(False, "x", "", 30, {"fast_detect": 99.0}), ScoreRow(True, "y", "", 300, {"fast_detect": None})]
    fitted, refused = fit_methods(rows, (0.05,), (64, 256, 512))
    assert [(bucket.name, bucket.n_human, bucket.n_machine) for bucket in fitted["fast_detect"].buckets] == [
        ("64-256", 50, 50),
        ("256-512", 50, 50),
    ]
    assert refused[0].endswith("512+ tokens: 5% needs at least 20 human texts, got 0")
    with pytest.raises(SetupError, match=r"no length bucket has enough texts for 1%.*1% needs at least 100 human texts, got 50"):
        fit_methods(rows, (0.05, 0.01), (64, 256, 512))


def test_no_text_with_a_score():
    with pytest.raises(SetupError, match="no text could be scored"):
        fit_methods([ScoreRow(False, "a", "", 0, {"fast_detect": None})], (0.05,))


def test_out_of_fold_rates():
    rates = out_of_fold_rates(normal_sample(400, 400, per_group=2), 0.05)
    assert (rates.n_human, rates.n_machine) == (400, 400)
    assert 0.01 < rates.fpr < 0.1 and 0.5 < rates.tpr < 0.8, "5% of a standard normal lie beyond 1.64, and 64% of one shifted by 2"
    assert rates.fpr_interval[0] < rates.fpr < rates.fpr_interval[1]
    assert out_of_fold_rates(normal_sample(110, 400), 0.01) is None, "without one fold, 88 human texts are left"


@pytest.mark.parametrize("method", ["combined", "fast_detect", "perplexity"])
def test_held_out_texts_are_judged_by_thresholds_as_the_calibration_has_them(method):
    """With domains, and for `combined` at their share of the rate: thresholds of the pool alone would find twice as many machine texts."""
    rows = two_domains(method, 0, (400, 400), apart=2.0)
    shipped = machine_thresholds(rows, method, (0.05, 0.01), ())[0]
    judged = judged_out_of_fold([*rows, ScoreRow(False, "x", "", 100, {method: None})], method, (0.05, 0.01))
    rates, found = rates_of(judged[0.05]), rates_at_threshold(sample_of(rows, method), shipped, sign_of(method))
    assert [len(pairs) for pairs in judged.values()] == [1000, 1000] and (rates.n_human, rates.n_machine) == (800, 200)
    assert rates.tpr == pytest.approx(found.tpr, abs=0.06) and rates.fpr == pytest.approx(found.fpr, abs=0.01)
    assert out_of_fold_rates(sample_of(rows, method), 0.05).tpr > rates.tpr + 0.1
    assert rates_of(judged[0.01]).tpr <= rates.tpr


def test_a_rate_that_the_other_folds_do_not_support_is_not_judged():
    assert [*judged_out_of_fold(two_domains("fast_detect", 0, (60, 50)), "fast_detect", (0.05, 0.01))] == [0.05]
    assert rates_of([]) is None


@pytest.mark.usefixtures("few_draws")
def test_the_report_judges_held_out_texts_of_each_domain_by_the_thresholds_of_their_length():
    rows = two_domains("fast_detect", 0, (400, 400), apart=2.0)
    rows += [replace(row, tokens=70, beginning=True) for row in rows]
    models = ModelIdentity(performer="p", revision="1", observer=None, observer_revision=None, quantize="none", dtype="float32")
    methods, _ = fit_methods(rows, (0.05, 0.01), (64, 96))
    made = Calibration(made="x", source="s", models=models, collapse=True, methods=methods)
    report = render(made, rows)
    judged = judged_out_of_fold([row for row in rows if not row.beginning], "fast_detect", (0.05, 0.01))[0.05]
    assert f"| {rates_cell(rates_of(judged))} |" in next(line for line in report.splitlines() if line.startswith("| fast_detect | 96+ |"))
    for domain in ("large", "small"):  # all machine texts are in the large domain
        own = [pair for pair in judged if pair[0].machine or pair[0].domain == domain]
        assert any(
            line.startswith(f"| {domain} | fast_detect | 400 / 200 |") and rates_cell(rates_of(own)) in line for line in report.splitlines()
        )


def test_rates_at_a_threshold():
    sample = Sample(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True]), np.arange(4))
    threshold = fit_threshold(np.arange(20.0), 0.05, 1)
    assert rates_at_threshold(sample, threshold.model_copy(update={"value": -1.5}), -1) == Rates(0.5, 2, 1.0, 2)
    assert rates_at_threshold(sample.take(sample.machine), threshold, 1) is None


def test_a_domain_with_one_class_gets_all_texts_of_the_other():
    rows = [
        ScoreRow(machine, "g", domain, 99, {}) for machine, domain in ((False, "news"), (True, "news"), (False, "books"), (True, "hot"))
    ]
    by_domain = rows_by_domain(rows)
    assert {name: sum(row.machine for row in part) for name, part in by_domain.items()} == {"news": 1, "books": 2, "hot": 1}
    assert len(by_domain["hot"]) == 3 and len(by_domain["news"]) == 2


def test_samples_leave_out_texts_without_a_score():
    rows = [
        ScoreRow(True, "b", "", 99, {"binoculars": 0.7}),
        ScoreRow(False, "a", "", 99, {"binoculars": None}),
        ScoreRow(False, "a", "", 99, {}),
    ]
    sample = sample_of(rows, "binoculars")
    assert (sample.score.tolist(), sample.machine.tolist()) == ([-0.7], [True])


@pytest.mark.usefixtures("few_draws")
def test_a_pool_weighs_each_kind_the_same_and_makes_thresholds_stricter():
    scores, kinds = np.concatenate([np.arange(900.0), np.arange(5000.0, 5100.0)]), ["many"] * 900 + ["few"] * 100
    assert pooled_threshold(scores, kinds, 0.05) == pytest.approx(5089.5, abs=0.5)  # a tenth of `few`, which is half of the pool
    assert pooled_threshold(scores[:50], kinds[:50], 0.01) == -np.inf
    rows = rows_of(normal_sample(), "fast_detect", 1)
    people = [ScoreRow(False, str(n), "talks", 300, {"fast_detect": 50.0 + n}) for n in range(100)]
    plain, wide = (fit_bucket(rows, "fast_detect", (64, 128), (0.05,), each)[0] for each in ((), people))
    assert plain.machine[0].value < 10 and wide.machine[0].value >= 140 and wide.machine[0].measured == 0


@pytest.mark.parametrize("method", ["combined", "fast_detect", "perplexity"])
def test_a_threshold_of_a_lower_rate_is_never_less_strict(method):
    """Where a domain has too few texts for the lower rate, the pool alone would be laxer than the domain at the higher rate."""
    sign = sign_of(method)
    for seed in range(40):
        rows = two_domains(method, seed, (150, 70) if method == "combined" else (500, 25))
        loose, strict = machine_thresholds(rows, method, (0.05, 0.01), ())
        assert (loose.target, strict.target) == (0.05, 0.01)
        assert sign * strict.value >= sign * loose.value and strict.measured <= loose.measured
    backwards = machine_thresholds(two_domains(method, 0), method, (0.01, 0.05), ())
    assert backwards == machine_thresholds(two_domains(method, 0), method, (0.05, 0.01), ())[::-1]


@pytest.mark.usefixtures("few_draws")
def test_domains_without_a_threshold_of_their_own_are_named():
    fit = {method: fit_bucket(two_domains(method, 0), method, (64, 128), (0.05, 0.01))[1] for method in ("combined", "fast_detect")}
    fewer = "no threshold of its own for a domain with fewer than"
    assert fit["combined"] == [f"combined, 64 to 128 tokens: at 1%, {fewer} 200 human texts: large (150), small (70)"]
    assert fit["fast_detect"] == [f"fast_detect, 64 to 128 tokens: at 1%, {fewer} 100 human texts: small (70)"]
    assert fit_bucket(two_domains("combined", 0, (400, 200)), "combined", (64, 128), (0.05, 0.01))[1] == []
