"""Borders whose rate is known, intervals against SciPy, monotone maps, and what too few texts do not support."""

import numpy as np
import pytest
from scipy.stats import binomtest

from app.errors import SetupError
from app.scoring import fitting
from app.scoring.fitting import (
    border,
    border_of,
    bounds,
    bucket,
    chance,
    clopper_pearson,
    curve,
    folds,
    losses,
    needed,
    out_of_fold,
    scales,
)
from app.scoring.rates import Rates, at_border, at_target, by_domain
from app.scoring.sample import Row, Sample, auroc, interval, redrawn, sample_of


def drawn(humans=400, machines=400, apart=2.0, seed=0, per_group=1):
    rng = np.random.default_rng(seed)
    score = np.concatenate([rng.normal(0, 1, humans), rng.normal(apart, 1, machines)])
    machine = np.arange(humans + machines) >= humans
    return Sample(score, machine, np.arange(humans + machines) // per_group)


def rows_of(sample, method, sign, tokens=100, **more):
    return [
        Row(bool(machine), str(group), more.get("domain", ""), tokens, {method: float(sign * score)})
        for score, machine, group in zip(sample.score, sample.machine, sample.group, strict=True)
    ]


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 300), (1, 20), (7, 150), (149, 150), (150, 150)])
def test_the_exact_interval(count, n):
    wanted = binomtest(count, n).proportion_ci(method="exact")
    assert clopper_pearson(count, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize(("target", "n"), [(0.05, 20), (0.05, 399), (0.05, 400), (0.01, 150), (0.1, 57), (1 / 3, 3)])
def test_a_border_is_crossed_at_most_at_its_rate(target, n):
    """On the texts it was chosen by, always; by a new one with at most that probability, taken over many draws."""
    rng, beyond = np.random.default_rng(1), []
    for _ in range(400):
        scores = rng.normal(size=n + 200)
        value = border_of(scores[:n], target)
        assert (scores[:n] > value).mean() <= target
        beyond.append((scores[n:] > value).mean())
    error = 3 * np.std(beyond) / np.sqrt(len(beyond))
    assert np.mean(beyond) <= target + error
    assert np.mean(beyond) >= int(target * (n + 1) + 1e-9) / (n + 1) - error, "no stricter than it has to be"


def test_texts_with_one_score_do_not_cross_it():
    assert border(np.ones(40), 0.05, -1).model_dump() == pytest.approx(
        {"value": -1.0, "target": 0.05, "measured": 0.0, "low": 0.0, "high": clopper_pearson(0, 40)[1], "n": 40}
    )


@pytest.mark.parametrize(("target", "needs"), [(0.05, 20), (0.01, 100), (0.001, 1000), (0.0001, 10_000), (0.03, 34)])
def test_what_a_rate_needs(target, needs):
    assert needed(target) == needs
    assert border_of(np.arange(float(needs)), target) == needs - 1
    with pytest.raises(SetupError, match="human texts; you gave"):
        border_of(np.arange(float(needs - 1)), target)


def test_the_refusal_has_the_numbers():
    assert fitting.refusal(0.0001, 750) == "0.01% needs 10,000 human texts; you gave 750"
    assert fitting.refusal(0.01, 100) is None


def test_auroc_against_a_count_of_pairs():
    score, machine = np.array([1.0, 2, 2, 3, 0, 2, 5]), np.array([0, 0, 0, 0, 1, 1, 1], bool)
    pairs = [(m > h) + (m == h) / 2 for m in score[machine] for h in score[~machine]]
    assert auroc(Sample(score, machine, np.arange(7))) == pytest.approx(np.mean(pairs))


def test_the_interval_of_auroc_holds_the_truth():
    """The AUROC of two normals two standard deviations apart is 0.921."""
    held = 0
    for seed in range(40):
        low, high = interval(drawn(100, 100, seed=seed), auroc, 200)
        held += low <= 0.9214 <= high
    assert held >= 34


def test_groups_are_drawn_whole():
    sample = drawn(30, 30, per_group=3)
    for one in redrawn(sample, 20):
        assert all(np.bincount(one.group) % 3 == 0)
    wide, narrow = (
        interval(Sample(s.score, s.machine, g), auroc) for s, g in ((sample, sample.group * 0 + sample.group // 4), (sample, sample.group))
    )
    assert wide != narrow


def test_no_group_on_both_sides_of_a_fold():
    sample = drawn(60, 60, per_group=4)
    parts = [*folds(sample)]
    assert sorted(np.concatenate([part.left for part in parts])) == list(range(120))
    assert all(not set(sample.group[part.fit]) & set(sample.group[part.left]) for part in parts)
    assert [*folds(Sample(sample.score, sample.machine, sample.group * 0))] == []


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_map_rises_and_claims_no_more_than_n_texts_show(kind):
    sample, at = drawn(), np.linspace(-9, 9, 200)
    p = curve(kind, sample, at)
    assert (np.diff(p) >= 0).all()
    assert (p.min(), p.max()) == pytest.approx(bounds(sample), abs=1e-3) if kind == "isotonic" else p[0] < 0.01 and p[-1] > 0.99
    assert curve(kind, sample, np.array([1.0]))[0] == pytest.approx(0.5, abs=0.1), "halfway between the two"


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_score_that_points_the_wrong_way_says_nothing(kind):
    sample = drawn(apart=-2.0)
    assert curve(kind, sample, np.linspace(-3, 3, 9)) == pytest.approx(np.full(9, 0.5), abs=0.05)


def test_both_sides_weigh_alike():
    p = curve("isotonic", drawn(900, 100, apart=0.0), np.array([0.0]))
    assert p[0] == pytest.approx(0.5, abs=0.1)


def test_the_kind_is_chosen_out_of_fold():
    smooth = chance(drawn(60, 60, apart=1.0), 1)
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 1, 3000)
    steps = Sample(score, rng.uniform(size=3000) < np.where(score < 0.5, 0.1, np.where(score < 0.95, 0.5, 0.98)), np.arange(3000))
    assert (smooth.kind, chance(steps, 1).kind) == ("logistic", "isotonic")
    assert 0 < smooth.brier < 0.25 and 0 < smooth.log_loss < 0.693


def test_losses_by_hand():
    sample = Sample(np.zeros(3), np.array([False, True, True]), np.arange(3))
    brier, surprise = losses(np.array([0.2, 0.5, 0.9]), sample)
    assert brier == pytest.approx((0.04 + (0.25 + 0.01) / 2) / 2)
    assert surprise == pytest.approx((-np.log(0.8) - (np.log(0.5) + np.log(0.9)) / 2) / 2)
    assert losses(np.array([np.nan, 0.5, 0.9]), sample) is None


def test_out_of_fold_is_not_the_fit():
    noise = Sample(np.random.default_rng(0).normal(size=200), np.arange(200) % 2 == 1, np.arange(200))
    fitted, left = losses(curve("isotonic", noise, noise.score), noise), losses(out_of_fold("isotonic", noise), noise)
    assert fitted[0] < 0.25 < left[0], "on noise only what was fitted looks good"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_map_in_the_methods_own_direction(sign):
    made = chance(drawn(), sign)
    assert list(made.score) == sorted(made.score)
    assert list(made.p) == sorted(made.p, reverse=sign < 0)
    low, middle, high = (np.array(column) for column in (made.low, made.p, made.high))
    assert (low <= middle).all() and (middle <= high).all()
    assert low.max() <= 1 - 3 / 400 and high.min() >= 3 / 400, "no surer than 400 texts allow"
    assert made.at(sign * 99.0)[0] > 0.99 > 0.01 > made.at(sign * -99.0)[0]


def test_few_texts_make_wide_intervals():
    few, many = (chance(drawn(n, n, apart=1.0), 1).at(0.5) for n in (30, 1500))
    assert few[2] - few[1] > 2 * (many[2] - many[1])


def test_a_single_group_cannot_choose_a_map():
    sample = drawn(30, 30)
    made = chance(Sample(sample.score, sample.machine, sample.group * 0), 1)
    assert (made.kind, made.brier, made.log_loss) == ("logistic", None, None)


@pytest.mark.parametrize(("method", "sign"), [("binoculars", -1), ("fast_detect", 1)])
def test_a_bucket_has_borders_on_both_sides(method, sign):
    made, refused = bucket(rows_of(drawn(), method, sign), method, (64, 128), (0.05, 0.01))
    assert refused == [] and (made.n_human, made.n_machine) == (400, 400)
    humans, machines = drawn().human_scores, drawn().machine_scores
    for one in made.machine:
        assert (humans > sign * one.value).mean() == one.measured <= one.target
        assert one.low <= one.measured <= one.high
    for one in made.human:
        assert (machines < sign * one.value).mean() == one.measured <= one.target


def test_a_bucket_refuses_by_target():
    made, refused = bucket(rows_of(drawn(60, 60), "fast_detect", 1), "fast_detect", (64, None), (0.05, 0.01))
    assert [one.target for one in made.machine] == [0.05]
    assert refused == ["fast_detect, 64+ tokens: 1% needs 100 human texts; you gave 60"]
    made, refused = bucket(rows_of(drawn(60, 10), "fast_detect", 1), "fast_detect", (64, 128), (0.05,))
    assert made is None
    assert refused == ["fast_detect, 64 to 128 tokens: 5% needs 20 machine texts; you gave 10"]


def test_few_sources_give_borders_but_no_probability():
    for groups in (lambda n: 0, lambda n: 0 if n < 60 else n, lambda n: n if n < 60 else 60 + n % 4):
        sample = drawn(60, 60)
        grouped = Sample(sample.score, sample.machine, np.array([groups(n) for n in range(120)]))
        made, refused = bucket(rows_of(grouped, "fast_detect", 1), "fast_detect", (64, None), (0.05,))
        assert made.chance is None and len(made.machine) == 1
        assert "a probability needs 5 groups on each side" in refused[0]


def test_scales_keep_lengths_apart():
    rows = rows_of(drawn(50, 50), "fast_detect", 1, 100) + rows_of(drawn(50, 50, apart=5.0), "fast_detect", 1, 300)
    rows += [Row(False, "x", "", 30, {"fast_detect": 99.0}), Row(True, "y", "", 300, {"fast_detect": None})]
    found, refused = scales(rows, (0.05,), (64, 256, 512))
    assert [(one.name, one.n_human, one.n_machine) for one in found["fast_detect"].buckets] == [("64-256", 50, 50), ("256-512", 50, 50)]
    assert refused[0].endswith("512+ tokens: 5% needs 20 human texts; you gave 0")
    with pytest.raises(SetupError, match=r"no length has texts enough for 1%.*1% needs 100 human texts; you gave 50"):
        scales(rows, (0.05, 0.01), (64, 256, 512))


def test_no_score_at_all():
    with pytest.raises(SetupError, match="no text could be scored"):
        scales([Row(False, "a", "", 0, {"fast_detect": None})], (0.05,))


def test_rates_on_groups_that_had_no_part():
    found = at_target(drawn(400, 400, per_group=2), 0.05)
    assert (found.n_human, found.n_machine) == (400, 400)
    assert 0.01 < found.false < 0.1 and 0.5 < found.true < 0.8, "5% of a normal lie beyond 1.64; 64% of one two further"
    assert found.false_interval[0] < found.false < found.false_interval[1]
    assert at_target(drawn(110, 400), 0.01) is None, "a part left out leaves 88"


def test_rates_at_a_given_border():
    sample = Sample(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True]), np.arange(4))
    assert at_border(sample, border(np.arange(20.0), 0.05, 1).model_copy(update={"value": -1.5}), -1) == Rates(0.5, 2, 1.0, 2)
    assert at_border(sample.take(sample.machine), border(np.arange(20.0), 0.05, 1), 1) is None


def test_a_domain_of_one_side_gets_all_of_the_other():
    rows = [Row(machine, "g", domain, 99, {}) for machine, domain in ((False, "news"), (True, "news"), (False, "books"), (True, "hot"))]
    found = by_domain(rows)
    assert {name: sum(row.machine for row in part) for name, part in found.items()} == {"news": 1, "books": 2, "hot": 1}
    assert len(found["hot"]) == 3 and len(found["news"]) == 2


def test_samples_leave_out_what_has_no_score():
    rows = [Row(True, "b", "", 99, {"binoculars": 0.7}), Row(False, "a", "", 99, {"binoculars": None}), Row(False, "a", "", 99, {})]
    found = sample_of(rows, "binoculars")
    assert (found.score.tolist(), found.machine.tolist()) == ([-0.7], [True])
