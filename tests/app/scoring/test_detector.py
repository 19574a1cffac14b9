"""Which calibration applies to the served models, and the reason if none does."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.facts import Facts
from app.errors import InvalidRequest, SetupError
from app.scoring.calibration import CALIBRATION_FILE, Calibration, ModelIdentity, save
from app.scoring.combined import CombinedModel, Question, Term
from app.scoring.detector import NO_CALIBRATION, ScoreOptions, check_named, detector_of
from app.scoring.thresholds import Bucket, MethodCalibration, Threshold
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

FACTS = Facts("shown", 64, 1, "none", "float32", "cpu", "o", True, revision="abc", observer_revision="def")


def calibration(**changes: str) -> Calibration:
    bucket = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=(Threshold(value=0.9),), human=(), chance=None)
    models = ModelIdentity(performer="p", revision="abc", observer="o", observer_revision="def", quantize="none", dtype="float32")
    entries = {
        "binoculars": MethodCalibration(direction="lower", buckets=(bucket,)),
        "log_rank": MethodCalibration(direction="lower", buckets=(bucket,)),
    }
    return Calibration(made="x", source="s", models=models.model_copy(update=changes), collapse=True, methods=entries)  # type: ignore[arg-type]


def test_a_published_threshold_without_a_rate_is_used() -> None:
    (bucket,) = calibration().methods["binoculars"].buckets
    assert bucket.threshold(None).value == 0.9


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    folder = tmp_path / "p"
    folder.mkdir()
    return ModelSettings(path=str(folder), observer="hub/o", name="shown")


def test_the_calibration_beside_the_model_is_used(settings: ModelSettings) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    choice = detector_of(settings).choose(["fast_detect", "binoculars"], FACTS)
    assert (choice.calibration, choice.methods, choice.reason) == (calibration(), {"binoculars"}, None)


def test_the_calibration_that_the_settings_name_is_used_alone(settings: ModelSettings, tmp_path: Path) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    save(calibration().model_copy(update={"source": "configured"}), tmp_path / "configured.json")
    configured = settings.model_copy(update={"calibration": str(tmp_path / "configured.json")})
    choice = detector_of(configured).choose(["binoculars"], FACTS)
    assert choice.calibration is not None and choice.calibration.source == "configured"
    check_named(configured, FACTS)
    check_named(settings, replace(FACTS, revision="new"))  # that beside the model was not named
    for changes, reason in ({"observer": "x"}, "observer x, but o"), ({"performer": "x", "observer": "o"}, "performer x, but p"):
        save(calibration(**changes), tmp_path / "configured.json")
        choice = detector_of(configured).choose(["binoculars"], FACTS)
        assert choice.calibration is None and reason in (choice.reason or "")
    with pytest.raises(SetupError, match=r"model\.calibration: .*configured\.json does not apply: .* performer x, but p is served"):
        check_named(configured, FACTS)
    save(calibration(observer="x"), tmp_path / "configured.json")
    check_named(configured, FACTS)  # log_rank needs no observer
    with pytest.raises(SetupError, match=r"gone\.json"):
        detector_of(settings.model_copy(update={"calibration": str(tmp_path / "gone.json")}))


def test_without_a_calibration_the_reason_says_how_to_make_one(settings: ModelSettings) -> None:
    assert detector_of(settings).choose(["binoculars"], FACTS).reason == NO_CALIBRATION


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"quantize": "nf4"}, "quantize none, but nf4"), ({"revision": "new"}, "revision abc, but new"), ({"dtype": "bfloat16"}, "float32")],
)
def test_another_precision_or_revision_is_no_match(settings: ModelSettings, changes: dict[str, str], message: str) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    choice = detector_of(settings).choose(["binoculars"], replace(FACTS, **changes))  # type: ignore[arg-type]
    assert choice.calibration is None and message in (choice.reason or "")


def test_another_observer_excludes_only_the_methods_that_need_it(settings: ModelSettings) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    choice = detector_of(settings).choose(["binoculars", "log_rank"], replace(FACTS, observer_revision="new"))
    assert choice.methods == {"log_rank"}


def with_combined(statistic: str) -> Calibration:
    made = calibration()
    weights = CombinedModel(
        questions=(Question(name="drawn", intercept=0, terms=(Term(statistic=statistic, centre=0, spread=1, weight=1),)),)
    )
    higher = made.methods["log_rank"].model_copy(update={"direction": "higher"})
    return made.model_copy(update={"combined": weights, "methods": {**made.methods, "combined": higher}})


def observes(options: ScoreOptions, folder: Path) -> bool:
    return options.preparation(Tokenizer(str(folder)), 64).observe


ALONE = replace(FACTS, observer=None, observer_revision=None)


def test_combined_of_both_models_needs_the_observer_that_it_was_made_with(settings: ModelSettings, bundled: Path) -> None:
    save(with_combined("likelihood_ratio"), Path(settings.path) / CALIBRATION_FILE)
    detector = detector_of(settings)
    assert detector.methods(FACTS)[0] == "combined" and observes(detector.options(FACTS), bundled)
    assert not observes(detector.options(FACTS, ["log_rank"]), bundled)
    detector = detector_of(settings.model_copy(update={"observer": None}))
    assert detector.methods(ALONE) == ["fast_detect", "perplexity", "log_rank"] and detector.options(ALONE).methods == ("fast_detect",)
    with pytest.raises(InvalidRequest, match="combined needs a calibration: .* made with observer o, but none is served"):
        detector.options(ALONE, ["combined"])


def test_combined_of_the_performer_alone_does_not_ask_an_observer(settings: ModelSettings, bundled: Path) -> None:
    save(with_combined("standard_score"), Path(settings.path) / CALIBRATION_FILE)
    for facts in (FACTS, ALONE):
        options = detector_of(settings).options(facts)
        assert options.methods == ("combined",) and options.combined is not None and not observes(options, bundled)
    assert observes(detector_of(settings).options(FACTS, ["combined", "binoculars"]), bundled)
