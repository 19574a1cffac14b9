"""Verdicts from a file made by hand, whom a calibration belongs to, and files that are none."""

import json

import pytest

from app.engine.request import Facts
from app.errors import InvalidRequest, SetupError
from app.scoring.calibration import BESIDE, FALCON, Calibration, Models, load, models_of, ready, save
from app.scoring.thresholds import Border, Bucket, Chance, Scale
from app.settings import ModelSettings

SERVED = Models(performer="p", revision="1", observer="o", observer_revision="2", quantize="none", dtype="float32")
CHANCE = Chance(
    kind="isotonic", score=(0.6, 0.8, 1.0), p=(0.9, 0.6, 0.1), low=(0.8, 0.5, 0.0), high=(1.0, 0.7, 0.2), brier=0.1, log_loss=0.3
)


def bucket(least, most, chance=CHANCE):
    machine = (
        Border(value=0.8, target=0.05, measured=0.04, low=0.01, high=0.1, n=200),
        Border(value=0.7, target=0.01, measured=0.005, low=0.0, high=0.03, n=200),
    )
    human = (Border(value=0.95, target=0.05), Border(value=0.99, target=0.01))
    return Bucket(min_tokens=least, max_tokens=most, n_human=200, n_machine=300, machine=machine, human=human, chance=chance)


def made(chance=CHANCE, direction="lower"):
    scale = Scale(direction=direction, buckets=(bucket(64, 128, chance), bucket(128, 256, chance)))
    return Calibration(made="2026-11-21", source="by hand", models=SERVED, collapse=True, methods={"binoculars": scale})


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
    found = made().judge("binoculars", 64, value, target)
    assert (found.verdict, found.p_machine) == (verdict, pytest.approx(p))
    assert found.p_low <= found.p_machine <= found.p_high


def test_what_stands_beside_a_verdict():
    found = made().judge("binoculars", 200, 0.5, 0.05)
    assert (found.threshold, found.target_fpr, found.measured_fpr, found.n_human, found.bucket) == (0.8, 0.05, 0.04, 200, "128-256")
    assert (found.fpr_low, found.fpr_high) == (0.01, 0.1)


def test_where_higher_is_a_machine():
    """The same borders the other way round: beyond 0.99 on the machine's side, below 0.7 on the human's."""
    machine, human = (Border(value=0.99, target=0.01),), (Border(value=0.7, target=0.01),)
    one = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=machine, human=human, chance=None)
    calibration = made().model_copy(update={"methods": {"fast_detect": Scale(direction="higher", buckets=(one,))}})
    found = [calibration.judge("fast_detect", 5000, value).verdict for value in (1.0, 0.99, 0.7, 0.6)]
    assert found == ["machine", "uncertain", "uncertain", "human"]


def test_borders_that_the_probability_contradicts():
    """Two sides far apart: what lies between them is beyond both borders, and the probability decides or nothing does."""
    even = Chance(kind="logistic", score=(0.0, 2.0), p=(0.45, 0.45), low=(0.1, 0.1), high=(0.9, 0.9), brier=None, log_loss=None)
    assert made(even).judge("binoculars", 64, 0.1).verdict == "uncertain"
    sure = even.model_copy(update={"p": (0.55, 0.55)})
    assert made(sure).judge("binoculars", 64, 1.9).verdict == "uncertain"


def test_a_text_unlike_any_of_the_calibration():
    """Further on the human's side than all of them it may be anyone's; on the machine's side no human text is nearer than the border."""
    far, near, other = (made().judge("binoculars", 64, value, 0.05) for value in (1.001, 1.0, -9.0))
    assert (far.verdict, far.outside, far.p_machine, far.p_low, far.threshold) == ("uncertain", True, None, None, 0.8)
    assert (near.verdict, near.outside) == ("human", False)
    assert (other.verdict, other.outside, other.p_machine) == ("machine", False, 0.9)
    turned = made(direction="higher").judge("binoculars", 64, 0.59, 0.05)
    assert (turned.verdict, turned.outside) == ("uncertain", True)


