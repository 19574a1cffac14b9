"""Which calibration applies to the served models, and the reason if none does."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.facts import Facts
from app.errors import SetupError
from app.scoring.calibration import CALIBRATION_FILE, Calibration, ModelIdentity, save
from app.scoring.detector import NO_CALIBRATION, detector_of
from app.scoring.thresholds import Bucket, MethodCalibration, Threshold
from app.settings import ModelSettings

FACTS = Facts("shown", 64, 1, "none", "float32", "cpu", "o", True, revision="abc", observer_revision="def")


def calibration(**changes: str) -> Calibration:
    bucket = Bucket(min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=(Threshold(value=0.9),), human=(), chance=None)
    models = ModelIdentity(performer="p", revision="abc", observer="o", observer_revision="def", quantize="none", dtype="float32")
    entries = {
        "binoculars": MethodCalibration(direction="lower", buckets=(bucket,)),
        "log_rank": MethodCalibration(direction="lower", buckets=(bucket,)),
    }
    return Calibration(made="x", source="s", models=models.model_copy(update=changes), collapse=True, methods=entries)  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    folder = tmp_path / "p"
    folder.mkdir()
    return ModelSettings(path=str(folder), observer="hub/o", name="shown")


def test_the_calibration_beside_the_model_is_used(settings: ModelSettings) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    choice = detector_of(settings).choose(["fast_detect", "binoculars"], FACTS)
    assert (choice.calibration, choice.methods, choice.reason) == (calibration(), {"binoculars"}, None)


def test_the_calibration_that_the_settings_name_comes_first(settings: ModelSettings, tmp_path: Path) -> None:
    save(calibration(), Path(settings.path) / CALIBRATION_FILE)
    save(calibration().model_copy(update={"source": "configured"}), tmp_path / "configured.json")
    configured = settings.model_copy(update={"calibration": str(tmp_path / "configured.json")})
    choice = detector_of(configured).choose(["binoculars"], FACTS)
    assert choice.calibration is not None and choice.calibration.source == "configured"
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
