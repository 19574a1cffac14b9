"""Verdicts of a hand-made calibration, which models a calibration applies to, and files that are not calibrations."""

import json

import pytest

from app.engine.facts import Facts
from app.errors import InvalidRequest, SetupError
from app.scoring.calibration import CALIBRATION_FILE, FALCON_PATH, Calibration, ModelIdentity, calibrations_for, identity_of, load, save
from app.scoring.thresholds import Bucket, MethodCalibration, ProbabilityMap, Threshold
from app.settings import ModelSettings

SERVED = ModelIdentity(performer="p", revision="1", observer="o", observer_revision="2", quantize="none", dtype="float32")
PROBABILITY_MAP = ProbabilityMap(
    kind="isotonic", score=(0.6, 0.8, 1.0), p=(0.9, 0.6, 0.1), low=(0.8, 0.5, 0.0), high=(1.0, 0.7, 0.2), brier=0.1, log_loss=0.3
)


def bucket(min_tokens, max_tokens, chance=PROBABILITY_MAP):
    machine = (
        Threshold(value=0.8, target=0.05, measured=0.04, low=0.01, high=0.1, n=200),
        Threshold(value=0.7, target=0.01, measured=0.005, low=0.0, high=0.03, n=200),
    )
    human = (Threshold(value=0.95, target=0.05), Threshold(value=0.99, target=0.01))
    return Bucket(min_tokens=min_tokens, max_tokens=max_tokens, n_human=200, n_machine=300, machine=machine, human=human, chance=chance)


def calibration(chance=PROBABILITY_MAP):
    entry = MethodCalibration(direction="lower", buckets=(bucket(64, 128, chance), bucket(128, 256, chance)))
    return Calibration(made="2026-11-21", source="by hand", models=SERVED, collapse=True, methods={"binoculars": entry})


@pytest.mark.parametrize(
    ("value", "target", "verdict", "p"),
    [
        (0.65, 0.01, "machine", 0.825),
        (0.65, None, "machine", 0.825),
        (0.75, 0.01, "uncertain", 0.675),
        (0.75, 0.05, "machine", 0.675),
        (0.8, 0.05, "uncertain", 0.6),
        (0.97, 0.05, "human", 0.175),
        (0.97, 0.01, "uncertain", 0.175),
        (0.995, 0.01, "human", 0.1125),
        (0.0, 0.01, "machine", 0.9),
    ],
)
def test_a_verdict(value, target, verdict, p):
    judgement = calibration().judge("binoculars", 64, value, target)
    assert (judgement.verdict, judgement.p_machine) == (verdict, pytest.approx(p))
    assert judgement.p_low <= judgement.p_machine <= judgement.p_high


def test_the_numbers_behind_a_verdict():
    judgement = calibration().judge("binoculars", 200, 0.5, 0.05)
    assert (judgement.threshold, judgement.target_fpr, judgement.measured_fpr) == (0.8, 0.05, 0.04)
    assert (judgement.n_human, judgement.bucket) == (200, "128-256")
    assert (judgement.fpr_low, judgement.fpr_high) == (0.01, 0.1)


def test_a_method_whose_higher_scores_look_like_a_machine():
    """Machine verdict above 0.99, human verdict below 0.7."""
    machine, human = (Threshold(value=0.99, target=0.01),), (Threshold(value=0.7, target=0.01),)
    only = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=machine, human=human, chance=None)
    higher = calibration().model_copy(update={"methods": {"fast_detect": MethodCalibration(direction="higher", buckets=(only,))}})
    verdicts = [higher.judge("fast_detect", 5000, value).verdict for value in (1.0, 0.99, 0.7, 0.6)]
    assert verdicts == ["machine", "uncertain", "uncertain", "human"]


def test_thresholds_that_the_probability_contradicts():
    """If the classes are far apart, a score between them is beyond both thresholds; a probability that disagrees gives uncertain."""
    even = ProbabilityMap(kind="logistic", score=(0.0, 2.0), p=(0.45, 0.45), low=(0.1, 0.1), high=(0.9, 0.9), brier=None, log_loss=None)
    assert calibration(even).judge("binoculars", 64, 0.1).verdict == "uncertain"
    sure = even.model_copy(update={"p": (0.55, 0.55)})
    assert calibration(sure).judge("binoculars", 64, 1.9).verdict == "uncertain"