def test_lengths_and_methods_without_texts():
    assert made().judge("binoculars", 63, 0.5) is None
    assert made().judge("binoculars", 256, 0.5) is None
    assert made().judge("fast_detect", 100, 0.5) is None


def test_a_target_that_is_not_calibrated():
    with pytest.raises(
        InvalidRequest, match=r"target_fpr 0\.001 is not calibrated for texts of 64-128 tokens; calibrated are 0\.05, 0\.01"
    ):
        made().judge("binoculars", 100, 0.5, 0.001)


@pytest.mark.parametrize(
    ("change", "method", "says"),
    [
        ({}, "binoculars", None),
        ({"performer": "q"}, "binoculars", "performer p, and q is served"),
        ({"revision": "9"}, "binoculars", "revision 1, and 9 is served"),
        ({"quantize": "nf4"}, "binoculars", "quantize none, and nf4"),
        ({"dtype": "bfloat16"}, "binoculars", "dtype float32, and bfloat16"),
        ({"observer": None}, "binoculars", "observer o, and none"),
        ({"observer_revision": "3"}, "binoculars", "observer revision 2, and 3"),
        ({}, "log_rank", "has no log_rank"),
    ],
)
def test_whom_it_belongs_to(change, method, says):
    found = made().mismatch(SERVED.model_copy(update=change), method)
    assert found is None if says is None else says in found


def test_only_a_pair_needs_its_observer():
    alone = made().model_copy(update={"methods": {"fast_detect": made().methods["binoculars"]}})
    assert alone.mismatch(SERVED.model_copy(update={"observer": None, "observer_revision": None}), "fast_detect") is None


def test_a_file_comes_back(tmp_path):
    save(made(), tmp_path / "new" / "c.json")
    assert load(tmp_path / "new" / "c.json") == made()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"colour": "red"}, "colour"),
        ({"methods": {"guess": {"direction": "lower", "buckets": []}}}, "methods"),
        ({"models": {"performer": "p"}}, "models.revision"),
    ],
)
def test_what_is_no_calibration(tmp_path, change, says):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**made().model_dump(mode="json"), **change}))
    with pytest.raises(SetupError, match=rf"c\.json is no calibration: {says}"):
        load(path)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(SetupError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"format": ')
    with pytest.raises(SetupError, match="no calibration"):
        load(tmp_path / "torn.json")


@pytest.mark.parametrize(
    ("score", "p"), [((0.0, 0.0), (0.1, 0.2)), ((1.0, 0.0), (0.1, 0.2)), ((0.0, 1.0, 2.0), (0.1, 0.3, 0.2)), ((0.0, 1.0), (0.1,))]
)
def test_a_map_that_is_none(score, p):
    with pytest.raises(ValueError, match=r"rise|monotone|length"):
        Chance(kind="isotonic", score=score, p=p, low=p, high=p, brier=None, log_loss=None)


def test_the_published_pair():
    falcon = load(FALCON)
    served = Models(
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
    found = falcon.judge("binoculars", 64, 0.5)
    assert (found.target_fpr, found.p_machine, found.measured_fpr, found.n_human) == (0.0001, None, None, None)
    assert falcon.judge("binoculars", 63, 0.5) is None


def test_what_lies_beside_a_model_comes_first(tmp_path):
    assert [one.models.performer for one in ready(str(tmp_path))] == ["falcon-7b-instruct"]
    save(made(), tmp_path / BESIDE)
    assert [one.models.performer for one in ready(str(tmp_path))] == ["p", "falcon-7b-instruct"]
    assert len([*ready("owner/name")]) == 1


def test_the_served_models_by_name_and_revision():
    settings = ModelSettings(path="/somewhere/else/p/", observer="hub/o", name="shown")
    facts = Facts("shown", 64, 1, "nf4", "bfloat16", "cpu", "o", True, revision="abc", observer_revision="def")
    assert models_of(settings, facts) == Models(
        performer="p", revision="abc", observer="o", observer_revision="def", quantize="nf4", dtype="bfloat16"
    )