def test_a_score_outside_the_calibration():
    """More human-like than every text of the calibration: uncertain. More machine-like than every text: still a machine verdict."""
    outside, inside, machine_like = (calibration().judge("binoculars", 64, value, 0.05) for value in (1.001, 1.0, -9.0))
    assert (outside.verdict, outside.outside, outside.p_machine, outside.p_low, outside.threshold) == ("uncertain", True, None, None, 0.8)
    assert (inside.verdict, inside.outside) == ("human", False)
    assert (machine_like.verdict, machine_like.outside, machine_like.p_machine) == ("machine", False, 0.9)
    rising = {"p": (0.1, 0.6, 0.9), "low": (0.0, 0.5, 0.8), "high": (0.2, 0.7, 1.0)}
    machine, human = (Threshold(value=0.9, target=0.05),), (Threshold(value=0.7, target=0.05),)
    chance = ProbabilityMap(**{**PROBABILITY_MAP.model_dump(), **rising})
    only = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=machine, human=human, chance=chance)
    by_method = {"fast_detect": MethodCalibration(direction="higher", buckets=(only,))}
    higher = calibration().model_copy(update={"methods": by_method}).judge("fast_detect", 64, 0.59, 0.05)
    assert (higher.verdict, higher.outside) == ("uncertain", True)


def test_lengths_and_methods_without_a_bucket():
    assert calibration().judge("binoculars", 63, 0.5) is None
    assert calibration().judge("binoculars", 256, 0.5) is None
    assert calibration().judge("fast_detect", 100, 0.5) is None


def test_a_target_that_is_not_calibrated():
    with pytest.raises(
        InvalidRequest, match=r"target_fpr 0\.001 is not calibrated for texts of 64-128 tokens; calibrated rates are 0\.05, 0\.01"
    ):
        calibration().judge("binoculars", 100, 0.5, 0.001)


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        ({}, "binoculars", None),
        ({"performer": "q"}, "binoculars", "performer p, but q is served"),
        ({"revision": "9"}, "binoculars", "revision 1, but 9 is served"),
        ({"quantize": "nf4"}, "binoculars", "quantize none, but nf4"),
        ({"dtype": "bfloat16"}, "binoculars", "dtype float32, but bfloat16"),
        ({"observer": None}, "binoculars", "observer o, but none"),
        ({"observer_revision": "3"}, "binoculars", "observer revision 2, but 3"),
        ({}, "log_rank", "does not cover log_rank"),
    ],
)
def test_which_models_it_applies_to(change, method, message):
    mismatch = calibration().mismatch(SERVED.model_copy(update=change), method)
    assert mismatch is None if message is None else message in mismatch


def test_only_a_pair_needs_its_observer():
    alone = calibration().model_copy(update={"methods": {"fast_detect": calibration().methods["binoculars"]}})
    assert alone.mismatch(SERVED.model_copy(update={"observer": None, "observer_revision": None}), "fast_detect") is None


def test_save_and_load(tmp_path):
    save(calibration(), tmp_path / "new" / "c.json")
    assert load(tmp_path / "new" / "c.json") == calibration()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"colour": "red"}, "colour"),
        ({"methods": {"guess": {"direction": "lower", "buckets": []}}}, "methods"),
        ({"models": {"performer": "p"}}, "models.revision"),
    ],
)
def test_a_file_that_is_not_a_calibration(tmp_path, change, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**calibration().model_dump(mode="json"), **change}))
    with pytest.raises(SetupError, match=rf"c\.json is not a calibration file: {message}"):
        load(path)


def test_a_missing_file_and_a_torn_file(tmp_path):
    with pytest.raises(SetupError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"format": ')
    with pytest.raises(SetupError, match="not a calibration file"):
        load(tmp_path / "torn.json")


@pytest.mark.parametrize(
    ("score", "p"), [((0.0, 0.0), (0.1, 0.2)), ((1.0, 0.0), (0.1, 0.2)), ((0.0, 1.0, 2.0), (0.1, 0.3, 0.2)), ((0.0, 1.0), (0.1,))]
)
def test_an_invalid_probability_map(score, p):
    with pytest.raises(ValueError, match=r"rise|monotone|length"):
        ProbabilityMap(kind="isotonic", score=score, p=p, low=p, high=p, brier=None, log_loss=None)


def test_the_published_pair():
    falcon = load(FALCON_PATH)
    served = ModelIdentity(
        performer="falcon-7b-instruct",
        revision="cf4b3c4",
        observer="falcon-7b",
        observer_revision="8987",
        quantize="none",
        dtype="bfloat16",
    )
    assert falcon.mismatch(served, "binoculars") is None
    assert "dtype" in falcon.mismatch(served.model_copy(update={"dtype": "float32"}), "binoculars")
    assert "quantize" in falcon.mismatch(served.model_copy(update={"quantize": "nf4"}), "binoculars")
    values = (0.8536432310785527, 0.8536432310785526, 0.9015310749276843, 0.9015310749276844)
    assert [falcon.judge("binoculars", 64, value).verdict for value in values] == ["uncertain", "machine", "uncertain", "human"]
    judgement = falcon.judge("binoculars", 64, 0.5)
    assert (judgement.target_fpr, judgement.p_machine, judgement.measured_fpr, judgement.n_human) == (0.0001, None, None, None)
    assert falcon.judge("binoculars", 63, 0.5) is None


SHIPPED = ["SmolLM2-135M-Instruct.Q4_1.gguf", "falcon-7b-instruct"]


def test_the_calibration_beside_the_model_comes_first(tmp_path):
    assert [each.models.performer for each in calibrations_for(str(tmp_path))] == SHIPPED
    save(calibration(), tmp_path / CALIBRATION_FILE)
    assert [each.models.performer for each in calibrations_for(str(tmp_path))] == ["p", *SHIPPED]
    assert len([*calibrations_for("owner/name")]) == len(SHIPPED)


def test_the_served_models_by_name_and_revision():
    settings = ModelSettings(path="/somewhere/else/p/", observer="hub/o", name="shown")
    facts = Facts("shown", 64, 1, "nf4", "bfloat16", "cpu", "o", True, revision="abc", observer_revision="def")
    assert identity_of(settings, facts) == ModelIdentity(
        performer="p", revision="abc", observer="o", observer_revision="def", quantize="nf4", dtype="bfloat16"
    )


def set_at(content, place, value):
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


BUCKETS = ("methods", "binoculars", "buckets")
FIRST, SECOND = (*BUCKETS, 0), (*BUCKETS, 1)
TERM = {"statistic": "binoculars", "centre": 0, "spread": 1, "weight": 1}
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ((*FIRST, "chance", "p"), [1.9, 1.6, 1.1], r"buckets\.0\.chance\.p\.0: .*less than or equal to 1"),
        ((*FIRST, "chance", "low"), [-0.1, 0.5, 0.0], r"buckets\.0\.chance\.low\.0: .*greater than or equal to 0"),
        ((*FIRST, "chance", "low"), [0.95, 0.5, 0.0], r"buckets\.0\.chance: .*p must lie from low to high"),
        ((*FIRST, "chance", "high"), [1.0, 0.5, 0.2], r"buckets\.0\.chance: .*p must lie from low to high"),
        ((*FIRST, "chance", "score"), [0.6, 0.8, INFINITE], r"buckets\.0\.chance\.score\.2: .*finite"),
        ((*FIRST, "machine", 0, "value"), NAN, r"buckets\.0\.machine\.0\.value: .*finite"),
        ((*SECOND, "human", 1, "value"), -INFINITE, r"buckets\.1\.human\.1\.value: .*finite"),
        ((*SECOND, "machine", 1, "target"), 0.05, r"buckets\.1: .*machine: two thresholds have the same target"),
        ((*SECOND, "machine", 1, "value"), 0.9, r"binoculars: .*buckets\.1\.machine: the threshold of a lower target must not be less"),
        ((*SECOND, "human", 1, "value"), 0.9, r"binoculars: .*buckets\.1\.human: the threshold of a lower target must not be less"),
        ((*FIRST, "machine", 0, "low"), 0.05, r"buckets\.0\.machine\.0: .*low, measured and high must not fall"),
        ((*FIRST, "n_human"), -1, r"buckets\.0\.n_human: .*greater than or equal to 0"),
        ((*FIRST, "histogram"), {"edges": [0, 1], "human": [-1], "machine": [1]}, r"buckets\.0\.histogram\.human\.0: .*greater than"),
        ((*FIRST, "max_tokens"), 63, r"buckets\.0: .*max_tokens must be above min_tokens"),
        ((*FIRST, "max_tokens"), 129, r"binoculars: .*buckets\.1: min_tokens must be at least"),
        ((*FIRST, "max_tokens"), None, r"binoculars: .*buckets\.1: min_tokens must be at least"),
        (("methods", "binoculars", "direction"), "higher", "methods.binoculars"),
        (("methods",), {"combined": {"direction": "higher", "buckets": []}}, "combined: methods.combined needs its weights"),
        (("methods",), {"log_rank": {"direction": "higher", "buckets": []}}, r"methods\.log_rank\.direction: must be lower"),
        (
            ("combined",),
            {"questions": [{"name": "pair", "intercept": NAN, "terms": [TERM]}]},
            r"combined\.questions\.0\.intercept: .*finite",
        ),
    ],
)  # fmt: skip
def test_a_calibration_with_impossible_numbers_is_refused_by_the_field(tmp_path, place, value, named):
    content = calibration().model_dump(mode="json")
    set_at(content, place, value)
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=named):
        load(tmp_path / "c.json")


def test_probabilities_rise_towards_the_side_of_a_machine(tmp_path):
    content = calibration().model_dump(mode="json")
    for column in ("p", "low", "high"):
        content["methods"]["binoculars"]["buckets"][0]["chance"][column].reverse()
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match=r"binoculars: .*buckets\.0\.chance\.p: must fall, as direction is lower"):
        load(tmp_path / "c.json")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "c.json").write_text(calibration().model_dump_json(), encoding="utf-8-sig")
    assert load(tmp_path / "c.json") == calibration()
